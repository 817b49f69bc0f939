"""One order over the partitions of a topic, for people who look: that of the publishers' clocks.

A position of a topic with one lane is an offset. With several it says the lane, and how far each lane is when this
message comes: ``2:10.4.7.0``, so that going on behind it leaves nothing out and shows nothing twice.
"""

from __future__ import annotations

import heapq
from collections.abc import Iterator, Sequence

from tidewire.errors import TransportRefused
from tidewire.transports.kafka.asking import Record

__all__ = ["before", "end_position", "in_order", "position_of", "positions_in"]

_SHOWN = "a position is what `tidewire tail --json` shows; a time is one too, such as 2h or 2026-11-24T09:00:00Z"


def in_order(records: Sequence[Sequence[Record]], starts: Sequence[int]) -> Iterator[tuple[int, Record, int | str]]:
    """Yield (partition, record, position): the partition's own order is kept, between them the earliest comes first."""
    heads = [(lane[0].read.at, partition, 0) for partition, lane in enumerate(records) if lane]
    heapq.heapify(heads)
    offsets = list(starts)
    while heads:
        _, partition, place = heapq.heappop(heads)
        lane = records[partition]
        record = lane[place]
        offsets[partition] = record.offset
        yield partition, record, position_of(partition, offsets)
        offsets[partition] = record.offset + 1
        if place + 1 < len(lane):
            heapq.heappush(heads, (lane[place + 1].read.at, partition, place + 1))


def position_of(partition: int, offsets: Sequence[int]) -> int | str:
    """Return the position of the message at *offsets* of *partition*, the others being so far."""
    return offsets[0] if len(offsets) == 1 else f"{partition}:{'.'.join(map(str, offsets))}"


def end_position(partition: int, ends: Sequence[int]) -> int | str:
    """Return the position of the last message of a topic, which lies in *partition*."""
    offsets = list(ends)
    offsets[partition] -= 1
    return position_of(partition, offsets)


def before(position: int | str) -> int | str | None:
    """Return the position behind which *position* comes first, or None: it comes first of all.

    Raises:
        TransportRefused: it is no position.
    """
    offsets = positions_in(position, max(1, str(position).count(".") + 1), behind=False)
    lane = next((lane for lane, offset in enumerate(offsets) if offset), None)
    return None if lane is None else end_position(lane, offsets)


def positions_in(position: int | str, partitions: int, *, behind: bool) -> list[int]:
    """Return the offset in each partition that *position* names; *behind*: of what comes after it.

    Raises:
        TransportRefused: it is no position of a topic with so many lanes.
    """
    text = str(position)
    own, separator, offsets = text.partition(":")
    numbers = offsets.split(".") if separator else [text]
    lane = own if separator else "0"
    if not all(number.isascii() and number.isdigit() and len(number) < 19 for number in [lane, *numbers]):
        raise TransportRefused(f"{text!r} is no position", hint=_SHOWN)
    if len(numbers) != partitions or int(lane) >= partitions:
        raise TransportRefused(f"{text!r} is no position of a topic with {partitions} lanes", hint=_SHOWN)
    found = [int(number) for number in numbers]
    found[int(lane)] += behind
    return found
