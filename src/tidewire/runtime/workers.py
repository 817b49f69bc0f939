"""The tasks that run handlers: long-lived, as many as have something to do, each one event at a time."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Callable, Coroutine, Sequence
from functools import partial
from typing import Any, Protocol

from tidewire.model import Handled, Unavailable
from tidewire.rules.lanes import Schedule
from tidewire.runtime.isolated import isolated
from tidewire.runtime.work import Ran, Work

__all__ = ["Workers", "taken_in"]

_SLICE, _SOON = 0.004, 0.0005
_LOST = Ran(Handled())


class Decider(Protocol):
    """What the workers ask and tell the consumer."""

    def halted(self) -> bool:
        """Whether nothing may start now."""
        ...

    def special(self, work: Work) -> bool:
        """Whether *work* needs `prepare` before it may run."""
        ...

    async def prepare(self, work: Work) -> bool:
        """Deal with a special work; True if it is to be run now."""
        ...

    def handled(self, work: Work, ran: Ran, seconds: float) -> None:
        """The handlers ended well after *seconds*."""
        ...

    async def not_handled(self, work: Work, ran: Ran) -> None:
        """They did not."""
        ...

    def down(self, error: BaseException) -> None:
        """Something that everybody needs is down."""
        ...


class Worker:
    """One task, and what the timer needs to know of it."""

    __slots__ = ("task", "until", "wake", "work")

    def __init__(self) -> None:
        self.task: asyncio.Task[None] | None = None
        self.wake: asyncio.Future[None] | None = None
        self.work: Work | None = None
        self.until = 0.0


class Gathering:
    """A batch that waits for more of its kind; *full* is resolved when it need not wait any longer."""

    __slots__ = ("full", "most", "works")

    def __init__(self, first: Work, most: int, full: asyncio.Future[None]) -> None:
        self.works = [first]
        self.most = most
        self.full = full

    def add(self, work: Work) -> None:
        """Take one more in; the last one that fits ends the wait."""
        self.works.append(work)
        if len(self.works) >= self.most:
            self.hurry()

    def hurry(self) -> None:
        """Wait no longer."""
        if not self.full.done():
            self.full.set_result(None)


class Workers:
    """At most *concurrency* workers over one schedule.

    A worker that has to wait wakes the next, so that handlers which never wait all run in one task, and those
    which do overlap; not while *saturated*, when all they could do is queue. One timer serves all time-outs.
    """

    def __init__(
        self,
        schedule: Schedule[Work],
        decider: Decider,
        *,
        process: Callable[[Work], Coroutine[Any, Any, Ran]],
        process_batch: Callable[[Sequence[Work]], Coroutine[Any, Any, Ran | None]],
        concurrency: int,
        saturated: Callable[[], bool] | None,
    ) -> None:
        self._schedule = schedule
        self._decider = decider
        self._process = process
        self._process_batch = process_batch
        self._gatherings: dict[tuple[str, str], Gathering] = {}
        self._concurrency = concurrency
        self._saturated = saturated
        self._loop = asyncio.get_running_loop()
        self._all: list[Worker] = []
        self._idle: list[Worker] = []
        self._timer: asyncio.TimerHandle | None = None
        self._expires = math.inf
        self._later: asyncio.TimerHandle | None = None
        self._waking = False
        self._tasks: asyncio.TaskGroup | None = None

    def start(self, tasks: asyncio.TaskGroup) -> None:
        """Own tasks in *tasks* from now on; they are made when there is something to do."""
        self._tasks = tasks

    def end(self) -> None:
        """Own no tasks any more: timers that are still set wake nobody, and who has outlived its cancellation ends."""
        self._tasks = None
        for timer in (self._timer, self._later):
            if timer is not None:
                timer.cancel()
        for worker in self._all:
            if worker.work is not None:
                worker.work.cut_off = True
            elif worker.wake is not None and not worker.wake.done():
                worker.wake.set_result(None)

    def cancel(self) -> None:
        """Cancel every worker: what it runs is cut off and stays unsettled."""
        if self._timer is not None:
            self._timer.cancel()
        for worker in self._all:
            if worker.task is not None:
                worker.task.cancel()

    def wake(self) -> None:
        """Let one more worker look for work if there is any; while *saturated*, a little later."""
        if self._waking or not (self._idle or self._may_grow):  # whoever is busy looks for more by itself
            return
        if not self._schedule.has_ready or self._decider.halted():
            return
        if self._saturated is not None and self._saturated():
            self._wake_soon()
            return
        while self._idle:
            wake = self._idle.pop().wake
            if wake is not None and not wake.done():
                wake.set_result(None)
                self._waking = True
                return
        if self._may_grow and self._tasks is not None:
            worker = Worker()
            self._all.append(worker)
            worker.task = taken_in(self._tasks, self._work(worker))

    @property
    def _may_grow(self) -> bool:
        return len(self._all) < self._concurrency

    def _wake_soon(self) -> None:
        if self._later is None:
            self._later = self._loop.call_later(_SOON, self._wake_later)

    def _wake_later(self) -> None:
        self._later = None
        self.wake()

    def hurry(self) -> None:
        """Let batches that wait for more begin with what they have."""
        for gathering in self._gatherings.values():
            gathering.hurry()

    def wake_all(self) -> None:
        """Let every idle worker look for work."""
        for _ in range(len(self._idle) + 1):
            self.wake()

    async def _work(self, worker: Worker) -> None:
        """Until cancelled: take what is ready, run it, pass on what came of it.

        A handler may catch its cancellation and go on to its end; then this ends by itself.
        """
        clock, decider, schedule, saturated = self._loop.time, self._decider, self._schedule, self._saturated
        now = clock()
        yield_at = now + _SLICE
        while self._tasks is not None:
            crowded = saturated is not None and saturated()  # to go on is to stand in line behind those who do already
            work = None if crowded or decider.halted() else schedule.take()
            if work is None:
                if crowded:
                    self._wake_soon()
                worker.wake = self._loop.create_future()
                self._idle.append(worker)
                await worker.wake
                self._waking = False
                now = clock()
                yield_at = now + _SLICE
                continue
            if now > yield_at:  # handlers that never wait must not starve intake, commits and settles
                await asyncio.sleep(0)
                now = clock()
                yield_at = now + _SLICE
            if decider.special(work):
                wanted = await decider.prepare(work)
                now = clock()  # what the store took for that is not the handler's time
                if not wanted:
                    continue
            route = work.route
            if route is not None and route.batch > 1 and not work.single and not work.alone:
                works = await self._gather(work)
                if len(works) != 1 or works[0].gone:
                    await self._work_batch(worker, works)
                    now = clock()
                    continue
                work, now = works[0], clock()  # nobody came along: its failure is its own, and counts
            started = now
            self._begin(worker, work, started)
            ran = await isolated(self._process(work), self.wake)
            self._end(worker, work)
            schedule.conclude(work)
            now = clock()
            if type(ran.outcome) is Handled:
                decider.handled(work, ran, now - started)
            else:
                await decider.not_handled(work, ran)
                now = clock()

    def _begin(self, worker: Worker, work: Work, now: float) -> None:
        """Start the clock of a handler that is about to run."""
        worker.work = work
        worker.until = now + (work.route.seconds_max if work.route is not None else 0.0)
        if worker.until < self._expires:
            self._arm(worker.until)

    def _end(self, worker: Worker, work: Work) -> None:
        """Stop it. If the time-out came and the handler went on all the same, to its end, what it did counts."""
        worker.work = work.context = None
        if work.timed_out:
            work.timed_out = False
            if worker.task is not None:
                worker.task.uncancel()

    # --- batches ------------------------------------------------------------------------------------------------

    async def _work_batch(self, worker: Worker, works: Sequence[Work]) -> None:
        """Run what came together, which may be nothing; one by one if that fails."""
        for work in works:
            if work.gone:  # its lane was lost while it waited; others may have come since that lane is ours again
                self._schedule.conclude(work)
                self._decider.handled(work, _LOST, 0.0)
        works = [work for work in works if not work.gone]
        if not works:
            return
        started = self._loop.time()
        lead = works[0]
        self._begin(worker, lead, started)
        ran = await isolated(self._process_batch(works), self.wake)
        self._end(worker, lead)
        if ran is not None and isinstance(ran.outcome, Unavailable):
            self._again(works)
            self._decider.down(ran.outcome.error)
        elif ran is None and not lead.gone:
            for work in works:
                work.single = True
            self._again(works)
        else:
            for work in works:
                self._schedule.conclude(work)
                self._decider.handled(work, ran or _LOST, self._loop.time() - started)

    def _again(self, works: Sequence[Work]) -> None:
        for work in reversed(works):
            self._schedule.conclude(work)
            self._schedule.back(work)
        self.wake_all()

    async def _gather(self, first: Work) -> list[Work]:
        """Return *first* and others of its type and lane, none of which needs special treatment; empty if another
        worker is gathering and has taken it along."""
        route, lane = first.route, first.delivery.lane
        assert route is not None
        kind = (route.type, lane)
        other = self._gatherings.get(kind)
        if other is not None and len(other.works) < other.most:
            other.add(first)
            return []
        gathering = Gathering(first, route.batch, self._loop.create_future())
        like = partial(_like, route.type, lane)
        for work in self._schedule.take_like(like, route.batch - 1):
            gathering.add(work)
        if route.batch_seconds > 0 and not gathering.full.done() and not self._decider.halted():
            self._gatherings[kind] = gathering
            self.wake()
            try:
                async with asyncio.timeout(route.batch_seconds):
                    await gathering.full
            except TimeoutError:
                pass
            finally:
                if self._gatherings.get(kind) is gathering:
                    del self._gatherings[kind]
        return [
            work
            for work in gathering.works
            if work is first or not self._decider.special(work) or await self._decider.prepare(work)
        ]

    def _arm(self, when: float) -> None:
        if self._timer is not None:
            self._timer.cancel()
        self._expires = when
        self._timer = self._loop.call_at(when, self._expire)

    def _expire(self) -> None:
        """Cancel the workers whose handlers ran out of time, and arm the timer for the next that may."""
        now = self._loop.time()
        self._timer, self._expires = None, math.inf
        later: list[float] = []
        for worker in self._all:
            work = worker.work
            if work is None:
                continue
            until = worker.until + (work.context.excused(now) if work.context is not None else 0.0)
            if until > now:
                later.append(until)
            elif work.cancellable and worker.task is not None:
                work.cancellable = False
                work.timed_out = True
                worker.task.cancel()
        if later:
            self._arm(min(later))


def taken_in(tasks: asyncio.TaskGroup, work: Coroutine[Any, Any, None]) -> asyncio.Task[None] | None:
    """Run *work* as a task of *tasks*; None if they are shutting down: with the first that fails, all end."""
    try:
        return tasks.create_task(work)
    except RuntimeError:
        work.close()
        return None


def _like(type_: str, lane: str, work: Work) -> bool:
    return work.route is not None and work.route.type == type_ and work.delivery.lane == lane and not work.single
