"""The event loop of a simulation: one seed decides the time, the order of steps and where a process dies.

Nothing here is real: time jumps to the next timer, threads run one at a time when the loop says so, and any attempt to
reach a socket is refused. A process that is killed is *buried*: none of its callbacks runs again, nothing of it is
cancelled or closed, no ``finally`` runs, and all of it stays referenced, so that no destructor runs either.
"""

from __future__ import annotations

import asyncio
import contextvars
import heapq
import random
from collections import deque
from collections.abc import Callable, Coroutine
from concurrent.futures import Executor
from itertools import count
from typing import Any, Literal, TypeVar

from tidewire.testing.simulation.strands import Strand

__all__ = ["Deadlock", "Interleaving", "Process", "SimLoop", "current_process"]

T = TypeVar("T")
Interleaving = Literal["shuffled", "ordered", "favoured"]
_PROCESS: contextvars.ContextVar[Process | None] = contextvars.ContextVar("tidewire-process", default=None)
_RESOLUTION = 1e-6


def current_process() -> Process | None:
    """Return the simulated process that runs now; None in the driver of the simulation."""
    return _PROCESS.get()


class Deadlock(RuntimeError):
    """Nothing is ready and no timer is set: every task of the simulation waits for ever."""


class Process:
    """One life of a simulated operating-system process; a restart makes a new one.

    *on_kill* is called once, at the moment it is killed: what the operating system does then (files are closed, locks
    dropped) is done there. *on_pause* hears True when it stops and False when it goes on; *on_end* that it has ended
    by itself, *error* being what it ended with. With a *fuse* of n it dies at its n-th step from now on.
    """

    def __init__(self, loop: SimLoop, name: str, *, number: int = 0) -> None:
        self.loop = loop
        self.name = name
        self.number = number
        self.dead = False
        self.paused = False
        self.ended = False
        self.fuse = 0
        self.error: BaseException | None = None
        self.on_kill: list[Callable[[], None]] = []
        self.on_pause: list[Callable[[bool], None]] = []
        self.on_end: list[Callable[[], None]] = []
        self.stash: list[asyncio.Handle] = []
        self.tasks: list[asyncio.Task[Any]] = []
        self.main: asyncio.Task[None] | None = None
        self._context = contextvars.copy_context()
        self._context.run(_PROCESS.set, self)

    def start(self, main: Coroutine[Any, Any, None]) -> None:
        """Begin to run *main*; when it returns or raises, the life has *ended* by itself."""
        self.main = self._context.run(self.loop.spawn, self._live(main))

    @property
    def alive(self) -> bool:
        """Whether it runs, or stands still for a while."""
        return not self.dead and not self.ended

    def kill(self) -> None:
        """Die as ``kill -9`` would have it: nothing is cancelled, nothing is closed, no ``finally`` runs."""
        if self.dead:
            return
        self.dead = True
        self.loop.graves.append(self)
        for act in self.on_kill:
            act()

    def pause(self) -> None:
        """Stand still, as after SIGSTOP: time goes on, what is due meanwhile happens when it goes on."""
        if self.alive and not self.paused:
            self.paused = True
            for act in self.on_pause:
                act(True)

    def resume(self) -> None:
        """Go on, as after SIGCONT; the dead do not."""
        if not self.paused or self.dead:
            return
        self.paused = False
        stash, self.stash = self.stash, []
        self.loop.requeue(stash)
        for act in self.on_pause:
            act(False)

    async def _live(self, main: Coroutine[Any, Any, None]) -> None:
        try:
            await main
        except Exception as error:
            self.error = error
        self.ended = True
        for act in self.on_end:
            act()


class _Task(asyncio.Task[Any]):
    """A task whose hash does not depend on where it lies in memory: sets of tasks have the same order every time."""

    numbers = count()

    def __init__(self, *args: Any, **options: Any) -> None:
        self._number = next(_Task.numbers)
        super().__init__(*args, **options)

    def __hash__(self) -> int:
        return self._number


