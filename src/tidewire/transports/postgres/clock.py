"""The database's clock: one for all machines that share a broker."""

from __future__ import annotations

from datetime import datetime

from tidewire.clock import moment
from tidewire.protocols import Clock

__all__ = ["DatabaseClock"]


class DatabaseClock:
    """The database's time as it was last heard, carried on by this machine's ticks; never ahead of it.

    Hosts' wall clocks are not asked: what is due and whose lease has ended, all members see alike.
    """

    def __init__(self, ticks: Clock) -> None:
        self._ticks = ticks
        self._ahead = 0

    def hear(self, us: int) -> None:
        """Take the database's time, in microseconds since 1970, that came in an answer just now."""
        self._ahead = us * 1_000 - self._ticks.ticks()

    def now(self) -> datetime:
        """Return the database's time, in UTC."""
        return moment(self.now_us())

    def now_us(self) -> int:
        """Return the database's time in microseconds since 1970."""
        return self.ticks() // 1_000

    def ticks(self) -> int:
        """Return the database's time in nanoseconds since 1970."""
        return self._ticks.ticks() + self._ahead
