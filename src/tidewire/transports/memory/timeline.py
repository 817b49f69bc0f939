"""What is to happen later, and those who wait for it. No task and no thread: whoever looks first makes it happen."""

from __future__ import annotations

import asyncio
import heapq
from collections.abc import Callable
from itertools import count
from typing import TypeAlias

from tidewire.protocols import Clock

__all__ = ["Timeline", "Waiter"]

Act: TypeAlias = Callable[[], None]

REST_MIN = 0.001
"""Seconds to wait at least: the loop's clock and the injected one may disagree about the last microseconds."""


class Timeline:
    """Acts that are due at a wall time (delays) or at a tick (leases, revocations).

    An act that has become pointless must notice it by itself: nothing is ever taken off.
    """

    def __init__(self, clock: Clock) -> None:
        self.clock = clock
        self.waiters: dict[Waiter, None] = {}
        self._order = count()
        self._by_time: list[tuple[int, int, Act]] = []
        self._by_ticks: list[tuple[int, int, Act]] = []

    def at_time(self, due: int, act: Act) -> None:
        """Act when the wall time reaches *due* (microseconds since 1970)."""
        self._add(self._by_time, due, act)

    def at_ticks(self, due: int, act: Act) -> None:
        """Act when the clock's ticks reach *due*."""
        self._add(self._by_ticks, due, act)

    def _add(self, heap: list[tuple[int, int, Act]], due: int, act: Act) -> None:
        item = (due, next(self._order), act)
        heapq.heappush(heap, item)
        if heap[0] is item:
            for waiter in list(self.waiters):
                waiter.wake()  # they wait for something later, or for nothing

    def advance(self) -> None:
        """Do what is due."""
        if self._by_time:
            self._run(self._by_time, self.clock.now_us())
        if self._by_ticks:
            self._run(self._by_ticks, self.clock.ticks())

    def _run(self, heap: list[tuple[int, int, Act]], now: int) -> None:
        while heap and heap[0][0] <= now:
            heapq.heappop(heap)[2]()

    def next_in(self) -> float | None:
        """Return the seconds until something is due (not above zero: now), or None."""
        seconds: list[float] = []
        if self._by_time:
            seconds.append((self._by_time[0][0] - self.clock.now_us()) / 1e6)
        if self._by_ticks:
            seconds.append((self._by_ticks[0][0] - self.clock.ticks()) / 1e9)
        return min(seconds, default=None)


class Waiter:
    """Somebody who waits for news; any number of calls may wait at a time."""

    def __init__(self, timeline: Timeline) -> None:
        self._timeline = timeline
        self._futures: list[asyncio.Future[None]] = []

    async def wait(self, longest: float) -> None:
        """Wait until `wake`, until something on the timeline is due, or for *longest* seconds."""
        loop = asyncio.get_running_loop()
        due = self._timeline.next_in()
        future: asyncio.Future[None] = loop.create_future()
        timer = loop.call_later(longest if due is None else min(longest, max(due, REST_MIN)), _resolve, future)
        self._futures.append(future)
        self._timeline.waiters[self] = None
        try:
            await future
        finally:
            timer.cancel()
            self._futures.remove(future)
            if not self._futures:
                self._timeline.waiters.pop(self, None)

    def wake(self) -> None:
        """End every `wait` that is going on; a later one is not concerned."""
        for future in self._futures:
            _resolve(future)


def _resolve(future: asyncio.Future[None]) -> None:
    if not future.done():
        future.set_result(None)
