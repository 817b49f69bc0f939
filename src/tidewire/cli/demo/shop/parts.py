"""What the services share: their tables are created at start, and the world outside sometimes fails."""

from __future__ import annotations

import zlib
from datetime import timedelta

from tidewire import Retry

__all__ = ["PATIENT", "outside_fails"]

PATIENT = Retry(attempts=8, first_delay=timedelta(milliseconds=40), factor=2.0, max_delay=timedelta(seconds=1))


class OutsideFailed(Exception):
    """A service that we do not own did not answer."""


def outside_fails(what: str, order_id: str, attempt: int, *, one_in: int = 25) -> None:
    """Fail the first two attempts of one order in *one_in*, always the same ones.

    Raises:
        OutsideFailed: this is one of them.
    """
    if attempt <= 2 and zlib.crc32(f"{what}:{order_id}".encode()) % one_in == 0:
        raise OutsideFailed(f"{what} did not answer")
