"""Stores of simulated processes: the real ones, with a point around every call, and data that outlive the process."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable, Generator, Sequence
from typing import Any

from tidewire.errors import StoreUnavailable
from tidewire.model import Guard, Message
from tidewire.protocols import Clock, Unit
from tidewire.stores.memory.store import MemoryStore
from tidewire.stores.memory.unit import MemoryUnit
from tidewire.testing.simulation.loop import Process, current_process
from tidewire.testing.simulation.wires import Wire

__all__ = ["Database", "SimStore"]


class Database(MemoryStore):
    """A memory store that several simulated processes share, and that outlives each of them.

    What a process had open when it was killed is rolled back, and its place in the line is gone, as a database
    does for a client whose connection ends. *on_commit* hears of every commit at the moment it happens.
    """

    def __init__(self, clock: Clock) -> None:
        super().__init__(clock)
        self.on_commit: Callable[[MemoryUnit], None] = lambda unit: None
        self._holder: Process | None = None
        self._taken = False
        self._line: deque[tuple[asyncio.Future[None], Process | None]] = deque()

    def apply(self, unit: MemoryUnit) -> None:
        """Make what *unit* collected true, in one step."""
        super().apply(unit)
        self.on_commit(unit)

    async def take_turn(self) -> None:
        """Wait for the turn, first come, first served."""
        process = current_process()
        if not self._taken:
            self._taken, self._holder = True, process
            return
        place: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._line.append((place, process))
        try:
            await place
        except asyncio.CancelledError:
            if place.done() and not place.cancelled():
                self.end_turn()
            raise

    def end_turn(self) -> None:
        """Pass the turn on to the first who still lives."""
        self._holder, self._taken = None, False
        while self._line:
            place, process = self._line.popleft()
            if not place.done() and (process is None or process.alive):
                self._taken, self._holder = True, process
                place.set_result(None)
                return

    def drop(self, process: Process) -> None:
        """End the connections of a process that has died."""
        if self._taken and self._holder is process:
            self.end_turn()


class SimStore:
    """A store as one simulated process has it."""

    def __init__(self, inner: Any, wire: Wire) -> None:
        self._inner = inner
        self._wire = wire
        self.inbox: Any = _Part(inner.inbox, wire)
        self.outbox: Any = _Outbox(inner.outbox, wire)
        self.backlog: Any = _Part(inner.backlog, wire)
        self.attempts: Any = _Part(inner.attempts, wire)
        self.held: Any = _Part(inner.held, wire)
        self.lanes: Any = _Part(inner.lanes, wire)
        self.timetable: Any = _Part(inner.timetable, wire)

    def unit(self, guard: Guard | None = None, *, label: str = "") -> SimUnit:
        """Return a unit that has not begun."""
        return SimUnit(self._inner.unit(guard, label=label), self._wire, guard)

    def saturated(self) -> bool:
        """Whether one more unit could only queue."""
        answer: bool = self._inner.saturated()
        return answer

    def adopt_tx(self, tx: Any) -> Any:
        """Return the unit of a transaction handle."""
        return self._inner.adopt_tx(tx)


class _Part:
    """A part of a store: each call has a point before and after it, and may find the database down before."""

    def __init__(self, inner: Any, wire: Wire) -> None:
        self._inner = inner
        self._wire = wire

    def __getattr__(self, name: str) -> Any:
        method = getattr(self._inner, name)
        wire = self._wire

        async def call(*args: Any, **options: Any) -> Any:
            await wire.point()
            if wire.weather.strikes("store down", wire.weather.faults.store_down):
                raise StoreUnavailable("the database cannot be reached (simulated)")
            result = await method(*args, **options)
            await wire.point()
            return result

        setattr(self, name, call)
        return call


class _Outbox:
    """The outbox: what waits, waits as it is."""

    def __init__(self, inner: Any, wire: Wire) -> None:
        self._part: Any = _Part(inner, wire)
        self.wait: Any = inner.wait

    async def put(self, unit: Unit, messages: Sequence[Message]) -> None:
        """Insert *messages* in *unit*."""
        await self._part.put(unit, messages)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._part, name)


class SimUnit:
    """A unit as one simulated process has it. *inner* is the store's own, which its parts look for."""

    def __init__(self, inner: Unit, wire: Wire, guard: Guard | None = None) -> None:
        self.inner = inner
        self.guard = guard
        self._wire = wire

    @property
    def tx(self) -> Any:
        """The store's native handle."""
        return self.inner.tx

    @property
    def sync_tx(self) -> Any:
        """The same for ``def`` handlers."""
        return self.inner.sync_tx

    async def begin(self) -> None:
        """Begin, or find the database down."""
        wire = self._wire
        await wire.point()
        if wire.weather.strikes("store down", wire.weather.faults.store_down):
            raise StoreUnavailable("the database cannot be reached (simulated)")
        await self.inner.begin()

    async def seal(self) -> Awaitable[None]:
        """Commit; the news of it takes a while."""
        wire = self._wire
        await wire.point()
        if wire.weather.strikes("store down", wire.weather.faults.store_down):
            await self.inner.rollback()
            raise StoreUnavailable("the database cannot be reached (simulated)")
        return _News(await self.inner.seal(), wire)

    async def rollback(self) -> None:
        """Roll back."""
        await self.inner.rollback()

    def __getattr__(self, name: str) -> Any:
        return getattr(self.inner, name)


class _News:
    """The word that a unit is durable, some time after it is."""

    def __init__(self, durable: Awaitable[None], wire: Wire) -> None:
        self._durable = durable
        self._wire = wire

    def __await__(self) -> Generator[Any, None, None]:
        yield from self._durable.__await__()
        yield from self._wire.point().__await__()
