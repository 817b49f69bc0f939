"""Services run for real here: the real runtime on a real transport and store, both kinds, on short clocks."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass, field
from datetime import timedelta
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest

from tidewire import Options, Service, event
from tidewire.model import Browsed, DeadChannel, Fact
from tidewire.protocols import Store, Transport
from tidewire.runtime.serve import Running, running
from tidewire.stores.memory import open_memory_store
from tidewire.stores.sqlite import open_sqlite_store
from tidewire.transports.memory import open_memory_transport
from tidewire.transports.sqlite import open_sqlite_transport


@event("shop.order.placed", key="order_id")
class OrderPlaced:
    """An order, keyed."""

    order_id: str
    total: Decimal = Decimal(1)
    number: int = 0
    note: str = ""


@event("shop.payment.taken", key="order_id")
class PaymentTaken:
    """What follows from it."""

    order_id: str


@event("shop.page.viewed")
class PageViewed:
    """Something without a key."""

    number: int


@dataclass
class Recorder:
    """An observer that keeps what it hears."""

    facts: list[Fact] = field(default_factory=list)

    def record(self, facts: Any) -> None:
        self.facts.extend(facts)

    def count(self, kind: str) -> int:
        return sum(fact.kind == kind for fact in self.facts)


@dataclass
class World:
    """A transport, a store for the service under test, and ways to look at both."""

    transport: Any
    store: Any
    options: Options = field(
        default_factory=lambda: Options(lease=timedelta(seconds=1), grace=timedelta(seconds=2), lanes=4)
    )
    observer: Recorder = field(default_factory=Recorder)

    def running(self, service: Service, *, store: bool = True) -> AbstractAsyncContextManager[Running]:
        return running(
            service,
            transport=self.transport,
            store=self.store if store else None,
            options=self.options,
            observer=self.observer,
        )

    async def dead(self, topic: str, group: str) -> list[Browsed]:
        return list(await self.transport.browse(DeadChannel(topic, group)))

    async def until(self, true: Callable[[], Any], seconds: float = 10.0) -> None:
        """Wait until *true* holds; an awaitable answer is awaited."""
        async with asyncio.timeout(seconds):
            while True:
                answer = true()
                if asyncio.iscoroutine(answer):
                    answer = await answer
                if answer:
                    return
                await asyncio.sleep(0.005)

    async def settled(self, topic: str, group: str) -> bool:
        """Whether nothing waits and nothing is in progress."""
        stats = await self.transport.stats(topic, group)
        return not stats.ready and not stats.in_flight and not stats.delayed


Opened = Callable[[], AbstractAsyncContextManager[World]]


@pytest.fixture(params=["memory", "sqlite"])
def opened(request: pytest.FixtureRequest, tmp_path: Path) -> Opened:
    """A function that opens the world of one kind."""

    @asynccontextmanager
    async def open_world() -> AsyncIterator[World]:
        if request.param == "memory":
            async with open_memory_transport() as transport, open_memory_store() as store:
                yield World(transport, store)
        else:
            async with (
                open_sqlite_transport(tmp_path / "broker.db") as transport,
                open_sqlite_store(tmp_path / "store.db") as store,
            ):
                yield World(transport, store)

    return open_world


def check_protocols(transport: Transport, store: Store) -> None:
    """For the type checker: both kinds are what the seams ask for."""
