"""A service whose effects are in its own database alone: right without any care."""

from __future__ import annotations

from payments.events import OrderPlaced
from tidewire import Context, Service

counting = Service("counting")


@counting.on(OrderPlaced)
async def count(order: OrderPlaced, context: Context) -> None:
    """Count orders."""
    await context.tx.execute("create table if not exists total (name text primary key, orders integer)")
    await context.tx.execute("insert into total values ('all', 1) on conflict (name) do update set orders = orders + 1")
