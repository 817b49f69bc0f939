"""Threads of simulated processes: real ones, of which one at a time runs, and only while the loop waits for it.

A strand takes over when the loop says so and gives back when it ends or has to wait; what it waits for is an event, a
lock or virtual time. So work on a thread is as repeatable as the rest, and a strand of the dead never goes on.
"""

from __future__ import annotations

import contextvars
import threading
from collections.abc import Callable
from typing import Any, Protocol

__all__ = ["Blocked", "Strand", "Threading"]


class Clockwork(Protocol):
    """What a strand needs of the loop."""

    def call_soon(self, callback: Callable[..., object], *args: Any, context: contextvars.Context | None = None) -> Any:
        """See `asyncio.AbstractEventLoop`."""
        ...

    def call_later(
        self, delay: float, callback: Callable[..., object], *args: Any, context: contextvars.Context | None = None
    ) -> Any:
        """See `asyncio.AbstractEventLoop`."""
        ...


class Blocked(BaseException):
    """Raised where the loop itself would have to wait for another simulated process; it is to try again later."""


class _Here(threading.local):
    strand: Strand | None = None


_here = _Here()


class Strand:
    """One thread. *work* begins at the first step, which the loop takes soon."""

    def __init__(self, loop: Clockwork, work: Callable[[], None]) -> None:
        self.done = False
        self._loop = loop
        self._work = work
        self._turn = 0
        self._go = threading.Lock()
        self._back = threading.Lock()
        self._go.acquire()
        self._back.acquire()
        self._inside = contextvars.copy_context()
        self._outside = contextvars.copy_context()
        threading.Thread(target=self._live, daemon=True).start()
        self.wake()

    def wake(self) -> None:
        """Let it go on soon; nothing if it waits for something later by then."""
        self._loop.call_soon(self._step, self._turn, context=self._outside)

    def park(self, seconds: float | None) -> None:
        """On the strand: wait until `wake`, or for *seconds* of virtual time."""
        self._turn += 1
        if seconds is not None:
            self._loop.call_later(max(seconds, 1e-6), self._step, self._turn, context=self._outside)
        self._back.release()
        self._go.acquire()

    def _step(self, turn: int) -> None:
        if turn == self._turn and not self.done:
            self._turn += 1
            self._go.release()
            self._back.acquire()

    def _live(self) -> None:
        self._go.acquire()
        _here.strand = self
        try:
            self._inside.run(self._work)
        finally:
            self.done = True
            self._back.release()


class Threading:
    """What the product uses of the module ``threading``, for strands of *loop*."""

    def __init__(self, loop: Clockwork) -> None:
        self._loop = loop
        self.get_ident = threading.get_ident

    def Event(self) -> _Event:
        """Return an event."""
        return _Event()

    def Lock(self) -> _Lock:
        """Return a lock."""
        return _Lock()

    def Thread(self, *, target: Callable[[], None], name: str = "", daemon: bool = False) -> _Thread:
        """Return a thread that has not started."""
        return _Thread(self._loop, target)


class _Event:
    def __init__(self) -> None:
        self._flag = False
        self._waiting: list[Strand] = []

    def is_set(self) -> bool:
        return self._flag

    def set(self) -> None:
        self._flag = True
        for strand in self._waiting:
            strand.wake()

    def clear(self) -> None:
        self._flag = False

    def wait(self, timeout: float | None = None) -> bool:
        if not self._flag:
            strand = _own_strand()
            self._waiting.append(strand)
            strand.park(timeout)
            self._waiting.remove(strand)
        return self._flag


class _Lock:
    def __init__(self) -> None:
        self._held = False
        self._waiting: list[Strand] = []

    def acquire(self, blocking: bool = True, timeout: float = -1) -> bool:
        if self._held and blocking and timeout != 0:
            strand = _own_strand()
            self._waiting.append(strand)
            strand.park(timeout if timeout > 0 else None)
            while self._held and timeout < 0:
                strand.park(None)
            self._waiting.remove(strand)
        if self._held:
            return False
        self._held = True
        return True

    def locked(self) -> bool:
        return self._held

    def release(self) -> None:
        if not self._held:
            raise RuntimeError("release unlocked lock")
        self._held = False
        if self._waiting:
            self._waiting[0].wake()

    def __enter__(self) -> bool:
        return self.acquire()

    def __exit__(self, *raised: object) -> None:
        self.release()


class _Thread:
    def __init__(self, loop: Clockwork, target: Callable[[], None]) -> None:
        self._loop = loop
        self._target = target
        self._strand: Strand | None = None

    def start(self) -> None:
        self._strand = Strand(self._loop, self._target)

    def is_alive(self) -> bool:
        return self._strand is not None and not self._strand.done

    def join(self, timeout: float | None = None) -> None:
        strand = _own_strand()
        while self.is_alive():
            strand.park(0.001)


def _own_strand() -> Strand:
    strand = _here.strand
    if strand is None:
        raise Blocked
    return strand
