"""A lane as its owner has it: a partition of a topic and that of the inbox channel, in memory and on the event loop."""

from __future__ import annotations

import heapq
from collections import deque
from collections.abc import Collection, Iterator

from tidewire.model import Address, Delivery
from tidewire.transports.kafka.member import Entry
from tidewire.transports.kafka.progress import WINDOW, Progress
from tidewire.transports.kafka.wire import Read

__all__ = ["Feed", "Lane"]


class Feed:
    """What was fetched of one partition and is not settled: fresh, given back (*again*), waiting for a time, or out."""

    __slots__ = (
        *("address", "again", "asked", "bytes", "fresh", "kept", "log", "next_offset", "out", "partition", "paused"),
        *("progress", "saved", "version", "waiting"),
    )

    def __init__(self, log: str, partition: int, *, address: Address, progress: Progress) -> None:
        self.log = log
        self.partition = partition
        self.address = address
        self.progress = progress
        self.fresh: deque[tuple[int, Read]] = deque()
        self.bytes = 0
        self.again: list[int] = []
        self.waiting: list[tuple[int, int]] = []
        self.kept: dict[int, Read] = {}
        self.out: dict[int, Read] = {}
        self.next_offset = progress.low
        self.paused = False
        self.asked = False  # a commit that raises the ceiling is under way
        self.version = 0  # grows with every change of the books
        self.saved = 0  # the version that is committed

    def arrived(self, offset: int, read: Read | None) -> None:
        """Take in a record; what lies between it and the one before does not exist."""
        if offset > self.next_offset:
            self.progress.skip(self.next_offset, offset)
            self.version += 1
        self.next_offset = offset
        if read is None:
            return
        self.next_offset += 1
        self.fresh.append((offset, read))
        self.bytes += len(read.message.body)

    def next(self, now: int) -> tuple[int, Read] | None:
        """Return the next to hand out, or None: there is none, or the books are full.

        What waited for a time comes behind what was stored before that time.
        """
        if self.again:
            offset = heapq.heappop(self.again)
            return offset, self.kept.pop(offset)
        fresh, waiting, progress = self.fresh, self.waiting, self.progress
        while True:
            head = fresh[0] if fresh else None
            if head is not None and (head[0] >= progress.ceiling or head[0] - progress.low >= WINDOW):
                head = None
            if waiting and waiting[0][0] <= now and (head is None or head[1].stored_at >= waiting[0][0]):
                offset = heapq.heappop(waiting)[1]
                return offset, self.kept.pop(offset)
            if head is None:
                return None
            offset, read = fresh.popleft()
            self.bytes -= len(read.message.body)
            if progress.is_settled(offset):
                continue
            due = max(read.message.not_before or 0, progress.due(offset))
            if due <= read.stored_at:
                return offset, read
            self.kept[offset] = read
            heapq.heappush(waiting, (due, offset))

    @property
    def weight(self) -> int:
        """How much room the fresh ones take: one each, and one for every 4 KiB."""
        return len(self.fresh) + (self.bytes >> 12)

    def wants_ceiling(self) -> bool:
        """Whether more could be handed out if it were written down that it may be."""
        return bool(self.fresh) and self.fresh[0][0] >= self.progress.ceiling and self.has_window

    @property
    def has_window(self) -> bool:
        """Whether the metadata can hold what is settled above the first unsettled one."""
        return not self.fresh or self.fresh[0][0] - self.progress.low < WINDOW

    def in_the_way(self) -> list[tuple[int, int]]:
        """Return (due, offset) of what waits for a time in the older half of the window."""
        return [(due, offset) for due, offset in self.waiting if offset < self.progress.low + WINDOW // 2]

    def moved(self, offsets: Collection[int]) -> None:
        """What waited here waits elsewhere now."""
        self.waiting = [one for one in self.waiting if one[1] not in offsets]
        heapq.heapify(self.waiting)
        for offset in offsets:
            self.kept.pop(offset, None)
            self.progress.settle(offset)
        self.version += 1

    def settle(self, offset: int) -> bool:
        """Settle what is out; False if it was not."""
        if self.out.pop(offset, None) is None:
            return False
        self.progress.settle(offset)
        self.version += 1
        return True

    def give_back(self, offset: int, *, counted: bool, due: int) -> bool:
        """Take back what is out, to be handed out again, not before *due*; False if it was not out."""
        read = self.out.pop(offset, None)
        if read is None:
            return False
        self.kept[offset] = read
        if counted or due or self.progress.due(offset):
            self.progress.failed(offset, counted=counted, due=due)
            self.version += 1
        if due:
            heapq.heappush(self.waiting, (due, offset))
        else:
            heapq.heappush(self.again, offset)
        return True


class Lane:
    """One lane that is ours under *epoch*."""

    __slots__ = ("epoch", "feeds", "name", "paused", "revoking", "turn")

    def __init__(self, name: str, epoch: int, feeds: tuple[Feed, Feed]) -> None:
        self.name = name
        self.epoch = epoch
        self.feeds = feeds
        self.paused = False
        self.revoking = False
        self.turn = 0

    def feed_of(self, address: Address) -> Feed:
        """Return the feed in which messages of *address* lie."""
        return self.feeds[0] if self.feeds[0].address == address else self.feeds[1]

    def next(self, now: int) -> Delivery | None:
        """Hand one out, the topic and the inbox channel in turn."""
        for _ in (0, 1):
            feed = self.feeds[self.turn]
            self.turn ^= 1
            found = feed.next(now) if feed.fresh or feed.again or feed.waiting else None
            if found is not None:
                offset, read = found
                feed.out[offset] = read
                progress = feed.progress
                if offset >= progress.high:
                    progress.high = offset + 1
                plain = not progress.marks and not progress.crashes
                return Delivery(
                    read.message,
                    self.name,
                    self.epoch,
                    offset,
                    1 if plain else progress.attempt(offset),
                    not plain and progress.suspect(offset),
                    read.foreign,
                    read.stored_at,
                )
        return None

    def entries(self, *, open_: bool, slack: int, whole: bool = False) -> Iterator[tuple[Feed, int, Entry]]:
        """Yield what is to be committed of each feed whose books have changed, or of both, with their version."""
        for feed in self.feeds:
            if whole or not open_ or feed.version != feed.saved or feed.wants_ceiling():
                offset, metadata = feed.progress.saved(self.epoch, open_=open_, slack=slack)
                yield feed, feed.version, Entry(self.name, feed.log, feed.partition, offset, metadata)
