"""Time, ids and waiting times of simulated processes: all of them from the loop and the seed."""

from __future__ import annotations

import random
from datetime import UTC, datetime, timedelta

from tidewire.clock import microseconds, moment
from tidewire.testing.simulation.loop import SimLoop

__all__ = ["SimClock", "SimIds"]

START_US = microseconds(datetime(2026, 1, 1, tzinfo=UTC))


class SimClock:
    """A process's clocks. Wall time can be wrong, run fast or slow, and jump; ticks are the machine's and cannot."""

    def __init__(self, loop: SimLoop) -> None:
        self._loop = loop
        self.offset_us = 0
        self.booted = 0.0
        self.rate = 1.0

    def now(self) -> datetime:
        """Return the wall time, in UTC."""
        return moment(self.now_us())

    def now_us(self) -> int:
        """Return the wall time as integer microseconds since 1970."""
        return START_US + round(self._loop.now * 1e6 * self.rate) + self.offset_us

    def ticks(self) -> int:
        """Return nanoseconds since the machine was started."""
        return round((self._loop.now - self.booted) * 1e9)

    def jump(self, by: timedelta) -> None:
        """Move the wall time, forwards or backwards."""
        self.offset_us += by // timedelta(microseconds=1)


class SimIds:
    """Ids that a seed repeats. They look like UUIDs of version 7 and grow in the order they are made."""

    def __init__(self, chance: random.Random) -> None:
        self._chance = chance
        self._made = 0

    def event_id(self) -> str:
        """Return a new id."""
        self._made += 1
        text = f"{START_US // 1_000 + self._made:012x}7{self._chance.getrandbits(12):03x}"
        tail = f"{0x8000_0000_0000_0000 | self._chance.getrandbits(62):016x}"
        return f"{text[:8]}-{text[8:12]}-{text[12:16]}-{tail[:4]}-{tail[4:]}"
