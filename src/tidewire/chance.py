"""Chance: the one source of ids and of jitter, injected like the clock so that a seed replays a run."""

from __future__ import annotations

import os
import random
import time
from datetime import timedelta
from typing import Protocol

__all__ = ["Ids", "Jitter", "RandomJitter", "UUID7Ids"]


class Ids(Protocol):
    """Makes event ids and member names."""

    def event_id(self) -> str:
        """Return a new, globally unique id; ids of one process sort in the order they were made."""
        ...


class Jitter(Protocol):
    """Spreads waiting times, so that what failed together does not come back together."""

    def between(self, low: timedelta, high: timedelta) -> timedelta:
        """Return a duration from *low* to *high*, both included; *low* where *high* is not above it."""
        ...


class UUID7Ids:
    """UUIDv7 (RFC 9562 §5.7, method 1 of §6.2): 48-bit milliseconds, 12-bit sequence, 62 random bits.

    Monotonic inside a process: where the clock stands still or runs backwards, or the sequence of a
    millisecond is used up, the millisecond part moves on by itself. Seeded from the system once per process.
    """

    def __init__(self, chance: random.Random | None = None) -> None:
        self._given = chance is not None
        self._chance = chance or _seeded()
        self._process = os.getpid()
        self._last_ms = 0
        self._sequence = 0
        self._beginning = ""

    def event_id(self) -> str:
        """Return a UUIDv7 in its 36-character form."""
        if not self._given and os.getpid() != self._process:  # a forked child must not repeat its parent
            self._chance, self._process = _seeded(), os.getpid()
        ms = time.time_ns() // 1_000_000
        if ms > self._last_ms or self._sequence == 0xFFF:
            self._last_ms = max(ms, self._last_ms + 1)
            self._sequence = 0
            text = f"{self._last_ms:012x}"
            self._beginning = f"{text[:8]}-{text[8:]}-7"  # the ids of a millisecond share it
        else:
            self._sequence += 1
        tail = f"{0x8000_0000_0000_0000 | self._chance.getrandbits(62):x}"
        return f"{self._beginning}{self._sequence:03x}-{tail[:4]}-{tail[4:]}"


class RandomJitter:
    """Uniform jitter from a `random.Random`."""

    def __init__(self, chance: random.Random | None = None) -> None:
        self._chance = chance or random.SystemRandom()

    def between(self, low: timedelta, high: timedelta) -> timedelta:
        """Return a uniformly drawn duration from *low* to *high*."""
        return low if high <= low else low + (high - low) * self._chance.random()


def _seeded() -> random.Random:
    return random.Random(random.SystemRandom().getrandbits(256))  # noqa: S311 - ids are unique, not secret
