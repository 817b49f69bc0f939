"""The store in memory: the same semantics as the others, without a disk. For tests and for virtual time.

Single event loop, no threads, no clock but the one it is given. ``tx`` is a small transactional mapping.
"""

from __future__ import annotations

import asyncio
import itertools
from collections import deque
from collections.abc import AsyncGenerator, Awaitable, Mapping, Sequence
from contextlib import asynccontextmanager
from datetime import timedelta
from typing import Any, Literal

import msgspec

from tidewire.clock import SystemClock
from tidewire.errors import AlreadyMarked, LaneFenced, TransactionClosed
from tidewire.model import Failure, Guard, Held, Mark, Message, Pending, Topic
from tidewire.protocols import Clock, Unit

__all__ = ["open_memory_store"]

_FOREVER = float("inf")


class MemoryTx:
    """``context.tx`` of the memory store: a mapping whose changes happen if and only if the unit commits."""

    def __init__(self, unit: MemoryUnit) -> None:
        self.unit = unit

    async def put(self, key: Any, value: Any) -> None:
        """Set *key*; the first use begins the unit."""
        await self.unit.begin()
        self.unit.rows[key] = value

    async def get(self, key: Any, default: Any = None) -> Any:
        """Return the value of *key* as this unit sees it."""
        await self.unit.begin()
        return self.unit.rows.get(key, self.unit.store.rows.get(key, default))


class MemoryUnit:
    """See `tidewire.protocols.Unit`: what it collects is applied in one step by `seal`."""

    def __init__(self, store: MemoryStore, guard: Guard | None) -> None:
        self.store = store
        self.rows: dict[Any, Any] = {}
        self.marks: dict[Mark, bytes] = {}
        self.messages: list[Message] = []
        self._guard = guard
        self._state: Literal["new", "open", "ended"] = "new"
        self._tx = MemoryTx(self)

    @property
    def tx(self) -> MemoryTx:
        """The mapping."""
        return self._tx

    @property
    def sync_tx(self) -> Mapping[Any, Any]:
        """A mapping to read and write without ``await``, after `begin`."""
        return self.rows

    async def begin(self) -> None:
        """Take the turn; nothing if it is taken."""
        if self._state == "ended":
            raise TransactionClosed("this unit has ended", hint="use context.tx only while its handler runs")
        if self._state == "new":
            await self.store.take_turn()
            self._state = "open"

    async def seal(self) -> Awaitable[None]:
        """Apply everything at once."""
        if self._state == "ended":
            raise TransactionClosed("this unit has ended")
        if self._state == "open":
            guard = self._guard
            if guard is not None and self.store.epochs.get((guard.group, guard.lane)) != guard.epoch:
                await self.rollback()
                raise LaneFenced(f"{guard.group}: epoch {guard.epoch} of lane {guard.lane} has been taken over")
            self.store.apply(self)
            self.store.end_turn()
        self._state = "ended"
        done: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        done.set_result(None)
        return done

    async def rollback(self) -> None:
        """Forget everything."""
        if self._state == "open":
            self.store.end_turn()
        self._state = "ended"


class MemoryStore:
    """See `tidewire.protocols.Store`; *rows* are the user's."""

    def __init__(self, clock: Clock) -> None:
        self.clock = clock
        self.rows: dict[Any, Any] = {}
        self.epochs: dict[tuple[str, str], int] = {}
        self.inbox = MemoryInbox(clock)
        self.outbox = MemoryOutbox(clock)
        self.backlog = MemoryBacklog(self.outbox, clock)
        self.attempts = MemoryAttempts()
        self.held = MemoryHeldKeys()
        self.lanes = MemoryLanes(self.epochs)
        self._busy = False
        self._waiting: deque[asyncio.Future[None]] = deque()

    def unit(self, guard: Guard | None = None, *, label: str = "") -> MemoryUnit:
        """Return a unit that has not begun."""
        return MemoryUnit(self, guard)

    def saturated(self) -> bool:
        """Never: nothing is waited for but other units."""
        return False

    def adopt_tx(self, tx: Any) -> MemoryUnit | None:
        """Return the unit of a `MemoryTx` of this store."""
        return tx.unit if isinstance(tx, MemoryTx) and tx.unit.store is self else None

    def apply(self, unit: MemoryUnit) -> None:
        """Make what *unit* collected true, in one step."""
        self.rows.update(unit.rows)
        now = self.clock.now_us()
        for mark, digest in unit.marks.items():
            self.inbox.marks[mark] = (digest, now)
        self.outbox.append(unit.messages)

    async def take_turn(self) -> None:
        """Wait for the turn, first come, first served."""
        if not self._busy:
            self._busy = True
            return
        place: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiting.append(place)
        try:
            await place
        except asyncio.CancelledError:
            if place.done() and not place.cancelled():
                self.end_turn()
            raise

    def end_turn(self) -> None:
        """Pass the turn on."""
        while self._waiting:
            place = self._waiting.popleft()
            if not place.done():
                place.set_result(None)
                return
        self._busy = False


