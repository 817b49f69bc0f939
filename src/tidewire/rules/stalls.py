"""When a member of a group is deaf: it asks, something waits for it, and for too long nothing has come."""

from __future__ import annotations

from datetime import timedelta
from typing import Literal, TypeAlias

import msgspec

__all__ = ["Finding", "Seen", "Stalls"]

Finding: TypeAlias = Literal["hears", "quiet", "unknown", "doubtful", "deaf"]
_STRETCH_MAX = 4


class Seen(msgspec.Struct, frozen=True, kw_only=True):
    """What one look at a membership showed: the time (seconds), a *mark* that changes with all that it receives,
    whether it *asks* for more, and the *lag*: how many messages wait for it, None if the broker did not say so."""

    now: float
    mark: object
    asks: bool
    lag: int | None


class Stalls:
    """Judges looks at one membership after another; each rebuild in a row doubles the window, up to sixteen times.

    *window*: how long a member may ask in vain. *lag_min*: fewer waiting messages are no reason.
    """

    def __init__(self, window: timedelta, *, lag_min: int) -> None:
        self._window = window.total_seconds()
        self._lag_min = lag_min
        self._in_a_row = 0
        self._mark: object = None
        self._since: float | None = None
        self._well: float | None = None
        self._unanswered = 0

    @property
    def window(self) -> timedelta:
        """How long a member may ask in vain, as things are."""
        return timedelta(seconds=self._window * 2 ** min(self._in_a_row, _STRETCH_MAX))

    def begin(self, mark: object) -> None:
        """A membership begins; *mark* is what shows that it has received nothing."""
        self._mark, self._since, self._well, self._unanswered = mark, None, None, 0

    def needs_lag(self, mark: object, *, asks: bool) -> bool:
        """Whether a look needs the lag: the member asks, and nothing has come since the last look."""
        return asks and self._mark == mark

    def judge(self, seen: Seen) -> Finding:
        """Say what a look means: it *hears*, it is *quiet* since nothing waits, that is *unknown* for a while, it is
        *doubtful* whether it hears (half the window is over), or it is *deaf*: to be rebuilt."""
        moved, self._mark = seen.mark != self._mark, seen.mark
        if moved or not seen.asks:
            self._since, self._unanswered = None, 0
            if moved and self._well is None:
                self._well = seen.now
            self._forgive(seen.now)
            return "hears"
        if seen.lag is None:
            self._unanswered += 1
            return "unknown" if self._unanswered > 1 else "quiet"
        self._unanswered = 0
        if seen.lag < self._lag_min:
            self._since = None
            self._forgive(seen.now)
            return "quiet"
        self._since = seen.now if self._since is None else self._since
        silent, window = seen.now - self._since, self.window.total_seconds()
        if silent >= window:
            self._in_a_row += 1
            return "deaf"
        return "doubtful" if silent >= window / 2 else "quiet"

    def _forgive(self, now: float) -> None:
        """A membership that has heard something, and was well for a window, ends the row."""
        if self._well is not None and now - self._well >= self.window.total_seconds():
            self._in_a_row = 0
