"""A time limit inside the handler's own one."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from datetime import timedelta
from typing import TypeVar

from tidewire.errors import ConfigurationError
from tidewire.model import ZERO

__all__ = ["Timeout", "timeout"]

E = TypeVar("E")
C = TypeVar("C")
R = TypeVar("R")


def timeout(limit: timedelta) -> Timeout:
    """Return a middleware that cancels what it wraps after *limit* and raises `TimeoutError` in its place.

    That is a failure of the handler like any other: counted, tried again. A stop of the service at the same moment
    stays a stop and counts nothing. Who catches the cancellation and ends well all the same has ended well. A
    ``def`` handler's thread cannot be stopped: it runs on, and what it then does in its transaction is refused.

    Raises:
        ConfigurationError: *limit* is not above zero.
    """
    if limit <= ZERO:
        raise ConfigurationError(f"timeout: the limit must be above zero, not {limit}")
    return Timeout(limit)


class Timeout:
    """See `timeout`. It keeps nothing, so one object may serve any number of handlers."""

    __slots__ = ("_limit",)

    def __init__(self, limit: timedelta) -> None:
        self._limit = limit

    def __repr__(self) -> str:
        return f"timeout({self._limit})"

    def __call__(self, handle: Callable[[E, C], Awaitable[R]]) -> Callable[[E, C], Awaitable[R]]:
        limit, seconds = self._limit, self._limit.total_seconds()

        async def limited(event: E, context: C) -> R:
            clock = asyncio.timeout(seconds)
            try:
                async with clock:
                    return await handle(event, context)
            except TimeoutError as error:
                if clock.expired():
                    raise TimeoutError(f"the handler ran longer than the {limit} that its middleware allows") from error
                raise

        return limited
