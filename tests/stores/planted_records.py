"""Stores whose outbox, records or lanes are broken on purpose, each in one way; see `planted_stores`."""

from __future__ import annotations

import itertools
from collections.abc import Sequence, Set
from datetime import timedelta

import msgspec
from planted_stores import Planted, WithoutTurns

from tidewire.errors import LaneFenced
from tidewire.model import Failure, Guard, Held, Message, Pending
from tidewire.protocols import Clock, Unit
from tidewire.stores.memory.outbox import MemoryBacklog, MemoryOutbox
from tidewire.stores.memory.records import MemoryAttempts, MemoryHeldKeys, MemoryLanes, MemoryTimetable
from tidewire.stores.memory.unit import MemoryUnit, own_unit

# --- outbox and backlog ---------------------------------------------------------------------------------------


class NumbersBeforeTheCommit(WithoutTurns):
    """PB-21: row numbers are given at the insert, so that a lower one may appear behind the cursor."""

    class outbox_class(MemoryOutbox):
        """Numbers at once."""

        async def put(self, unit: Unit, messages: Sequence[Message]) -> None:
            """Take the numbers now and show the rows at the commit."""
            own = own_unit(unit)
            await own.begin()
            numbered = {next(self._numbers): message for message in messages}
            own.after.append(lambda: self.ready.update(numbered))


class MarksAtTheClaim(Planted):
    """PB-3: a row that was claimed counts as sent."""

    class backlog_class(MemoryBacklog):
        """Deletes what it hands out."""

        async def claim(
            self, owner: str, *, after: int, limit: int, without: Set[int] = frozenset()
        ) -> Sequence[Pending]:
            """Hand out, and delete."""
            found = await super().claim(owner, after=after, limit=limit, without=without)
            await self.done(owner, [row.row for row in found])
            return found


class DeletesUpToTheLast(Planted):
    """PB-24: everything before the last row that was sent counts as sent."""

    class backlog_class(MemoryBacklog):
        """Deletes a range."""

        async def done(self, owner: str, rows: Sequence[int]) -> bool:
            """Delete from the first row on."""
            return await super().done(owner, range(max(rows, default=0) + 1))


class OrdersByTheClock(Planted):
    """PB-32: rows are in the order of the wall clock at their insert."""

    class outbox_class(MemoryOutbox):
        """Numbers rows by the time."""

        def append(self, messages: Sequence[Message]) -> None:
            """Number by the wall clock."""
            self._numbers = itertools.count(self._clock.now_us())
            super().append(messages)


class HandsOutEarly(Planted):
    """CF-59: an event leaves before its time."""

    class outbox_class(MemoryOutbox):
        """Takes no notice of times."""

        def append(self, messages: Sequence[Message]) -> None:
            """Append everything as due."""
            super().append([msgspec.structs.replace(message, not_before=None) for message in messages])


class ForgetsTheDelayed(Planted):
    """ST-31: delayed events are not counted, as if they were nobody's."""

    class outbox_class(MemoryOutbox):
        """Counts what is ready."""

        async def count(self) -> tuple[int, int]:
            """Leave the delayed ones out."""
            return len(self.ready), len(self.refused)


class PulsesOnly(Planted):
    """PB-33: who was not waiting at the moment of the commit does not hear of it."""

    class outbox_class(MemoryOutbox):
        """Forgets what was before."""

        async def wait(self, longest: timedelta) -> bool:
            """Wait for a commit from now on."""
            self._committed.clear()
            return await super().wait(longest)


class LosesEmptyKeys(Planted):
    """OX-27: an event without a key comes back with one."""

    class outbox_class(MemoryOutbox):
        """Has no word for nothing."""

        def append(self, messages: Sequence[Message]) -> None:
            """Write an empty text for None."""
            super().append([msgspec.structs.replace(message, key=message.key or "") for message in messages])


class LeasesByTheWallClock(Planted):
    """PB-7: a wall clock that jumps ends leases early, or never."""

    class backlog_class(MemoryBacklog):
        """Takes the wall time for ticks."""

        def __init__(self, outbox: MemoryOutbox, clock: Clock) -> None:
            super().__init__(outbox, _WallTicks(clock))


