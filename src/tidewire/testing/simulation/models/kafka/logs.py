"""Partitioned logs, as the broker keeps them."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable, Sequence
from datetime import timedelta

import msgspec

from tidewire.model import Message
from tidewire.testing.simulation.models.intake import Bell
from tidewire.testing.simulation.models.links import Refusal

__all__ = ["Draft", "Partition", "Record", "Topic"]

_MARKER_EVERY = 7
"""After so many batches a partition has an offset without a record, as markers of transactions take them."""


class Draft(msgspec.Struct, frozen=True):
    """What a producer sends: *message* is None for a tombstone of *key*; *attempt* is a header of the adapter's."""

    message: Message | None
    key: str = ""
    attempt: int = 1


class Record(msgspec.Struct, frozen=True):
    """What lies in a partition. *stamp* is unique in the broker and grows."""

    offset: int
    stamp: int
    draft: Draft


class Partition:
    """One log: records in order, their offsets with gaps; the oldest ones may be deleted."""

    def __init__(self) -> None:
        self.records: list[Record] = []
        self.start = self.end = 0
        self.trimmed_stamp = 0
        self.sequences: dict[int, int] = {}  # of idempotent producers: the number of the last batch
        self.bells: dict[Bell, None] = {}
        self._batches = 0

    def append(self, drafts: Sequence[Draft], stamp: Callable[[], int]) -> None:
        """Store a batch, and let those hear of it whose fetch waits."""
        for draft in drafts:
            self.records.append(Record(self.end, stamp(), draft))
            self.end += 1
        self._batches += 1
        if self._batches % _MARKER_EVERY == 0:
            self.end += 1
        bells, self.bells = self.bells, {}
        for bell in bells:
            bell.ring()

    def read(self, offset: int, limit: int) -> list[Record]:
        """Return up to *limit* records from *offset* on.

        Raises:
            Refusal: ``OFFSET_OUT_OF_RANGE``, they were deleted.
        """
        if offset < self.start:
            raise Refusal("OFFSET_OUT_OF_RANGE", f"{offset} is below {self.start}")
        place = bisect_left(self.records, offset, key=_offset)
        return self.records[place : place + limit]

    def delete_before(self, offset: int) -> None:
        """Delete what lies before *offset*."""
        place = bisect_left(self.records, offset, key=_offset)
        if place:
            self.trimmed_stamp = self.records[place - 1].stamp
            del self.records[:place]
        self.start = max(self.start, min(offset, self.end))


class Topic:
    """A topic: partitions, and settings that the broker keeps and the adapter reads.

    *start* is where the group begins whose inbox this is.
    """

    def __init__(
        self, partitions: int, *, retention: timedelta | None = None, cap: int | None = None, start: str = ""
    ) -> None:
        self.partitions = [Partition() for _ in range(partitions)]
        self.retention = retention
        self.cap = cap
        self.start = start


def _offset(record: Record) -> int:
    return record.offset
