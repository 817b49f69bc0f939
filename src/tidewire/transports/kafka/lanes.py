"""A lane as its owner has it: a partition of a topic and that of the inbox channel, in memory and on the event loop."""

from __future__ import annotations

import heapq
from collections import deque
from collections.abc import Collection, Iterable, Iterator, Sequence
from itertools import islice

import msgspec

from tidewire.model import Address, Delivery
from tidewire.transports.kafka.member import Entry
from tidewire.transports.kafka.progress import WINDOW, Progress

__all__ = ["Feed", "Lane", "offset_of"]


class Feed:
    """What was fetched of one partition and is not settled: fresh, given back (*again*), waiting for a time, or out.

    All of it is kept as it came; how often it was tried is added as it is handed out.
    """

    __slots__ = (
        *("address", "again", "asked", "bytes", "fresh", "kept", "log", "next_offset", "out", "partition", "paused"),
        *("progress", "saved", "version", "waiting"),
    )

    def __init__(self, log: str, partition: int, *, address: Address, progress: Progress) -> None:
        self.log = log
        self.partition = partition
        self.address = address
        self.progress = progress
        self.fresh: deque[Delivery] = deque()
        self.bytes = 0
        self.again: list[int] = []
        self.waiting: list[tuple[int, int]] = []
        self.kept: dict[int, Delivery] = {}
        self.out: dict[int, Delivery] = {}
        self.next_offset = progress.low
        self.paused = False
        self.asked = False  # a commit that raises the ceiling is under way
        self.version = 0  # grows with every change of the books
        self.saved = 0  # the version that is committed

    def arrived(self, records: Sequence[Delivery]) -> None:
        """Take in records, in order; what lies between one and the one before does not exist."""
        if not records:
            return
        start = self.next_offset
        end = start + len(records)
        if offset_of(records[0]) == start and offset_of(records[-1]) == end - 1:
            self.next_offset = end
        else:  # some are missing, or were read before
            records = [one for one in records if offset_of(one) >= start]
            for one in records:
                self.begins_at(offset_of(one))
                self.next_offset = offset_of(one) + 1
        self.fresh.extend(records)
        self.bytes += sum([len(one.message.body) for one in records])

    def begins_at(self, offset: int) -> None:
        """There is nothing more below *offset*."""
        if offset > self.next_offset:
            self.progress.skip(self.next_offset, offset)
            self.version += 1
            self.next_offset = offset

    def take(self, most: int, now: int) -> list[Delivery]:
        """Hand out up to *most*, fewer where the books are full. What waited for a time comes behind what was stored
        before that time."""
        taken: list[Delivery] = []
        while len(taken) < most:
            if not (self.again or self.waiting):
                self._take_plain(taken, most)
            if len(taken) == most or (found := self._next(now)) is None:
                break
            offset, delivery = found
            self.out[offset] = delivery
            self.progress.high = max(self.progress.high, offset + 1)
            taken.append(self._told(offset, delivery))
        return taken

    def _take_plain(self, taken: list[Delivery], most: int) -> None:
        """Hand out what is at the front, up to the first that needs a closer look: nearly always all of it."""
        progress, out = self.progress, self.out
        if progress.marks or progress.crashes:
            return
        low, settled = progress.low, progress.settled
        end = min(progress.ceiling, low + WINDOW)
        before, size, offset = len(taken), 0, -1
        for delivery in islice(self.fresh, most - before):
            place, message = delivery.position, delivery.message
            assert isinstance(place, int), "positions in a partition are offsets"
            if not low <= place < end or place in settled or message.not_before is not None:
                break
            offset = place
            out[offset] = delivery
            size += len(message.body)
            taken.append(delivery)
        for _ in range(len(taken) - before):
            self.fresh.popleft()
        self.bytes -= size
        progress.high = max(progress.high, offset + 1)

    def _next(self, now: int) -> tuple[int, Delivery] | None:
        """Return the next to hand out, or None: there is none, or the books are full."""
        if self.again:
            offset = heapq.heappop(self.again)
            return offset, self.kept.pop(offset)
        fresh, waiting, progress = self.fresh, self.waiting, self.progress
        while True:
            head = fresh[0] if fresh else None
            if head is not None and not self._open(offset_of(head)):
                head = None
            if waiting and waiting[0][0] <= now and (head is None or _stored_at(head) >= waiting[0][0]):
                offset = heapq.heappop(waiting)[1]
                return offset, self.kept.pop(offset)
            if head is None:
                return None
            fresh.popleft()
            self.bytes -= len(head.message.body)
            offset = offset_of(head)
            if progress.is_settled(offset):
                continue
            due = max(head.message.not_before or 0, progress.due(offset))
            if due <= _stored_at(head):
                return offset, head
            self.kept[offset] = head
            heapq.heappush(self.waiting, (due, offset))

    def _open(self, offset: int) -> bool:
        """Whether *offset* may be handed out, as far as the books have room for it."""
        return offset < self.progress.ceiling and offset - self.progress.low < WINDOW

    def _told(self, offset: int, delivery: Delivery) -> Delivery:
        """Return a delivery with what the books say of earlier ones."""
        progress = self.progress
        if not progress.marks and not progress.crashes:
            return delivery
        return msgspec.structs.replace(delivery, attempt=progress.attempt(offset), suspect=progress.suspect(offset))

    @property
    def weight(self) -> int:
        """How much room the fresh ones take: one each, and one for every 4 KiB."""
        return len(self.fresh) + (self.bytes >> 12)

    def wants_ceiling(self) -> bool:
        """Whether more could be handed out if it were written down that it may be."""
        return bool(self.fresh) and offset_of(self.fresh[0]) >= self.progress.ceiling and self.has_window

    @property
    def has_window(self) -> bool:
        """Whether the metadata can hold what is settled above the first unsettled one."""
        return not self.fresh or offset_of(self.fresh[0]) - self.progress.low < WINDOW

    def in_the_way(self) -> list[tuple[int, int]]:
        """Return (due, offset) of what waits for a time in the older half of the window."""
        return [(due, offset) for due, offset in self.waiting if offset < self.progress.low + WINDOW // 2]

    def moved(self, offsets: Collection[int]) -> None:
        """What waited here waits elsewhere now."""
        self.waiting = [one for one in self.waiting if one[1] not in offsets]
        heapq.heapify(self.waiting)
        for offset in offsets:
            self.kept.pop(offset, None)
        self.progress.settle(offsets)
        self.version += 1

    def settle(self, offsets: Iterable[int]) -> int:
        """Settle what is out of *offsets*, and return how many that were."""
        out = self.out
        found = [offset for offset in offsets if out.pop(offset, None) is not None]
        if found:
            self.progress.settle(found)
            self.version += 1
        return len(found)

    def give_back(self, offset: int, *, counted: bool, due: int) -> bool:
        """Take back what is out, to be handed out again, not before *due*; False if it was not out."""
        delivery = self.out.pop(offset, None)
        if delivery is None:
            return False
        self.kept[offset] = delivery
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

    def take(self, most: int, now: int) -> list[Delivery]:
        """Hand out up to *most*: half of the topic and half of the inbox channel, where both have so much."""
        first, second = self.feeds[self.turn], self.feeds[self.turn ^ 1]
        self.turn ^= 1
        taken = first.take((most + 1) // 2, now)
        taken += second.take(most - len(taken), now)
        taken += first.take(most - len(taken), now)
        return taken

    def settle(self, deliveries: Sequence[Delivery]) -> int:
        """Settle what is out of *deliveries* under our epoch, and return how many that were."""
        first, second = self.feeds
        topic = [offset_of(one) for one in deliveries if one.message.to == first.address]
        if len(topic) == len(deliveries):
            return first.settle(topic)
        inbox = [offset_of(one) for one in deliveries if one.message.to != first.address]
        return first.settle(topic) + second.settle(inbox)

    def entries(self, *, open_: bool, slack: int, whole: bool = False) -> Iterator[tuple[Feed, int, Entry]]:
        """Yield what is to be committed of each feed whose books have changed, or of both, with their version."""
        for feed in self.feeds:
            if whole or not open_ or feed.version != feed.saved or feed.wants_ceiling():
                offset, metadata = feed.progress.saved(self.epoch, open_=open_, slack=slack)
                yield feed, feed.version, Entry(self.name, feed.log, feed.partition, offset, metadata)


def offset_of(delivery: Delivery) -> int:
    """Return the offset of what was handed out."""
    assert isinstance(delivery.position, int), "positions in a partition are offsets"
    return delivery.position


def _stored_at(delivery: Delivery) -> int:
    assert delivery.stored_at is not None, "this broker says when it stored something"
    return delivery.stored_at
