"""The outbox in memory: as its writers see it, and as the relay does."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Sequence, Set
from datetime import timedelta

import msgspec

from tidewire.kit.waits import happens
from tidewire.model import Message, Pending, Stuck, Topic
from tidewire.protocols import Clock, Unit
from tidewire.rules.relaying import BEHIND, up_to
from tidewire.stores.memory.unit import own_unit

__all__ = ["MemoryBacklog", "MemoryOutbox"]

_FOREVER = float("inf")


class MemoryOutbox:
    """See `tidewire.protocols.Outbox`."""

    def __init__(self, clock: Clock) -> None:
        self.ready: dict[int, Message] = {}
        self.delayed: list[tuple[int, int, Message]] = []
        self.refused: dict[int, Stuck] = {}
        self._numbers = itertools.count(1)
        self._clock = clock
        self._committed = asyncio.Event()

    async def put(self, unit: Unit, messages: Sequence[Message]) -> None:
        """Collect *messages* in *unit*."""
        own = own_unit(unit)
        for message in messages:
            _topic(message)
        await own.begin()
        own.messages.extend(messages)

    async def wait(self, longest: timedelta) -> bool:
        """Wait for a commit or a due time."""
        seconds = min(longest.total_seconds(), self._until_due())
        if not await happens(self._committed, seconds):
            return self._until_due() <= 0
        self._committed.clear()
        return True

    async def count(self) -> tuple[int, int]:
        """Return the numbers of pending and of quarantined rows."""
        return len(self.ready) + len(self.delayed), len(self.refused)

    async def stuck(self, *, after: int = 0, limit: int = 100) -> Sequence[Stuck]:
        """Return quarantined rows."""
        return [self.refused[row] for row in sorted(self.refused) if row > after][:limit]

    async def requeue(self, rows: Sequence[int]) -> int:
        """Append quarantined rows to what is ready."""
        found = [self.refused.pop(row).message for row in sorted(rows) if row in self.refused]
        self.append(found)
        return len(found)

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

    async def claim(self, owner: str, *, after: int, limit: int, without: Set[int] = frozenset()) -> Sequence[Pending]:
        """Return the next rows."""
        if not self._leads(owner):
            return ()
        self._outbox.release_due()
        self._sideline()
        rows = (
            Pending(row, message, self._refusals.get(row, 0))
            for row, message in sorted(self._outbox.ready.items())
            if row > after and row not in without
        )
        return up_to(rows, limit)

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
        message = self._outbox.ready.pop(row)
        attempts = self._refusals.pop(row)
        self._outbox.refused[row] = Stuck(row, message, attempts, detail[:1_024], self._clock.now_us())
        return True

    def _sideline(self) -> None:
        """Put aside what stands behind a quarantined row of its key."""
        first: dict[tuple[str, str], int] = {}
        for row, stuck in self._outbox.refused.items():
            if stuck.message.key is not None:
                place = (_topic(stuck.message), stuck.message.key)
                first[place] = min(row, first.get(place, row))
        for row, message in [*self._outbox.ready.items()] if first else ():
            if message.key is not None and row > first.get((_topic(message), message.key), row):
                del self._outbox.ready[row]
                self._outbox.refused[row] = Stuck(row, message, 0, BEHIND, self._clock.now_us())

    def _leads(self, owner: str) -> bool:
        return self._owner == owner and self._until > self._clock.ticks()


def _topic(message: Message) -> str:
    if not isinstance(message.to, Topic):
        raise TypeError(f"the outbox takes messages for topics, not for {message.to}")
    return message.to.name
