"""The service that takes the money: ``python -m fastshop.billing``."""

from __future__ import annotations

import asyncio

from sqlalchemy.ext.asyncio import AsyncSession

from fastshop.events import OrderPlaced, PaymentTaken
from fastshop.tables import Payment, engine_from_environment
from tidewire import Context, Reject, Service, serve_until_signal
from tidewire.config import open_store_on, open_transport, settings_from

billing = Service("fastshop")


@billing.on(OrderPlaced)
async def charge(order: OrderPlaced, context: Context[AsyncSession]) -> PaymentTaken:
    """Take the money: the payment, the inbox mark and the next event are one transaction of the session."""
    if order.total <= 0:
        raise Reject("an order must cost something")
    context.tx.add(Payment(order_id=order.order_id, total=order.total))
    return PaymentTaken(order_id=order.order_id)


async def main() -> None:
    """Serve until SIGTERM, on the application's own engine."""
    engine = engine_from_environment()
    async with open_transport(settings_from().broker) as broker, open_store_on(engine, provision=True) as store:
        await serve_until_signal(billing, transport=broker, store=store)
    await engine.dispose()


if __name__ == "__main__":
    asyncio.run(main())