class MemoryInbox:
    """See `tidewire.protocols.Inbox`."""

    def __init__(self, clock: Clock) -> None:
        self.marks: dict[Mark, tuple[bytes, int]] = {}
        self.runs: dict[str, int] = {}
        self._clock = clock

    async def known(self, marks: Sequence[Mark]) -> Sequence[bytes | None]:
        """Return the digests."""
        return [self.marks[mark][0] if mark in self.marks else None for mark in marks]

    async def mark(self, unit: Unit, mark: Mark, digest: bytes) -> None:
        """Collect the mark in *unit*."""
        own = _own(unit)
        await own.begin()
        if mark in self.marks or mark in own.marks:
            raise AlreadyMarked(f"{mark.group}.{mark.handler}: event {mark.event_id} has already taken effect")
        own.marks[mark] = digest

    async def run_of(self, group: str) -> int:
        """Return the group's current run."""
        return self.runs.get(group, 0)

    async def prune(self, before: int, limit: int) -> int:
        """Delete old marks."""
        old = [mark for mark, (_, at) in itertools.islice(self.marks.items(), limit) if at < before]
        for mark in old:
            del self.marks[mark]
        return len(old)


class MemoryOutbox:
    """See `tidewire.protocols.Outbox`."""

    def __init__(self, clock: Clock) -> None:
        self.ready: dict[int, Message] = {}
        self.delayed: list[tuple[int, int, Message]] = []
        self.refused: dict[int, Message] = {}
        self._numbers = itertools.count(1)
        self._clock = clock
        self._committed = asyncio.Event()

    async def put(self, unit: Unit, messages: Sequence[Message]) -> None:
        """Collect *messages* in *unit*."""
        own = _own(unit)
        for message in messages:
            _topic(message)
        await own.begin()
        own.messages.extend(messages)

    async def wait(self, longest: timedelta) -> bool:
        """Wait for a commit or a due time."""
        seconds = min(longest.total_seconds(), self._until_due())
        try:
            async with asyncio.timeout(seconds):
                await self._committed.wait()
        except TimeoutError:
            return self._until_due() <= 0
        self._committed.clear()
        return True

    async def count(self) -> tuple[int, int]:
        """Return the numbers of pending and of quarantined rows."""
        return len(self.ready) + len(self.delayed), len(self.refused)

    def append(self, messages: Sequence[Message]) -> None:
        """Take in what a unit committed."""
        now = self._clock.now_us()
        for message in messages:
            if message.not_before is not None and message.not_before > now:
                self.delayed.append((message.not_before, next(self._numbers), message))
            else:
                self.ready[next(self._numbers)] = message
        if messages:
            self._committed.set()

    def release_due(self) -> None:
        """Append what has become due, in the order of its times."""
        now = self._clock.now_us()
        due = sorted(item for item in self.delayed if item[0] <= now)
        self.delayed = [item for item in self.delayed if item[0] > now]
        for _, _, message in due:
            self.ready[next(self._numbers)] = msgspec.structs.replace(message, not_before=None)

    def _until_due(self) -> float:
        if not self.delayed:
            return _FOREVER
        return max(0.0, (min(item[0] for item in self.delayed) - self._clock.now_us()) / 1e6)


