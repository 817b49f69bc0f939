"""What the tests of the runtime share: events, and a world with a transport, a store and ways to look at both."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from datetime import timedelta
from decimal import Decimal
from pathlib import Path
from typing import Any

from tidewire import Options, Service, event
from tidewire.model import Browsed, DeadChannel, Fact
from tidewire.runtime.parts import Parts
from tidewire.runtime.serve import Running, running
from tidewire.stores.memory import open_memory_store
from tidewire.stores.postgres import open_postgres_store
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
            parts=Parts(observer=self.observer),
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


def opened_on(kind: str, folder: Path, *, url: str = "") -> Opened:
    """Return what opens a world: in memory, on files in *folder*, or with its store in PostgreSQL at *url*."""

    @asynccontextmanager
    async def open_world() -> AsyncIterator[World]:
        async with AsyncExitStack() as stack:
            enter = stack.enter_async_context
            if kind == "sqlite":
                transport: Any = await enter(open_sqlite_transport(folder / "broker.db"))
                store: Any = await enter(open_sqlite_store(folder / "store.db"))
            else:
                transport = await enter(open_memory_transport())
                store = await enter(
                    open_memory_store() if kind == "memory" else open_postgres_store(url, provision=True)
                )
            yield World(transport, store)

    return open_world
