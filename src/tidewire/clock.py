"""Time: the one file that reads a clock.

Wall time stamps what people read; boot-clock ticks judge leases; waiting uses the event loop.
"""

from __future__ import annotations

import time
from datetime import UTC, datetime

__all__ = ["SystemClock", "microseconds", "moment"]

_TICKS = getattr(time, "CLOCK_BOOTTIME", time.CLOCK_MONOTONIC)
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


class SystemClock:
    """The machine's clocks."""

    def now(self) -> datetime:
        """Return the wall time, aware, in UTC. For stamps people read; it may jump."""
        return datetime.now(UTC)

    def now_us(self) -> int:
        """Return the wall time as integer microseconds since 1970, the form in which due times are stored."""
        return time.time_ns() // 1_000

    def ticks(self) -> int:
        """Return nanoseconds since boot, suspension included where the system counts it. Never jumps."""
        return time.clock_gettime_ns(_TICKS)


def microseconds(when: datetime) -> int:
    """Return an aware *when* as integer microseconds since 1970 (floats differ in the last bit).

    Raises:
        ValueError: *when* has no time zone.
    """
    if when.tzinfo is None:
        raise ValueError(f"a time without a time zone is ambiguous: {when!r}")
    delta = when - _EPOCH
    return (delta.days * 86_400 + delta.seconds) * 1_000_000 + delta.microseconds


def moment(us: int) -> datetime:
    """Return integer microseconds since 1970 as an aware UTC datetime; the inverse of `microseconds`."""
    return datetime.fromtimestamp(us // 1_000_000, UTC).replace(microsecond=us % 1_000_000)
