"""Stores that are broken on purpose, each in one way. Numbers are those of the catalogue (``PB-…``)."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Awaitable, Sequence
from contextlib import asynccontextmanager
from typing import Any

import msgspec
from store_sites import SqliteRows, memory_site

from tidewire.errors import AlreadyMarked
from tidewire.model import Guard, Mark, Message
from tidewire.protocols import Clock, Unit
from tidewire.stores.memory.outbox import MemoryBacklog, MemoryOutbox
from tidewire.stores.memory.records import MemoryAttempts, MemoryHeldKeys, MemoryInbox, MemoryLanes, MemoryTimetable
from tidewire.stores.memory.store import MemoryStore
from tidewire.stores.memory.unit import MemoryUnit, own_unit
from tidewire.stores.sqlite import open_sqlite_store
from tidewire.testing.stores import Site


class Planted(MemoryStore):
    """A sound store, of which one part may be replaced."""

    inbox_class: type[MemoryInbox] = MemoryInbox
    outbox_class: type[MemoryOutbox] = MemoryOutbox
    backlog_class: type[MemoryBacklog] = MemoryBacklog
    attempts_class: type[MemoryAttempts] = MemoryAttempts
    held_class: type[MemoryHeldKeys] = MemoryHeldKeys
    lanes_class: type[MemoryLanes] = MemoryLanes
    timetable_class: type[MemoryTimetable] = MemoryTimetable
    unit_class: type[MemoryUnit] = MemoryUnit

    def __init__(self, clock: Clock) -> None:
        super().__init__(clock)
        self.inbox = self.inbox_class(clock)
        self.outbox = self.outbox_class(clock)
        self.backlog = self.backlog_class(self.outbox, clock)
        self.attempts = self.attempts_class()
        self.held = self.held_class()
        self.lanes = self.lanes_class(self.epochs)
        self.timetable = self.timetable_class(clock)

    def unit(self, guard: Guard | None = None, *, label: str = "") -> MemoryUnit:
        """Return a unit of the planted kind."""
        return self.unit_class(self, guard)

    @classmethod
    def site(cls) -> Site:
        """Return a site with a store of this kind, and little patience."""

        @asynccontextmanager
        async def opened(clock: Clock) -> AsyncGenerator[MemoryStore]:
            yield cls(clock)

        return memory_site(opened, patience=0.5)


class WithoutTurns(Planted):
    """Units of this store are open at the same time, and only marks that are committed keep them apart."""

    async def take_turn(self) -> None:
        """Wait for nobody."""

    def end_turn(self) -> None:
        """Nobody waits."""


# --- units and marks ------------------------------------------------------------------------------------------


class MarksOutsideItsUnit(Planted):
    """PB-16: the mark is stored at once, in a transaction of its own."""

    class inbox_class(MemoryInbox):
        """Does not wait for the commit."""

        async def mark(self, unit: Unit, mark: Mark, digest: bytes) -> None:
            """Store the mark now."""
            await super().mark(unit, mark, digest)
            self.marks[mark] = (digest, self._clock.now_us())


class SendsBeforeTheCommit(Planted):
    """PB-30: an event is there although its unit is rolled back."""

    class outbox_class(MemoryOutbox):
        """Does not wait for the commit."""

        async def put(self, unit: Unit, messages: Sequence[Message]) -> None:
            """Append now."""
            await own_unit(unit).begin()
            self.append(messages)


class SendsAfterTheCommit(Planted):
    """PB-4, PB-17: events are written after the unit, in a second transaction."""

    class unit_class(MemoryUnit):
        """Commits rows and marks first."""

        async def seal(self) -> Awaitable[None]:
            """Seal without the events, and append them a little later."""
            messages, self.messages = self.messages, []
            durable = await super().seal()
            outbox: MemoryOutbox = vars(self.store)["outbox"]
            asyncio.get_running_loop().call_later(0.005, outbox.append, messages)
            return durable


class HasNoMarks(Planted):
    """PB-2: an effect happens as often as its event comes."""

    class inbox_class(MemoryInbox):
        """Never refuses."""

        async def mark(self, unit: Unit, mark: Mark, digest: bytes) -> None:
            """Collect it, whatever is there."""
            own = own_unit(unit)
            await own.begin()
            own.marks[mark] = digest


class ForgetsTheHandler(Planted):
    """PB-9: two handlers of a service share a mark."""

    class inbox_class(MemoryInbox):
        """Leaves the handler out."""

        async def known(self, marks: Sequence[Mark]) -> Sequence[bytes | None]:
            """Look without the handler."""
            return await super().known([msgspec.structs.replace(mark, handler="") for mark in marks])

        async def mark(self, unit: Unit, mark: Mark, digest: bytes) -> None:
            """Store without the handler."""
            await super().mark(unit, msgspec.structs.replace(mark, handler=""), digest)


class FoldsIds(Planted):
    """IX-17: ids are compared without regard to case, as some collations do."""

    class inbox_class(MemoryInbox):
        """Lowers ids."""

        async def known(self, marks: Sequence[Mark]) -> Sequence[bytes | None]:
            """Look for the lowered id."""
            return await super().known([_lowered(mark) for mark in marks])

        async def mark(self, unit: Unit, mark: Mark, digest: bytes) -> None:
            """Store the lowered id."""
            await super().mark(unit, _lowered(mark), digest)


def _lowered(mark: Mark) -> Mark:
    return msgspec.structs.replace(mark, event_id=mark.event_id.lower())


class KeepsNoDigest(Planted):
    """PB-37: the same id with another body cannot be told."""

    class inbox_class(MemoryInbox):
        """Drops the digest."""

        async def mark(self, unit: Unit, mark: Mark, digest: bytes) -> None:
            """Store nothing but the mark."""
            await super().mark(unit, mark, b"")


class ChecksThenInserts(WithoutTurns):
    """PB-14: between the look and the insert another worker does the same."""

    class inbox_class(MemoryInbox):
        """Lets others in between."""

        async def mark(self, unit: Unit, mark: Mark, digest: bytes) -> None:
            """Look, wait, insert."""
            await super().mark(unit, mark, digest)
            await asyncio.sleep(0)


class TakesAConflictForDone(WithoutTurns):
    """PB-15: the second worker acks while the first may still roll back."""

    class inbox_class(MemoryInbox):
        """Remembers marks of open units."""

        def __init__(self, clock: Clock) -> None:
            super().__init__(clock)
            self.tried: set[Mark] = set()

        async def mark(self, unit: Unit, mark: Mark, digest: bytes) -> None:
            """Call it done as soon as anybody has begun."""
            if mark in self.tried:
                raise AlreadyMarked("somebody is at it")
            self.tried.add(mark)
            await super().mark(unit, mark, digest)


class KeepsTheTurnOfACancelled(Planted):
    """PB-20: a unit that is cancelled while it waits gets the turn all the same, and keeps it."""

    async def take_turn(self) -> None:
        """Wait, and never pass on."""
        if not self._busy:
            self._busy = True
            return
        place: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiting.append(place)
        await asyncio.shield(place)


class WritesAfterItsEnd(Planted):
    """ST-19: a kept handle goes on writing, in a transaction that nobody ends."""

    class unit_class(MemoryUnit):
        """Begins again."""

        async def begin(self) -> None:
            """Begin, whatever was before."""
            if self._state == "ended":
                self.store.rows.update(self.rows)
                return
            await super().begin()


class PrunesTheYoung(Planted):
    """IX-18: the limit counts and the age does not."""

    class inbox_class(MemoryInbox):
        """Does not look at ages."""

        async def prune(self, before: int, limit: int) -> int:
            """Take the first ones."""
            return await super().prune(1 << 62, limit)


# --- on disk --------------------------------------------------------------------------------------------------


class _Unsure:
    """A unit of the SQLite store that is called durable before it is."""

    def __init__(self, inner: Any) -> None:
        self.inner = inner
        self.begin, self.rollback = inner.begin, inner.rollback

    @property
    def tx(self) -> Any:
        """The unit's own handle."""
        return self.inner.tx

    @property
    def sync_tx(self) -> Any:
        """The unit's own handle."""
        return self.inner.sync_tx

    async def seal(self) -> Awaitable[None]:
        """Seal, and answer at once."""
        await self.inner.seal()
        done: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        done.set_result(None)
        return done


def answers_too_early(path: str) -> Site:
    """R15: what is said to be durable is not yet on the disk."""

    @asynccontextmanager
    async def opened(clock: Clock) -> AsyncGenerator[Any]:
        async with open_sqlite_store(path, clock=clock) as store:
            unit = store.unit
            store.unit = lambda guard=None, *, label="": _Unsure(unit(guard, label=label))  # type: ignore[method-assign, assignment, return-value]
            yield store

    elsewhere = ("planted_stores:answers_too_early", path)
    return Site(open=opened, rows=SqliteRows(), shared=True, durable=True, elsewhere=elsewhere)


def remembers_in_the_process(path: str) -> Site:
    """PB-29, PB-43: failures and held keys are kept by the process, and die with it."""

    @asynccontextmanager
    async def opened(clock: Clock) -> AsyncGenerator[Any]:
        async with open_sqlite_store(path, clock=clock) as store:
            whole: Any = store
            whole.attempts, whole.held = MemoryAttempts(), MemoryHeldKeys()
            yield whole

    return Site(open=opened, rows=SqliteRows(), shared=True, durable=True)
