"""The work that is measured: an order event of about 1 KiB, a trivial handler, everything durable."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from decimal import Decimal
from pathlib import Path
from typing import Any

import msgspec

from tidewire import Options, Running, Service, event, running
from tidewire.stores.sqlite import open_sqlite_store
from tidewire.transports.sqlite import open_sqlite_transport

__all__ = ["OPTIONS", "Line", "OrderPlaced", "OrderSeen", "order", "shop"]

OPTIONS = Options(lanes=8)


class Line(msgspec.Struct, frozen=True):
    """A line of an order."""

    sku: str
    quantity: int
    unit_price: Decimal


@event("bench.order.placed", key="order_id")
class OrderPlaced:
    """An order of about 1 KiB."""

    order_id: str
    customer_id: str
    email: str
    note: str
    lines: list[Line]


@event("bench.seen.noted", key="order_id")
class OrderSeen:
    """What follows from it."""

    order_id: str


def order(number: int) -> OrderPlaced:
    """Return the *number*-th order."""
    lines = [Line(f"sku-{n:04}", n + 1, Decimal("9.90")) for n in range(5)]
    return OrderPlaced(f"order-{number}", f"customer-{number}", "someone@mail.example", "x" * 600, lines)


@asynccontextmanager
async def shop(directory: Path, service: Service, *, store: bool = False) -> AsyncIterator[tuple[Running, Any, Any]]:
    """Run *service* on a fresh embedded broker, with a SQLite store if asked for."""
    async with open_sqlite_transport(directory / "broker.db") as transport:
        if not store:
            async with running(service, transport=transport, options=OPTIONS) as app:
                yield app, transport, None
            return
        async with (
            open_sqlite_store(directory / "store.db") as opened,
            running(service, transport=transport, store=opened, options=OPTIONS) as app,
        ):
            yield app, transport, opened


class Counter:
    """Counts events and tells when there were enough."""

    def __init__(self) -> None:
        self.count = 0
        self._wanted = 0
        self._reached = asyncio.Event()

    def add(self) -> None:
        """One more."""
        self.count += 1
        if self.count >= self._wanted:
            self._reached.set()

    async def reach(self, wanted: int) -> None:
        """Wait until there were *wanted*."""
        self._wanted = wanted
        if self.count < wanted:
            self._reached.clear()
            await self._reached.wait()
