"""``tidewire run --workers N``: a parent that keeps N processes of one service running, and stops them well.

Each worker is a process of its own, started afresh (never forked), in a session of its own: a Ctrl-C in the
terminal reaches the parent alone, which then tells the workers once. A worker's standard input is a pipe that the
parent holds open; when the parent dies, however it dies, the pipe ends and the worker drains.
"""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import threading
from asyncio.subprocess import PIPE, Process
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import timedelta

from tidewire.cli.exits import FAILED, OK, UNAVAILABLE, USAGE
from tidewire.clock import SystemClock

__all__ = ["Patience", "follow_parent", "supervise"]

_logger = logging.getLogger("tidewire.workers")

_LONGEST_DELAY = timedelta(seconds=30)
_SETTLED = timedelta(seconds=30)
_QUICK_CRASHES_MAX = 5


@dataclass(frozen=True)
class Patience:
    """How long a parent waits: for a drain, then before it kills, and before the first restart of a worker."""

    grace: timedelta
    kill_after: timedelta = timedelta(seconds=5)
    restart_after: timedelta = timedelta(milliseconds=500)


async def supervise(command: Sequence[str], *, count: int, patience: Patience) -> int:
    """Keep *count* processes of *command* running until SIGTERM or SIGINT, and return the exit code.

    A worker that crashes is started again, after a delay that doubles up to 30 s while it keeps crashing. One that
    exits with `USAGE` cannot be helped by a restart, and one that crashed five times in a row within 30 s of its
    start is given up: then all are stopped and the code is `USAGE` or `FAILED`. A worker that finds its broker or
    store unavailable is tried again without end.

    The first signal is passed on as SIGTERM: workers drain. The second is passed on too: they stop at once. A
    worker that is still there after its grace and ``kill_after`` is killed; what it had not settled comes back by
    its lease. Returns `OK` if every worker ended well once it was told to, else `FAILED`.
    """
    crew = _Crew(command, patience)
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, crew.stop)
    try:
        async with asyncio.TaskGroup() as tasks:
            for slot in range(1, count + 1):
                tasks.create_task(crew.keep(slot), name=f"worker-{slot}")
    finally:
        crew.end()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.remove_signal_handler(number)
    return crew.code


def follow_parent() -> None:
    """Drain when the parent that holds our standard input is gone; for a worker started by `supervise`."""

    def wait() -> None:
        while os.read(0, 4_096):  # until the pipe ends
            continue
        os.kill(os.getpid(), signal.SIGTERM)

    threading.Thread(target=wait, name="parent", daemon=True).start()


class _Crew:
    """The workers of one parent and what has been asked of them."""

    def __init__(self, command: Sequence[str], patience: Patience) -> None:
        self.code = OK
        self._command = command
        self._patience = patience
        self._clock = SystemClock()
        self._stopping = asyncio.Event()
        self._running: dict[int, Process] = {}
        self._net: asyncio.TimerHandle | None = None

    def stop(self) -> None:
        """Pass the wish to stop on to every worker; the first time, set the net that catches a deaf one."""
        self._stopping.set()
        for process in self._running.values():
            _signal(process, signal.SIGTERM)
        if self._net is None:
            longest = (self._patience.grace + self._patience.kill_after).total_seconds()
            self._net = asyncio.get_running_loop().call_later(longest, self._kill)

    def end(self) -> None:
        """Take the net down; leave nobody behind."""
        if self._net is not None:
            self._net.cancel()
        self._kill()

    async def keep(self, slot: int) -> None:
        """Run the worker of *slot* until all are stopped."""
        quick = crashes = 0
        while not self._stopping.is_set():  # until stopped
            started = self._clock.ticks()
            code = await self._run_once(slot)
            if self._stopping.is_set():
                # SIGTERM itself as the end: it came before or after the worker listened, so nothing was cut off.
                self.code = self.code or (OK if code in (OK, -signal.SIGTERM) else FAILED)
                return
            settled = timedelta(microseconds=(self._clock.ticks() - started) // 1_000) >= _SETTLED
            quick = 1 if settled else quick + 1
            crashes = 0 if settled or code == UNAVAILABLE else crashes + 1
            verdict = _verdict(code, crashes)
            _logger.error(
                "tidewire.workers.exited", extra={"worker": slot, "code": code, "quick": quick, "again": verdict == OK}
            )
            if verdict != OK:
                self.code = verdict
                self.stop()
                return
            await self._pause(min(self._patience.restart_after * 2 ** min(quick - 1, 10), _LONGEST_DELAY))

    async def _run_once(self, slot: int) -> int:
        process = await asyncio.create_subprocess_exec(*self._command, stdin=PIPE, start_new_session=True)
        self._running[slot] = process
        _logger.info("tidewire.workers.started", extra={"worker": slot, "worker_process": process.pid})
        # A signal that came while the process was being made has not reached it.
        if self._stopping.is_set():
            _signal(process, signal.SIGTERM)
        try:
            return await process.wait()
        finally:
            _signal(process, signal.SIGKILL)
            del self._running[slot]

    async def _pause(self, delay: timedelta) -> None:
        try:
            async with asyncio.timeout(delay.total_seconds()):
                await self._stopping.wait()
        except TimeoutError:
            return

    def _kill(self) -> None:
        for slot, process in self._running.items():
            _logger.error("tidewire.workers.killed", extra={"worker": slot, "worker_process": process.pid})
            _signal(process, signal.SIGKILL)


def _verdict(code: int, crashes: int) -> int:
    """Return `OK` to start a worker again, or the code with which the parent gives up."""
    if code == USAGE:
        return USAGE
    if crashes >= _QUICK_CRASHES_MAX:
        return FAILED
    return OK


def _signal(process: Process, number: signal.Signals) -> None:
    if process.returncode is None:
        try:
            process.send_signal(number)
        except ProcessLookupError:
            return
