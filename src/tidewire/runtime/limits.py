"""The bounds of one consumer."""

from __future__ import annotations

from datetime import timedelta

import msgspec

__all__ = ["Limits"]


class Limits(msgspec.Struct, frozen=True, kw_only=True):
    """The bounds of one consumer. *max_hold* is how long a failing key may wait in the process; with *fencing*,
    units guard the epochs of their lanes; without *lanes*, what is received may be of a key that another member holds.
    """

    concurrency: int = 64
    max_hold: timedelta = timedelta(minutes=10)
    grace: timedelta = timedelta(seconds=10)
    fencing: bool = True
    lanes: bool = True
