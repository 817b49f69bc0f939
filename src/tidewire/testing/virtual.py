"""Virtual time: an event loop whose clock jumps to the next timer when nothing else can happen."""

from __future__ import annotations

import asyncio
import selectors
from collections.abc import Callable, Coroutine
from concurrent.futures import Executor
from datetime import UTC, datetime, timedelta
from typing import Any, TypeVar

from tidewire.clock import microseconds, moment

__all__ = ["VirtualClock", "VirtualTimeLoop", "run"]

T = TypeVar("T")
_START = datetime(2026, 1, 1, tzinfo=UTC)
_THREAD_WAIT = 0.05
_QUIET_IO = 0.05
_STUCK_AFTER = 5.0


class VirtualTimeLoop(asyncio.SelectorEventLoop):
    """An event loop on which an hour passes at once.

    `time` stands still while anything can happen and jumps to the next timer when nothing can: nothing is ready,
    no call of `run_in_executor` is at work, and no file descriptor has had news for 50 ms of real time (a pipe or
    a socket may be answered by somebody who is not on this clock). What waits for nothing but the end of the world
    is a deadlock: `RuntimeError` after 5 s of real time.
    """

    def __init__(self) -> None:
        self._now = 0.0
        self._at_work = 0
        self._quiet: list[asyncio.Future[None]] = []
        super().__init__(_JumpingSelector(self))

    def time(self) -> float:
        """Return the virtual time in seconds; it begins at 0."""
        return self._now

    def run_in_executor(  # type: ignore[override]  # the stub's own signature has no name for its variables
        self, executor: Executor | None, func: Callable[..., T], *args: Any
    ) -> asyncio.Future[T]:
        """As ever; while the call is at work, time stands still."""
        future = super().run_in_executor(executor, func, *args)
        self._at_work += 1
        future.add_done_callback(self._done_work)
        return future

    async def quiet(self) -> None:
        """Wait until everything that can happen at this moment has happened; time does not move meanwhile."""
        waiter = self.create_future()
        self._quiet.append(waiter)
        await waiter

    def next_timer(self) -> float | None:
        """Return the time of the next timer, or None."""
        itself: Any = self
        timers: list[asyncio.TimerHandle] = itself._scheduled
        return min((timer.when() for timer in timers if not timer.cancelled()), default=None)

    def select(self, real: selectors.BaseSelector, timeout: float | None) -> list[Any]:
        """Wait for *timeout* virtual seconds (None: for ever) or for what is ready, and return that."""
        ready = real.select(0)
        if ready or timeout == 0:
            return ready
        if self._at_work:
            return real.select(_THREAD_WAIT)
        if len(real.get_map()) > 1:  # more than the loop's own pipe: somebody outside may answer
            ready = real.select(_QUIET_IO)
            if ready:
                return ready
        if self._quiet:
            self._tell_quiet()
            return []
        if timeout is None:
            ready = real.select(_STUCK_AFTER)
            if not ready:
                raise RuntimeError("nothing can happen any more: every task waits, and no timer is set")
            return ready
        self._now += timeout
        return []

    def _done_work(self, future: Any) -> None:
        self._at_work -= 1

    def _tell_quiet(self) -> None:
        waiters, self._quiet = self._quiet, []
        for waiter in waiters:
            if not waiter.done():
                waiter.set_result(None)


class _JumpingSelector(selectors.BaseSelector):
    """The system's selector, with waiting left to the loop."""

    def __init__(self, loop: VirtualTimeLoop) -> None:
        self._loop = loop
        self._real = selectors.DefaultSelector()

    def register(self, fileobj: Any, events: int, data: Any = None) -> selectors.SelectorKey:
        return self._real.register(fileobj, events, data)

    def unregister(self, fileobj: Any) -> selectors.SelectorKey:
        return self._real.unregister(fileobj)

    def modify(self, fileobj: Any, events: int, data: Any = None) -> selectors.SelectorKey:
        return self._real.modify(fileobj, events, data)

    def select(self, timeout: float | None = None) -> list[Any]:
        return self._loop.select(self._real, None if timeout is None else max(timeout, 0.0))

    def close(self) -> None:
        self._real.close()

    def get_map(self) -> Any:
        return self._real.get_map()


class VirtualClock:
    """Tidewire's clock on a loop's time: wall time begins at *start*, ticks at 0, and both jump with the loop."""

    def __init__(self, loop: asyncio.AbstractEventLoop, start: datetime = _START) -> None:
        self._loop = loop
        self._start = microseconds(start)
        self._zero = loop.time()

    def now(self) -> datetime:
        """Return the wall time, in UTC."""
        return moment(self.now_us())

    def now_us(self) -> int:
        """Return the wall time as integer microseconds since 1970."""
        return self._start + round((self._loop.time() - self._zero) * 1e6)

    def ticks(self) -> int:
        """Return nanoseconds since the clock was made."""
        return round((self._loop.time() - self._zero) * 1e9)

    def elapsed(self) -> timedelta:
        """Return how long the clock has run."""
        return timedelta(seconds=self._loop.time() - self._zero)


def run(main: Coroutine[Any, Any, T]) -> T:
    """Run *main* on a `VirtualTimeLoop`, as `asyncio.run` does on a real one."""
    with asyncio.Runner(loop_factory=VirtualTimeLoop) as runner:
        return runner.run(main)
