"""Messages at rest: a topic's lanes with a cursor per group, queues for inbox channels, and what is outstanding."""

from __future__ import annotations

import heapq
from collections import deque
from collections.abc import Iterator
from typing import Protocol

import msgspec

from tidewire.model import Message

__all__ = ["Cursor", "Entry", "Feed", "LaneLog", "Queue"]


class Entry(msgspec.Struct, frozen=True):
    """A stored message. *position* is unique in its channel and grows; *stored_at* is when it took its place."""

    position: int
    message: Message
    stored_at: int


class LaneLog:
    """One lane of a topic: entries in order, the oldest ones trimmed away."""

    __slots__ = ("base", "entries", "trimmed")

    def __init__(self) -> None:
        self.entries: list[Entry] = []
        self.base = 0  # how many have been trimmed: the index of entries[0]
        self.trimmed: Entry | None = None  # the newest of those, without its body

    @property
    def end(self) -> int:
        """The index that the next entry will have."""
        return self.base + len(self.entries)

    def trim(self, number: int) -> list[Entry]:
        """Remove the *number* oldest entries and return them."""
        gone = self.entries[:number]
        if gone:
            del self.entries[:number]
            self.base += number
            self.trimmed = msgspec.structs.replace(
                gone[-1], message=msgspec.structs.replace(gone[-1].message, body=b"")
            )
        return gone


class Source(Protocol):
    """Where a feed finds what was never handed out."""

    def read(self, limit: int) -> list[Entry]:
        """Return the next entries and go on behind them."""
        ...

    def rest(self) -> Iterator[Entry]:
        """Iterate over what `read` would return, oldest first."""
        ...

    def __len__(self) -> int: ...


class Cursor:
    """A group's place in a lane of a topic."""

    __slots__ = ("index", "log")

    def __init__(self, log: LaneLog, index: int) -> None:
        self.log = log
        self.index = index

    def read(self, limit: int) -> list[Entry]:
        """Return the next entries and go on behind them."""
        start = self.index - self.log.base
        found = self.log.entries[start : start + limit]
        self.index += len(found)
        return found

    def rest(self) -> Iterator[Entry]:
        """Iterate over what `read` would return, oldest first."""
        for offset in range(self.index - self.log.base, len(self.log.entries)):
            yield self.log.entries[offset]

    def __len__(self) -> int:
        return self.log.end - self.index


class Queue:
    """One lane of an inbox channel: what is read is gone from here."""

    __slots__ = ("entries",)

    def __init__(self) -> None:
        self.entries: deque[Entry] = deque()

    def read(self, limit: int) -> list[Entry]:
        """Return the next entries and take them out."""
        return [self.entries.popleft() for _ in range(min(limit, len(self.entries)))]

    def rest(self) -> Iterator[Entry]:
        """Iterate over what `read` would return, oldest first."""
        return iter(self.entries)

    def __len__(self) -> int:
        return len(self.entries)


class Feed:
    """What one group has of one lane of one channel: unread, given back, waiting for its time, or in flight.

    Settled is what is behind the source's place and in none of these. *attempts* remembers those above 1.
    """

    __slots__ = ("attempts", "in_flight", "returned", "source", "suspects", "waiting")

    def __init__(self, source: Source) -> None:
        self.source = source
        self.in_flight: dict[int | str, Entry] = {}
        self.returned: list[tuple[int, Entry]] = []  # a heap: what comes back keeps its order
        self.waiting: dict[int, tuple[int, Entry]] = {}
        self.attempts: dict[int, int] = {}
        self.suspects: set[int] = set()

    @property
    def ready(self) -> int:
        """How many could be handed out now."""
        return len(self.source) + len(self.returned)

    def take(self, limit: int) -> list[Entry]:
        """Hand out up to *limit*: first what came back, in order, then what is unread."""
        found: list[Entry] = []
        while self.returned and len(found) < limit:
            found.append(heapq.heappop(self.returned)[1])
        if len(found) < limit:
            found += self.source.read(limit - len(found))
        for entry in found:
            self.in_flight[entry.position] = entry
        return found

    def settle(self, position: int | str) -> bool:
        """Forget what is in flight; False if it is not."""
        entry = self.in_flight.pop(position, None)
        if entry is None:
            return False
        self.attempts.pop(entry.position, None)
        self.suspects.discard(entry.position)
        return True

    def give_back(self, entry: Entry, *, counted: bool) -> None:
        """Take *entry* back from its holder; it keeps its place in the order."""
        del self.in_flight[entry.position]
        if counted:
            self.count(entry)
        heapq.heappush(self.returned, (entry.position, entry))

    def defer(self, entry: Entry, due: int) -> None:
        """Take *entry* back until `rejoin` is called for *due*."""
        del self.in_flight[entry.position]
        self.waiting[entry.position] = (due, entry)

    def rejoin(self, position: int, due: int) -> bool:
        """Let what was deferred until *due* be handed out; False if that is no longer so."""
        if self.waiting.get(position, (None, None))[0] != due:
            return False
        heapq.heappush(self.returned, (position, self.waiting.pop(position)[1]))
        return True

    def give_back_all(self, *, clean: bool) -> int:
        """Take everything back; not *clean*: counted, and suspect from now on. Return how many there were."""
        entries = list(self.in_flight.values())
        for entry in entries:
            if not clean:
                self.suspects.add(entry.position)
            self.give_back(entry, counted=not clean)
        return len(entries)

    def count(self, entry: Entry) -> None:
        """Spend an attempt of *entry*."""
        self.attempts[entry.position] = self.attempts.get(entry.position, 1) + 1

    def restart(self, source: Source) -> None:
        """Go on from *source* and forget what was outstanding. Only while nothing is in flight."""
        assert not self.in_flight, "a lane in use cannot be moved"
        self.source = source
        self.returned.clear()
        self.waiting.clear()
        self.attempts.clear()
        self.suspects.clear()

    def outstanding(self) -> Iterator[Entry]:
        """Iterate over what was handed out before and is not settled, in no order."""
        yield from self.in_flight.values()
        for _, entry in self.returned:
            yield entry
        for _, entry in self.waiting.values():
            yield entry

    def oldest(self) -> int | None:
        """Return the lowest unsettled position, or None."""
        head = next(self.source.rest(), None)
        lowest = min((entry.position for entry in self.outstanding()), default=None)
        if head is None or (lowest is not None and lowest < head.position):
            return lowest
        return head.position

    def oldest_ready(self) -> int | None:
        """Return when the oldest one that could be handed out now took its place, or None."""
        head = next(self.source.rest(), None)
        stamps = [entry.stored_at for _, entry in self.returned[:1]] + ([] if head is None else [head.stored_at])
        return min(stamps, default=None)