class _Line:
    """The work that waits for one executor of one process: done one by one, in order, on a strand of its own."""

    def __init__(self, loop: SimLoop, executor: Executor | None) -> None:
        self.executor = executor  # its id must not be another's
        self.jobs: deque[tuple[asyncio.Future[Any], Callable[[], Any]]] = deque()
        self._loop = loop
        self._strand: Strand | None = None
        self._idle = True

    def add(self, future: asyncio.Future[Any], job: Callable[[], Any]) -> None:
        """Take a job in."""
        self.jobs.append((future, job))
        if self._strand is None:
            self._strand = Strand(self._loop, self._serve)
        elif self._idle:
            self._strand.wake()

    def _serve(self) -> None:
        strand, loop = self._strand, self._loop
        assert strand is not None, "a strand is there before its first step"
        while True:
            while self.jobs:
                self._idle = False
                future, job = self.jobs.popleft()
                strand.park(loop.latency(0.01))
                try:
                    result, error = job(), None
                except Exception as raised:
                    result, error = None, raised
                loop.call_soon(_deliver, future, result, error)
            self._idle = True
            strand.park(None)


def _deliver(future: asyncio.Future[Any], result: object, error: Exception | None) -> None:
    if future.done():
        return
    if error is not None:
        future.set_exception(error)
    else:
        future.set_result(result)


