"""``tidewire run --workers N``: a parent that keeps N processes of one service running, and stops them well."""

from __future__ import annotations

import asyncio
import logging
import signal
from asyncio.subprocess import Process
from collections.abc import Sequence
from datetime import timedelta

from tidewire.cli.exits import FAILED, OK, UNAVAILABLE, USAGE
from tidewire.cli.processes import Pack, Patience, Restarts
from tidewire.kit.waits import happens

__all__ = ["supervise"]

_logger = logging.getLogger("tidewire.workers")

_QUICK_CRASHES_MAX = 5


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


class _Crew:
    """The workers of one parent and what has been asked of them."""

    def __init__(self, command: Sequence[str], patience: Patience) -> None:
        self.code = OK
        self._command = command
        self._pack = Pack(patience, self._on_kill)
        self._slots: dict[Process, int] = {}

    def stop(self) -> None:
        """Pass the wish to stop on to every worker."""
        self._pack.stop()

    def end(self) -> None:
        """Leave nobody behind."""
        self._pack.close()

    async def keep(self, slot: int) -> None:
        """Run the worker of *slot* until all are stopped."""
        restarts = Restarts(self._pack.patience)
        crashes = 0
        while not self._pack.stopping.is_set():  # until stopped
            restarts.started()
            code = await self._run_once(slot)
            if self._pack.stopping.is_set():
                # SIGTERM itself as the end: it came before or after the worker listened, so nothing was cut off.
                self.code = self.code or (OK if code in (OK, -signal.SIGTERM) else FAILED)
                return
            crashes = 0 if restarts.ended() or code == UNAVAILABLE else crashes + 1
            verdict = _verdict(code, crashes)
            _logger.error(
                "tidewire.workers.exited",
                extra={"worker": slot, "code": code, "quick": restarts.quick, "again": verdict == OK},
            )
            if verdict != OK:
                self.code = verdict
                self.stop()
                return
            await self._pause(restarts.delay())

    async def _run_once(self, slot: int) -> int:
        process = await self._pack.start(self._command)
        self._slots[process] = slot
        _logger.info("tidewire.workers.started", extra={"worker": slot, "worker_process": process.pid})
        try:
            return await self._pack.wait(process)
        finally:
            del self._slots[process]

    async def _pause(self, delay: timedelta) -> None:
        await happens(self._pack.stopping, delay.total_seconds())

    def _on_kill(self, process: Process) -> None:
        _logger.error("tidewire.workers.killed", extra={"worker": self._slots[process], "worker_process": process.pid})


def _verdict(code: int, crashes: int) -> int:
    """Return `OK` to start a worker again, or the code with which the parent gives up."""
    if code == USAGE:
        return USAGE
    if crashes >= _QUICK_CRASHES_MAX:
        return FAILED
    return OK
