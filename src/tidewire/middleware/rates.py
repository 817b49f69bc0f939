"""So many calls in so much time: a token bucket on the event loop's clock."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable
from contextlib import AbstractContextManager
from datetime import timedelta
from typing import Protocol, TypeVar
from weakref import WeakKeyDictionary

from tidewire.errors import ConfigurationError
from tidewire.model import ZERO

__all__ = ["RateLimit", "rate_limit"]


class Waits(Protocol):
    """What is needed of a context."""

    def waiting(self) -> AbstractContextManager[None]:
        """Stop the clock of the handler's timeout."""
        ...


E = TypeVar("E")
C = TypeVar("C", bound=Waits)
R = TypeVar("R")


def rate_limit(rate: float, *, per: timedelta = timedelta(seconds=1), burst: int = 1) -> RateLimit:
    """Return a middleware that lets *rate* calls begin *per* so much time, evenly; the others wait, first come first.

    After a quiet time up to *burst* calls begin at once: in any span of time t at most ``burst + rate * t / per``
    begin. The limit is that of this object in this process. Waiting costs no attempt, and the clock of the handler's
    timeout stands still meanwhile; the event keeps its key and one of its service's ``concurrency`` places.

    Raises:
        ConfigurationError: rate or per is not above zero, or burst is below 1.
    """
    if not 0 < rate < float("inf") or per <= ZERO or burst < 1:
        raise ConfigurationError(
            f"rate_limit: {rate} per {per} with a burst of {burst} cannot be",
            hint="rate > 0, per > 0 and burst ≥ 1; rate_limit(1, per=timedelta(minutes=5)) is one in five minutes",
        )
    return RateLimit(per.total_seconds() / rate, burst)


class RateLimit:
    """See `rate_limit`. *interval* is in seconds."""

    __slots__ = ("_buckets", "_burst", "_interval")

    def __init__(self, interval: float, burst: int) -> None:
        self._interval = interval
        self._burst = burst
        self._buckets: WeakKeyDictionary[asyncio.AbstractEventLoop, Bucket] = WeakKeyDictionary()

    def __repr__(self) -> str:
        return f"rate_limit(one in {self._interval:g} s, burst={self._burst})"

    @property
    def waiting(self) -> int:
        """How many calls wait for their turn now."""
        return sum(bucket.waiting for bucket in list(self._buckets.values()))

    def __call__(self, handle: Callable[[E, C], Awaitable[R]]) -> Callable[[E, C], Awaitable[R]]:
        async def limited(event: E, context: C) -> R:
            bucket = self._here()
            if not bucket.take():
                with context.waiting():
                    await bucket.turn()
            return await handle(event, context)

        return limited

    def _here(self) -> Bucket:
        """The bucket of the running loop: clocks and futures of two loops do not mix."""
        loop = asyncio.get_running_loop()
        bucket = self._buckets.get(loop)
        if bucket is None:
            bucket = self._buckets[loop] = Bucket(self._interval, (self._burst - 1) * self._interval)
        return bucket


class Bucket:
    """The token bucket as one number: *full_at* is when it will be full again (the GCRA's arrival time).

    Who waits is a future in a queue, as many as there are handlers waiting; the first token that comes is the first
    one's. A call that is cancelled while it waits leaves the queue, or gives its token back.
    """

    __slots__ = ("_full_at", "_interval", "_queue", "_slack", "_timer")

    def __init__(self, interval: float, slack: float) -> None:
        self._interval = interval
        self._slack = slack
        self._full_at = float("-inf")
        self._queue: deque[asyncio.Future[None]] = deque()
        self._timer: asyncio.TimerHandle | None = None

    @property
    def waiting(self) -> int:
        """How many are in the queue."""
        return sum(not turn.done() for turn in self._queue)

    def take(self) -> bool:
        """Take a token if there is one and nobody has waited longer."""
        return not self._queue and self._take()

    async def turn(self) -> None:
        """Wait for a token and take it. Cancel-safe."""
        loop = asyncio.get_running_loop()
        turn: asyncio.Future[None] = loop.create_future()
        self._queue.append(turn)
        self._serve()
        try:
            await turn
        except asyncio.CancelledError:
            if not turn.cancelled():  # its turn came in the moment in which it was cancelled
                self._full_at -= self._interval
            elif turn in self._queue:
                self._queue.remove(turn)
            self._serve()
            raise

    def _take(self) -> bool:
        now = asyncio.get_running_loop().time()
        if now < self._full_at - self._slack:
            return False
        self._full_at = max(self._full_at, now) + self._interval
        return True

    def _serve(self) -> None:
        """Give out the tokens there are, and come back when there is another."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        queue = self._queue
        while queue and (queue[0].done() or self._take()):
            turn = queue.popleft()
            if not turn.done():
                turn.set_result(None)
        if queue:
            self._timer = asyncio.get_running_loop().call_at(self._full_at - self._slack, self._serve)
