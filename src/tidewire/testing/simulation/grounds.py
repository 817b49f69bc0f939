"""What a world stands on: a broker, its stores, how rows are written there, and a way to look at all of it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from datetime import timedelta
from typing import Any, Protocol

from tidewire.model import Mark
from tidewire.testing.simulation.checkers import History, Op
from tidewire.testing.simulation.clock import SimClock
from tidewire.testing.simulation.hosts import BrokerHost, MemoryHost, MemoryStores, StoreHost
from tidewire.testing.simulation.loop import SimLoop
from tidewire.testing.simulation.models.catalogue import MODELS
from tidewire.testing.simulation.models.host import ModelHost
from tidewire.testing.simulation.models.links import Link
from tidewire.testing.simulation.shop import Book, Effect
from tidewire.transports.memory import MemoryTransport

__all__ = ["Ground", "opened_ground"]


class Ground(Protocol):
    """Broker, stores, and the view of somebody who stands outside."""

    @property
    def broker(self) -> BrokerHost:
        """The broker."""
        ...

    @property
    def stores(self) -> StoreHost:
        """The stores."""
        ...

    @property
    def book(self) -> Book:
        """How rows are written."""
        ...

    @property
    def inspector(self) -> Any:
        """A transport of nobody's, to look and to operate with."""
        ...

    async def prepare(self) -> None:
        """Open what is there before the first process; again after a power loss."""
        ...

    def listen(self, history: History, number: Callable[[], int]) -> None:
        """Note in *history* what only the stores know."""
        ...

    async def pending(self) -> Sequence[str]:
        """Return the stores with something in their outbox."""
        ...

    async def outbox(self, name: str) -> tuple[int, int]:
        """Return how many rows of a store's outbox are pending, and quarantined."""
        ...

    async def stuck(self, name: str) -> Sequence[tuple[bytes, str]]:
        """Return body and reason of each quarantined row of a store's outbox."""
        ...

    def store(self, name: str) -> Any:
        """Return a store, to look at."""
        ...

    async def rows(self, name: str) -> Sequence[Effect]:
        """Return the rows of a store."""
        ...

    async def marks(self, name: str) -> Sequence[Mark]:
        """Return the inbox marks of a store."""
        ...

    async def close(self) -> None:
        """End what is open."""
        ...


def opened_ground(kind: str, loop: SimLoop, *, dedup: bool, power: bool = False) -> Ground:
    """Return the ground of this *kind*; with *power*, one that can lose its power."""
    if kind == "sqlite":
        from tidewire.testing.simulation.files import SqliteGround

        return SqliteGround(loop, power=power)
    clock = SimClock(loop)
    if kind in MODELS:
        server = MODELS[kind](clock)
        server.cramp()
        return MemoryGround(clock, ModelHost(server, loop), inspector=server.client(Link(server)))
    assert kind == "memory", f"there is no ground {kind!r}"
    host = MemoryHost(clock, dedup=timedelta(days=7) if dedup else timedelta(0))
    return MemoryGround(clock, host, inspector=MemoryTransport(host.broker))


class MemoryBook:
    """Rows in a memory store."""

    async def begin(self, tx: Any) -> None:
        """Take the turn."""
        await tx.get("turn")

    async def write(self, tx: Any, row: Effect) -> None:
        """Write a row."""
        await tx.put(("row", row.number), row)


class MemoryGround:
    """Memory stores, and the memory broker or the model of another one; *inspector* is a transport of it."""

    def __init__(self, clock: SimClock, host: BrokerHost, *, inspector: Any) -> None:
        self._host = host
        self._stores = MemoryStores(clock)
        self._inspector = inspector
        self.book = MemoryBook()

    @property
    def broker(self) -> BrokerHost:
        """The broker."""
        return self._host

    @property
    def stores(self) -> StoreHost:
        """The stores."""
        return self._stores

    @property
    def inspector(self) -> Any:
        """A transport of nobody's."""
        return self._inspector

    async def prepare(self) -> None:
        """Nothing needs to be opened."""

    def listen(self, history: History, number: Callable[[], int]) -> None:
        """Note the adoption of lanes, in the order of the store's commits."""

        for name in ("web", "billing", "shipping", "mailer"):
            lanes: Any = self._stores.database(name).lanes
            lanes.adopt = _noted(lanes.adopt, history, number)

    async def pending(self) -> Sequence[str]:
        """Return the stores with something in their outbox."""
        return [name for name, one in self._stores.databases.items() if (await one.outbox.count())[0]]

    async def outbox(self, name: str) -> tuple[int, int]:
        """Return the counts of an outbox."""
        return await self._stores.database(name).outbox.count()

    async def stuck(self, name: str) -> Sequence[tuple[bytes, str]]:
        """Return what is quarantined."""
        return [(one.message.body, one.detail) for one in await self._stores.database(name).outbox.stuck(limit=1_000)]

    def store(self, name: str) -> Any:
        """Return a store."""
        return self._stores.database(name)

    async def rows(self, name: str) -> Sequence[Effect]:
        """Return the rows."""
        return [row for row in self._stores.database(name).rows.values() if isinstance(row, Effect)]

    async def marks(self, name: str) -> Sequence[Mark]:
        """Return the marks."""
        return list(self._stores.database(name).inbox.marks)

    async def close(self) -> None:
        """Nothing is open."""


def _noted(adopt: Any, history: History, number: Callable[[], int]) -> Any:
    async def noted(group: str, lane: str, epoch: int) -> int:
        adopted: int = await adopt(group, lane, epoch)
        history.add(Op(f="adopt", group=group, lane=lane, epoch=epoch, number=number()))
        return adopted

    return noted
