"""What the adapters of all models need on their side of the link: a bell, the outstanding receive, and tasks."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Coroutine, Sequence
from datetime import timedelta
from math import inf
from typing import Any, TypeVar

from tidewire.errors import TidewireError, TransportUnavailable
from tidewire.model import Delivery, LaneEvent
from tidewire.testing.simulation.models.links import resolve

__all__ = ["Arrivals", "Bell", "Crew", "Intake"]


T = TypeVar("T")
_AGAIN = 0.05
"""Seconds until a fetch without an answer is tried again."""
_PATIENCE = 2.0
"""Seconds for which that may go on before the caller hears of it."""


class Bell:
    """News for somebody who may not be listening yet: what rang since *heard* ends a wait at once."""

    def __init__(self) -> None:
        self.rings = 0
        self._futures: dict[asyncio.Future[None], None] = {}

    def ring(self) -> None:
        """Wake whoever waits, and whoever was about to."""
        self.rings += 1
        for future in list(self._futures):
            resolve(future)

    async def wait(self, heard: int, longest: float) -> None:
        """Wait until it has rung more than *heard* times, or for *longest* seconds."""
        if self.rings != heard or longest <= 0:
            return
        loop = asyncio.get_running_loop()
        future: asyncio.Future[None] = loop.create_future()
        self._futures[future] = None
        timer = loop.call_later(longest, resolve, future)
        try:
            await future
        finally:
            timer.cancel()
            del self._futures[future]

    async def until(self, met: Callable[[], bool], end: float) -> None:
        """Wait until *met* is true, asking after each ring, or until the loop's time is *end*."""
        loop = asyncio.get_running_loop()
        while not met() and (rest := end - loop.time()) > 0:
            await self.wait(self.rings, rest)


class Arrivals(Bell):
    """Rings, and *bell* with it, when there is something new; *more*: there may be something that was not fetched."""

    def __init__(self, bell: Bell) -> None:
        super().__init__()
        self.more = True
        self._bell = bell

    def ring(self) -> None:
        """Wake whoever waits for *bell*."""
        self.more = True
        self._bell.ring()


class Crew:
    """Tasks that live as long as a client; `close` cancels them and waits for their end."""

    def __init__(self) -> None:
        self._tasks: list[asyncio.Task[Any]] = []

    def add(self, work: Coroutine[Any, Any, T]) -> asyncio.Task[T]:
        """Run *work* beside the client."""
        self._tasks = [task for task in self._tasks if not task.done() or _defect(task) is not None]
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.append(task)
        return task

    async def close(self) -> None:
        """End all tasks. What one of them raised and is no trouble of a broker is a defect, and rises."""
        tasks, self._tasks = self._tasks, []
        for task in tasks:
            task.cancel()
        if tasks:
            await asyncio.wait(tasks)
        for task in tasks:
            if (error := _defect(task)) is not None:
                raise error


def _defect(task: asyncio.Task[Any]) -> BaseException | None:
    error = None if task.cancelled() else task.exception()
    return None if isinstance(error, TidewireError) else error


class Intake:
    """The outstanding receive of one member.

    *fetch* asks the server for up to so many deliveries; it runs as a task of its own, so that cancelling a receive
    loses nothing: what it brings is kept for the next one. *due* says in how many seconds to ask again though no
    bell has rung; None if only news matter. A fetch that has no answer is tried again for a while.
    *mine* says whether what was fetched is still to be handed out: its lane may be lost since.
    """

    def __init__(
        self,
        crew: Crew,
        fetch: Callable[[int], Coroutine[Any, Any, Sequence[Delivery]]],
        *,
        due: Callable[[], float | None] = lambda: None,
        mine: Callable[[Delivery], bool] = lambda delivery: True,
    ) -> None:
        self.bell = Bell()
        self.events: list[LaneEvent] = []
        self.kept: deque[Delivery] = deque()
        self._crew = crew
        self._fetch = fetch
        self._due = due
        self._mine = mine
        self._running: asyncio.Task[Sequence[Delivery]] | None = None
        self._failing_since = inf

    def tell(self, event: LaneEvent) -> None:
        """Let the caller hear of a lane."""
        self.events.append(event)
        self.bell.ring()

    async def take(self, limit: int, wait: timedelta, *, check: Callable[[], None]) -> list[Delivery | LaneEvent]:
        """Return lane events and up to *limit* deliveries, as soon as there is one; empty only after *wait*.

        *check* is called after each wait and may raise. What `fetch` raised rises here.
        """
        check()
        loop = asyncio.get_running_loop()
        end = loop.time() + wait.total_seconds()
        while True:
            check()
            heard, answered = self.bell.rings, True
            if (self.kept or limit <= 0) and (found := self._ready(limit)):
                return found
            if limit > 0:
                if self._running is None:
                    self._running = self._crew.add(self._fetch(limit))
                running = self._running
                await asyncio.wait({running})
                if self._running is running:
                    self._running = None
                    answered = self._brought(running, loop.time())
                check()
                if found := self._ready(limit):
                    return found
            rest = end - loop.time()
            if rest <= 0:
                return []
            due = None if limit <= 0 else self._due() if answered else _AGAIN
            await self.bell.wait(heard, rest if due is None else min(rest, max(due, 0.001)))

    def _brought(self, fetched: asyncio.Task[Sequence[Delivery]], now: float) -> bool:
        """Keep what was fetched; False if there was no answer, which is told to the caller when it goes on so."""
        try:
            self.kept += [one for one in fetched.result() if self._mine(one)]
        except TransportUnavailable:
            self._failing_since = min(self._failing_since, now)
            if now - self._failing_since > _PATIENCE:
                raise
            return False
        self._failing_since = inf
        return True

    async def top_up(self, limit: int) -> None:
        """Fetch beside what is kept, if that is less than *limit*: what comes back again and again must not starve
        what waits."""
        if 0 < len(self.kept) < limit:
            await asyncio.wait({self._crew.add(self._fetch(limit - len(self.kept)))})

    def put_back(self, delivery: Delivery, place: Callable[[Delivery], int]) -> None:
        """Keep a delivery that came back, at its place among those of its lane, and these before all others."""
        mine = sorted([*self.drop(delivery.lane), delivery], key=place)
        self.kept.extendleft(reversed(mine))

    def drop(self, lane: str) -> list[Delivery]:
        """Take back what is kept of a lane."""
        gone = [one for one in self.kept if one.lane == lane]
        self.kept = deque(one for one in self.kept if one.lane != lane)
        return gone

    def _ready(self, limit: int) -> list[Delivery | LaneEvent]:
        found: list[Delivery | LaneEvent] = list(self.events)
        self.events.clear()
        found += [self.kept.popleft() for _ in range(min(limit, len(self.kept)))]
        return found
