"""A service that is not: after a crash it asks the bank again, and the bank cannot know that it is a repeat."""

from __future__ import annotations

from payments.bank import clients
from payments.events import OrderPlaced, PaymentTaken
from tidewire import Context, Service

billing = Service("billing")


@billing.on(OrderPlaced)
async def charge(order: OrderPlaced, context: Context) -> PaymentTaken:
    """Take the money and write it down."""
    receipt = await clients.bank.take(order.cents)
    await context.tx.execute("create table if not exists payment (order_id text primary key, receipt text)")
    await context.tx.execute("insert into payment values (?, ?)", (order.order_id, receipt))
    return PaymentTaken(order_id=order.order_id, receipt=receipt)


@billing.on(OrderPlaced)
async def count(order: OrderPlaced, context: Context) -> None:
    """Count orders, in the database alone: exactly once, whatever happens."""
    await context.tx.execute("create table if not exists total (name text primary key, orders integer)")
    await context.tx.execute("insert into total values ('all', 1) on conflict (name) do update set orders = orders + 1")