class MemoryBacklog:
    """See `tidewire.protocols.Backlog`."""

    def __init__(self, outbox: MemoryOutbox, clock: Clock) -> None:
        self._outbox = outbox
        self._clock = clock
        self._owner = ""
        self._until = 0
        self._refusals: dict[int, int] = {}

    async def lease(self, owner: str, duration: timedelta) -> bool:
        """Take, extend or give back the lease."""
        now = self._clock.ticks()
        if duration <= timedelta(0):
            if self._owner == owner:
                self._until = 0
            return True
        if self._owner != owner and self._until > now:
            return False
        self._owner, self._until = owner, now + duration // timedelta(microseconds=1) * 1_000
        return True

    async def claim(self, owner: str, *, after: int, limit: int) -> Sequence[Pending]:
        """Return the next rows."""
        if not self._leads(owner):
            return ()
        self._outbox.release_due()
        blocked: dict[tuple[str, str | None], int] = {}
        for row, message in sorted(self._outbox.refused.items(), reverse=True):
            if message.key:
                blocked[_topic(message), message.key] = row
        rows = (
            Pending(row, message, self._refusals.get(row, 0))
            for row, message in sorted(self._outbox.ready.items())
            if row > after and row < blocked.get((_topic(message), message.key), row + 1)
        )
        return list(itertools.islice(rows, limit))

    async def done(self, owner: str, rows: Sequence[int]) -> bool:
        """Delete the rows while the lease holds."""
        if not self._leads(owner):
            return False
        for row in rows:
            self._outbox.ready.pop(row, None)
        return True

    async def refused(self, owner: str, row: int, *, detail: str, attempts_max: int) -> bool:
        """Count a refusal."""
        if not self._leads(owner) or row not in self._outbox.ready:
            return False
        self._refusals[row] = self._refusals.get(row, 0) + 1
        if self._refusals[row] < attempts_max:
            return False
        self._outbox.refused[row] = self._outbox.ready.pop(row)
        return True

    def _leads(self, owner: str) -> bool:
        return self._owner == owner and self._until > self._clock.ticks()


class MemoryAttempts:
    """See `tidewire.protocols.Attempts`."""

    def __init__(self) -> None:
        self._failures: dict[tuple[str, str, str], Failure] = {}

    async def get(self, group: str, source: str, event_id: str) -> Failure | None:
        """Return what is remembered."""
        return self._failures.get((group, source, event_id))

    async def begin(self, group: str, source: str, event_id: str) -> int:
        """Count a start."""
        known = self._failures.get((group, source, event_id), Failure())
        self._failures[group, source, event_id] = msgspec.structs.replace(known, starts=known.starts + 1)
        return known.starts + 1

    async def fail(self, group: str, source: str, event_id: str, failure: Failure) -> None:
        """Store a failure; its start has ended."""
        self._failures[group, source, event_id] = msgspec.structs.replace(failure, starts=0)

    async def forget(self, group: str, source: str, event_id: str) -> None:
        """Forget."""
        self._failures.pop((group, source, event_id), None)


class MemoryHeldKeys:
    """See `tidewire.protocols.HeldKeys`."""

    def __init__(self) -> None:
        self._rows: dict[tuple[str, str, str, str, str], Held] = {}
        self._numbers = itertools.count(1)

    async def keys(self, group: str, topics: Sequence[str]) -> Sequence[tuple[str, str]]:
        """Return the held keys."""
        found = {(row.topic, row.key): None for row in self._rows.values() if row.group == group}
        return [held for held in found if held[0] in topics]

    async def head(self, group: str, topic: str, key: str) -> Held | None:
        """Return the oldest row of the key."""
        rows = [row for row in self._rows.values() if (row.group, row.topic, row.key) == (group, topic, key)]
        return min(rows, key=lambda row: row.sequence, default=None)

    async def put(self, rows: Sequence[Held]) -> Sequence[Held]:
        """Insert or update."""
        stored: list[Held] = []
        for row in rows:
            name = _name(row)
            number = self._rows[name].sequence if name in self._rows else next(self._numbers)
            self._rows[name] = msgspec.structs.replace(row, sequence=number)
            stored.append(self._rows[name])
        return stored

    async def free(self, rows: Sequence[Held]) -> None:
        """Remove."""
        for row in rows:
            self._rows.pop(_name(row), None)


class MemoryLanes:
    """See `tidewire.protocols.Lanes`."""

    def __init__(self, epochs: dict[tuple[str, str], int]) -> None:
        self._epochs = epochs

    async def adopt(self, group: str, lane: str, epoch: int) -> int:
        """Record the epoch."""
        if self._epochs.get((group, lane), epoch) > epoch:
            raise LaneFenced(f"{group}: a later epoch than {epoch} has taken lane {lane} over")
        self._epochs[group, lane] = epoch
        return epoch


@asynccontextmanager
async def open_memory_store(*, clock: Clock | None = None) -> AsyncGenerator[MemoryStore]:
    """Open an empty store that is gone on leaving."""
    yield MemoryStore(clock or SystemClock())


def _own(unit: Unit) -> MemoryUnit:
    inner = getattr(unit, "inner", unit)
    if not isinstance(inner, MemoryUnit):
        raise TypeError(f"{type(unit).__name__} is not a unit of this store: effect and mark must share one database")
    return inner


def _topic(message: Message) -> str:
    if not isinstance(message.to, Topic):
        raise TypeError(f"the outbox takes messages for topics, not for {message.to}")
    return message.to.name


def _name(row: Held) -> tuple[str, str, str, str, str]:
    return row.group, row.topic, row.key, row.source, row.event_id
