"""Processes that a command starts, keeps and ends: what ``run --workers``, ``dev`` and ``demo`` share.

Each is started afresh (never forked), in a session of its own: a Ctrl-C in the terminal reaches the parent alone,
which then tells them once. Its standard input is a pipe that the parent holds open; when the parent dies, however
it dies, the pipe ends and the process drains.
"""

from __future__ import annotations

import asyncio
import os
import signal
import threading
from asyncio.subprocess import Process
from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from datetime import timedelta

from tidewire.clock import SystemClock

__all__ = ["Pack", "Patience", "Restarts", "follow_parent", "signal_process"]

_LONGEST_DELAY = timedelta(seconds=30)
_SETTLED = timedelta(seconds=30)


@dataclass(frozen=True)
class Patience:
    """How long a parent waits: for a drain, then before it kills, and before the first restart of a process."""

    grace: timedelta
    kill_after: timedelta = timedelta(seconds=5)
    restart_after: timedelta = timedelta(milliseconds=500)

    @property
    def longest(self) -> timedelta:
        """How long a process that was told to end may stay."""
        return self.grace + self.kill_after


class Pack:
    """The processes of one parent. *on_kill* hears of each that had to be killed. Used on one event loop."""

    def __init__(self, patience: Patience, on_kill: Callable[[Process], None]) -> None:
        self.patience = patience
        self.stopping = asyncio.Event()
        self._on_kill = on_kill
        self._running: dict[Process, int] = {}
        self._nets: dict[Process, asyncio.TimerHandle] = {}

    async def start(
        self,
        command: Sequence[str],
        *,
        said: bytes = b"",
        stdout: int | None = None,
        stderr: int | None = None,
        pass_fds: Collection[int] = (),
        environment: Mapping[str, str] | None = None,
    ) -> Process:
        """Start *command* with *said* on its standard input, which then stays open; at most a pipe's fill of it.

        *environment* is added to our own.
        """
        # Pipes of our own rather than asyncio's: with those, `Process.wait` of Python 3.11 lasts until whoever has
        # inherited their other ends is gone too.
        reading, writing = os.pipe()
        with ExitStack() as undo:
            undo.callback(os.close, writing)
            try:
                process = await asyncio.create_subprocess_exec(
                    *command, stdin=reading, stdout=stdout, stderr=stderr, pass_fds=pass_fds, start_new_session=True,
                    env={**os.environ, **(environment or {})},
                )  # fmt: skip
            finally:
                os.close(reading)
            undo.pop_all()
        self._running[process] = writing
        with suppress(BrokenPipeError):  # it has ended already, as whoever waits for it will hear
            os.write(writing, said)
        if self.stopping.is_set():  # a signal that came while the process was being made has not reached it
            self.end(process)
        return process

    async def wait(self, process: Process) -> int:
        """Wait until *process* has ended and return its code. Cut short, it kills the process."""
        try:
            return await process.wait()
        finally:
            signal_process(process, signal.SIGKILL)
            os.close(self._running.pop(process))
            net = self._nets.pop(process, None)
            if net is not None:
                net.cancel()

    def end(self, process: Process) -> None:
        """Tell *process* to drain; the first time, set the net that catches a deaf one."""
        signal_process(process, signal.SIGTERM)
        if process not in self._nets:
            loop = asyncio.get_running_loop()
            self._nets[process] = loop.call_later(self.patience.longest.total_seconds(), self._kill, process)

    def stop(self) -> None:
        """`end` every process, and let none begin."""
        self.stopping.set()
        for process in tuple(self._running):
            self.end(process)

    def close(self) -> None:
        """Leave nobody behind."""
        for process in tuple(self._running):
            self._kill(process)

    def _kill(self, process: Process) -> None:
        if process.returncode is None:
            self._on_kill(process)
            signal_process(process, signal.SIGKILL)


class Restarts:
    """When a process that keeps ending is started again: after a delay that doubles, up to 30 s."""

    def __init__(self, patience: Patience) -> None:
        self._first = patience.restart_after
        self._clock = SystemClock()
        self._started = 0
        self.quick = 0

    def started(self) -> None:
        """Note a start."""
        self._started = self._clock.ticks()

    def ended(self) -> bool:
        """Note an end; return whether the process had lived for so long that its troubles begin anew."""
        settled = timedelta(microseconds=(self._clock.ticks() - self._started) // 1_000) >= _SETTLED
        self.quick = 1 if settled else self.quick + 1
        return settled

    def delay(self) -> timedelta:
        """Return how long to wait now."""
        doubled: int = 1 << min(self.quick - 1, 10)
        return min(self._first * doubled, _LONGEST_DELAY)


def signal_process(process: Process, number: int) -> None:
    """Send a signal, if the process is still there."""
    if process.returncode is None:
        try:
            process.send_signal(number)
        except ProcessLookupError:
            return


def follow_parent(longest: timedelta) -> None:
    """Drain when the parent that holds our standard input is gone, and end after *longest* whatever happens."""

    def wait() -> None:
        while os.read(0, 4_096):  # until the pipe ends
            continue
        os.kill(os.getpid(), signal.SIGTERM)
        threading.Event().wait(longest.total_seconds())
        os.kill(os.getpid(), signal.SIGKILL)

    threading.Thread(target=wait, name="parent", daemon=True).start()
