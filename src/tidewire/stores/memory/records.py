"""What the memory store remembers besides rows and outgoing events."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from datetime import timedelta

import msgspec

from tidewire.errors import AlreadyMarked, LaneFenced
from tidewire.model import Failure, Held, Mark
from tidewire.protocols import Clock, Unit
from tidewire.stores.memory.unit import own_unit

__all__ = ["MemoryAttempts", "MemoryHeldKeys", "MemoryInbox", "MemoryLanes", "MemoryTimetable"]


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
        own = own_unit(unit)
        await own.begin()
        if mark in self.marks or mark in own.marks:
            raise AlreadyMarked(f"{mark.group}.{mark.handler}: event {mark.event_id} has already taken effect")
        own.marks[mark] = digest

    async def run_of(self, group: str) -> int:
        """Return the group's current run."""
        return self.runs.get(group, 0)

    async def next_run(self, group: str) -> int:
        """Raise the group's run."""
        self.runs[group] = self.runs.get(group, 0) + 1
        return self.runs[group]

    async def prune(self, before: int, limit: int) -> int:
        """Delete old marks."""
        old = [mark for mark, (_, at) in itertools.islice(self.marks.items(), limit) if at < before]
        for mark in old:
            del self.marks[mark]
        return len(old)


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


class Run(msgspec.Struct):
    """A recurring run: its rule, when it is due, and whose lease is on it until when (ticks)."""

    rule: str
    due: int
    owner: str = ""
    until: int = 0


class MemoryTimetable:
    """See `tidewire.protocols.Timetable`."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._runs: dict[str, Run] = {}

    async def claim(
        self, name: str, rule: str, *, first: int, now: int, owner: str, lease: timedelta
    ) -> tuple[int, bool]:
        """Look, and take the lease if it is due."""
        run = self._runs.get(name)
        if run is None or run.rule != rule:
            run = self._runs[name] = Run(rule, first)
        ticks = self._clock.ticks()
        if run.due > now or (run.owner != owner and run.until > ticks):
            return run.due, False
        run.owner, run.until = owner, ticks + lease // timedelta(microseconds=1) * 1_000
        return run.due, True

    async def advance(self, unit: Unit, name: str, *, owner: str, due: int, to: int) -> None:
        """Move on when the unit commits."""
        own = own_unit(unit)
        await own.begin()
        run = self._runs.get(name)
        if run is None or (run.owner, run.due) != (owner, due):
            raise AlreadyMarked(f"the run of {name} at {due} is not {owner}'s")

        def move_on() -> None:
            run.due, run.owner, run.until = to, "", 0

        own.after.append(move_on)


def _name(row: Held) -> tuple[str, str, str, str, str]:
    return row.group, row.topic, row.key, row.source, row.event_id