class SimLoop(asyncio.BaseEventLoop):
    """An event loop on which everything that chance decides is decided by *chance*.

    *interleaving*: ``shuffled`` draws the order of the tasks that are ready, ``ordered`` keeps it, ``favoured`` gives
    each process a rank that changes now and then (rare orders come up that a shuffle seldom finds). Every step of a
    process is a *point* at which it can die: `crash_at` names one, `crash_every` draws them at about this distance.
    """

    def __init__(self, chance: random.Random, *, interleaving: Interleaving = "shuffled") -> None:
        self.now = 0.0
        self.chance = chance
        self.graves: list[Any] = []
        self.points = 0
        self.steps = 0
        self.crash_at = 0
        self.crash_every = 0.0
        self.on_crash: Callable[[Process], None] = Process.kill
        self._interleaving: Interleaving = interleaving
        self._next_crash = 0
        self._lines: dict[tuple[int, int], _Line] = {}
        self._ranks: dict[int, float] = {}
        _Task.numbers = count()
        super().__init__()
        itself: Any = self
        itself._clock_resolution = _RESOLUTION
        self._queue: deque[asyncio.Handle] = itself._ready
        self._timers: list[Any] = itself._scheduled
        self.set_task_factory(_make_task)

    # --- what asyncio asks ------------------------------------------------------------------------------------

    def time(self) -> float:
        """Return the virtual time in seconds; it begins at 0."""
        return self.now

    def run_in_executor(  # type: ignore[override]  # the stub's own signature has no name for its variables
        self, executor: Executor | None, func: Callable[..., T], *args: Any
    ) -> asyncio.Future[T]:
        """Do the work on a strand, a drawn moment later, after what was given to this executor before."""
        future: asyncio.Future[T] = self.create_future()
        name = (id(_PROCESS.get()), id(executor))
        line = self._lines.get(name)
        if line is None:
            line = self._lines[name] = _Line(self, executor)
        line.add(future, lambda: func(*args))
        return future

    def _write_to_self(self) -> None:
        """Nobody else is there to be woken."""

    # --- what a simulation asks -------------------------------------------------------------------------------

    def spawn(self, work: Coroutine[Any, Any, T]) -> asyncio.Task[T]:
        """Run *work* as a task of the process that asks."""
        return self.create_task(work)

    def crash_around(self, every: float) -> None:
        """Let processes die at points drawn about *every* points apart from now on; 0 for never again."""
        self.crash_every = every
        self._draw_crash()

    def latency(self, mean: float) -> float:
        """Draw how long something takes that takes *mean* seconds: mostly next to nothing, now and then longer."""
        return 0.0 if self.chance.random() < 0.9 else self.chance.expovariate(1.0 / mean) if mean > 0 else 0.0

    def requeue(self, handles: list[asyncio.Handle]) -> None:
        """Make ready what a paused process has missed."""
        self._queue.extend(handles)

    # --- steps ------------------------------------------------------------------------------------------------

    def _run_once(self) -> None:
        self._take_due()
        queue = self._queue
        if len(queue) > 1 and self._interleaving != "ordered":
            self._reorder()
        for _ in range(len(queue)):
            handle: Any = queue.popleft()
            if handle._cancelled:
                continue
            process: Process | None = handle._context.get(_PROCESS)
            if process is not None and not self._lives(process, handle):
                continue
            self.steps += 1
            handle._run()

    def _lives(self, process: Process, handle: Any) -> bool:
        """Whether a step of *process* may be taken; here is where it dies, and where the dead are buried."""
        if not process.dead and not process.paused:
            if process.ended:
                return True
            self.points += 1
            burnt = process.fuse == 1
            process.fuse -= process.fuse > 0
            if self.points != self.crash_at and self.points != self._next_crash and not burnt:
                return True
            if self.points == self._next_crash:
                self._draw_crash()
            self.on_crash(process)
        if process.dead:
            self.graves.append((handle, handle._callback, handle._args))
        elif process.paused:
            process.stash.append(handle)
        else:
            return True
        return False

    def _draw_crash(self) -> None:
        every = self.crash_every
        self._next_crash = self.points + 1 + int(self.chance.expovariate(1.0 / every)) if every > 0 else 0

    def _take_due(self) -> None:
        """Move the clock if nothing is ready, and make ready what is due."""
        timers = self._timers
        while timers and timers[0]._cancelled:
            heapq.heappop(timers)._scheduled = False
        if not self._queue:
            itself: Any = self
            if not timers:
                if itself._stopping:
                    return
                raise Deadlock("nothing is scheduled: every task waits for ever")
            if not itself._stopping:
                self.now = max(self.now, timers[0]._when)
        until = self.now + _RESOLUTION
        while timers and timers[0]._when <= until:
            handle = heapq.heappop(timers)
            handle._scheduled = False
            if not handle._cancelled:
                # Or who waits for the rest of a time would find some left, again and again at the same moment.
                self.now = max(self.now, handle._when)
                self._queue.append(handle)

    def _timer_handle_cancelled(self, handle: asyncio.TimerHandle) -> None:
        """Cancelled timers are dropped when their time comes; nothing to count."""

    def _reorder(self) -> None:
        """Permute the steps of tasks that are ready; other callbacks keep their places."""
        queue = self._queue
        ready = list(queue)
        places = [index for index, handle in enumerate(ready) if _is_step(handle)]
        if len(places) < 2:
            return
        steps = [ready[index] for index in places]
        if self._interleaving == "favoured":
            steps.sort(key=self._rank_of)
        else:
            self.chance.shuffle(steps)
        for index, handle in zip(places, steps, strict=True):
            queue[index] = handle

    def _rank_of(self, handle: Any) -> float:
        process = handle._context.get(_PROCESS)
        number = -1 if process is None else process.number
        if number not in self._ranks or self.chance.random() < 0.002:
            self._ranks[number] = self.chance.random()
        return self._ranks[number]


def _make_task(loop: asyncio.AbstractEventLoop, coro: Any, **options: Any) -> asyncio.Task[Any]:
    task = _Task(coro, loop=loop, **options)
    process = _PROCESS.get()
    if process is not None:
        tasks = process.tasks
        tasks.append(task)  # a strong reference: a task of the dead must not be collected
        if len(tasks) & 0x3FF == 0:
            process.tasks = [one for one in tasks if not one.done()]
    return task


def _is_step(handle: Any) -> bool:
    return isinstance(getattr(handle._callback, "__self__", None), asyncio.Task)
