"""The service: ``tidewire run tills.billing:billing``. Broker and store come from the environment."""

from __future__ import annotations

from tidewire import Body, Context, Header, Plain, Reject, Service
from tills.events import OrderPlaced, PaymentTaken

billing = Service("billing")
billing.accept(
    Plain(
        {"placed": OrderPlaced, "drawer-opened": None},
        type=Body("kind"),
        id=Header("message-id"),
        source=Body("till"),
        key=Body("order.order_id"),
        time=Body("at"),
        data=Body("order"),
    )
)


@billing.on(OrderPlaced)
async def charge(order: OrderPlaced, context: Context) -> PaymentTaken:
    """Take the money: the payment, the inbox mark and the next event are one transaction."""
    if order.cents <= 0:
        raise Reject("an order must cost something")
    await context.tx.execute(
        "create table if not exists payments (number integer primary key, till text, order_id text, line integer)"
    )
    await context.tx.execute(
        "insert into payments (till, order_id, line) values (?, ?, ?)",
        (context.envelope.source, order.order_id, order.line),
    )
    return PaymentTaken(order_id=order.order_id, line=order.line, cents=order.cents)