class _WallTicks:
    """A clock whose ticks are its wall time."""

    def __init__(self, clock: Clock) -> None:
        self.now = clock.now
        self.now_us = clock.now_us

    def ticks(self) -> int:
        """Return the wall time in nanoseconds."""
        return self.now_us() * 1_000


class LeadsTwice(Planted):
    """PB-26: two relays read at the same time."""

    class backlog_class(MemoryBacklog):
        """Gives the lease to everybody."""

        async def lease(self, owner: str, duration: timedelta) -> bool:
            """Always yes."""
            await super().lease(owner, duration)
            return True

        def _leads(self, owner: str) -> bool:
            return True


class LetsAZombieFinish(Planted):
    """PB-11: a relay that lost its lease still marks rows as sent."""

    class backlog_class(MemoryBacklog):
        """Asks nobody."""

        async def done(self, owner: str, rows: Sequence[int]) -> bool:
            """Delete, whoever asks."""
            return await super().done(self._owner if self._leads(self._owner) else owner, rows)


class GoesOnBehindAQuarantine(Planted):
    """PB-25: what follows a refused event of its key leaves before it."""

    class backlog_class(MemoryBacklog):
        """Skips the refused row and goes on."""

        def _sideline(self) -> None:
            """Leave everything where it is."""


# --- records, lanes, recurring runs ---------------------------------------------------------------------------


class ForgetsFailuresAtAStart(Planted):
    """PB-43: an event that begins again has no past."""

    class attempts_class(MemoryAttempts):
        """Starts from nothing."""

        async def begin(self, group: str, source: str, event_id: str) -> int:
            """Keep the starts and drop the failures."""
            starts = await super().begin(group, source, event_id)
            self._failures[group, source, event_id] = Failure(starts=starts)
            return starts


class LosesItsPlace(Planted):
    """RL-5: an event that changes its channel goes to the end of its key."""

    class held_class(MemoryHeldKeys):
        """Numbers anew."""

        async def put(self, rows: Sequence[Held]) -> Sequence[Held]:
            """Remove, then insert."""
            await self.free(rows)
            return await super().put(rows)


class HoldsTheWholeTopic(Planted):
    """PB-49: one held key holds up every key of its topic."""

    class held_class(MemoryHeldKeys):
        """Does not look at keys."""

        async def head(self, group: str, topic: str, key: str) -> Held | None:
            """Return the first row of any key."""
            held = await super().keys(group, [topic])
            return await super().head(group, topic, held[0][1]) if held else None


class GuardsNothing(Planted):
    """R3: a zombie commits."""

    def unit(self, guard: Guard | None = None, *, label: str = "") -> MemoryUnit:
        """Drop the guard."""
        return super().unit(None, label=label)


class LooksAtTheGuardFirst(Planted):
    """PB-13: the fence is looked at when the unit begins, and not when it commits."""

    class unit_class(MemoryUnit):
        """Looks too early."""

        async def begin(self) -> None:
            """Look, then begin."""
            guard, self._guard = self._guard, None
            if guard is not None and self.store.epochs.get((guard.group, guard.lane)) != guard.epoch:
                raise LaneFenced("taken over before it began")
            await super().begin()


class AdoptsBackwards(Planted):
    """R3: whoever comes last owns the lane, however old his epoch."""

    class lanes_class(MemoryLanes):
        """Writes what it is told."""

        async def adopt(self, group: str, lane: str, epoch: int) -> int:
            """Record any epoch."""
            self._epochs[group, lane] = epoch
            return epoch


class FinishesForAnybody(Planted):
    """A recurring run is ended by one who lost it, beside one who has it."""

    class timetable_class(MemoryTimetable):
        """Does not look at the lease."""

        async def advance(self, unit: Unit, name: str, *, owner: str, due: int, to: int) -> None:
            """Take whoever asks for the owner."""
            run = self._runs.get(name)
            await super().advance(unit, name, owner=run.owner if run else owner, due=due, to=to)
