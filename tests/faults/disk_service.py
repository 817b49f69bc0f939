"""A service on the embedded broker with a store: recorded while it runs, and run again on what a power loss left."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any

from tidewire import Context, Options, Service, event, running
from tidewire.stores.sqlite import open_sqlite_store
from tidewire.transports.sqlite import open_sqlite_transport

OPTIONS = Options(lease=timedelta(seconds=3), grace=timedelta(seconds=2), lanes=2)
ORDERS = 12


@event("shop.order.placed", key="order_id")
class OrderPlaced:
    """An order."""

    order_id: str


@event("shop.payment.taken", key="order_id")
class PaymentTaken:
    """What follows from it."""

    order_id: str


def billing(on_effect: Any = None) -> Service:
    """Return the service: a row, and an event that follows, for each order."""
    service = Service("billing")

    @service.on(OrderPlaced)
    async def charge(order: OrderPlaced, context: Context[Any]) -> PaymentTaken:
        await context.tx.execute("INSERT INTO effect VALUES (?)", (order.order_id,))
        if on_effect is not None:
            on_effect(order.order_id)
        return PaymentTaken(order.order_id)

    return service


@asynccontextmanager
async def opened(directory: Path) -> AsyncGenerator[tuple[Any, Any]]:
    """Open the broker and the store, with the user's table."""
    async with (
        open_sqlite_transport(directory / "broker.db") as broker,
        open_sqlite_store(directory / "store.db") as store,
    ):
        unit = store.unit()
        await unit.tx.execute("CREATE TABLE IF NOT EXISTS effect (name TEXT)")
        await (await unit.seal())
        yield broker, store


async def drained(broker: Any, store: Any, *, seconds: float = 20.0) -> None:
    """Wait until nothing waits anywhere.

    Raises:
        TimeoutError: something does not go on.
    """
    async with asyncio.timeout(seconds):
        while True:
            stats = await broker.stats("shop.order", "billing")
            if not stats.ready and not stats.in_flight and await store.outbox.count() == (0, 0):
                return
            await asyncio.sleep(0.005)


async def run_service(directory: Path) -> None:
    """Publish orders from outside and let the service work them off, with what must hold at any moment."""
    for number in range(ORDERS):
        _always(f"o{number}")
    async with (
        opened(directory) as (broker, store),
        running(billing(), transport=broker, store=store, options=OPTIONS) as app,
    ):
        for number in range(ORDERS):
            await app.publisher.publish(OrderPlaced(f"o{number}"), id=f"o{number}")
            os.write(1, f"ACK SELECT count(*) = 1 FROM broker.log WHERE id = 'o{number}'\n".encode())
        await drained(broker, store)
        os.write(1, f"ACK SELECT count(*) = {ORDERS} FROM store.effect\n".encode())


def _always(name: str) -> None:
    """What is settled has taken effect; what took effect has its mark, and what follows from it is on its way."""
    from disk_scripts import always, unsettled

    effect = f"(SELECT count(*) FROM store.effect WHERE name = '{name}')"
    always(
        f"SELECT {effect} = 1 OR NOT EXISTS (SELECT 1 FROM broker.log WHERE id = '{name}') OR {unsettled(name)} OR "
        "NOT EXISTS (SELECT 1 FROM broker.cursor)"
    )
    always(f"SELECT {effect} = (SELECT count(*) FROM store.tidewire_mark WHERE event_id = '{name}')")
    follows = f"""'{{"order_id":"{name}"}}'"""
    leaving = f"EXISTS (SELECT 1 FROM store.tidewire_outbox WHERE CAST(payload AS TEXT) = {follows})"
    arrived = f"EXISTS (SELECT 1 FROM broker.log WHERE CAST(body AS TEXT) = {follows} AND id != '{name}')"
    always(f"SELECT {effect} = 0 OR {leaving} OR {arrived}")
