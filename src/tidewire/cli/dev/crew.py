"""The processes of ``tidewire dev``, one for each service: started, watched, started again, and ended together."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from asyncio.subprocess import Process
from collections.abc import Callable, Iterable
from contextlib import suppress
from datetime import timedelta
from typing import Any

import msgspec

from tidewire.cli.dev.found import Found, Job
from tidewire.cli.dev.log import DEV, Log
from tidewire.cli.exits import FAILED, OK, USAGE
from tidewire.cli.processes import Pack, Patience, Restarts
from tidewire.config import Settings
from tidewire.kit.waits import happens

__all__ = ["Crew", "Member"]

_LINE_MAX = 1 << 20
_LAST_WORDS = 1.0


class Member:
    """One service, over as many processes as it takes.

    *files* is what its process has loaded, *stale* what of that has changed since.
    """

    def __init__(self, found: Found, settings: Settings) -> None:
        self.found = found
        self.settings = settings
        self.files: set[str] = set()
        self.process: Process | None = None
        self.asked = asyncio.Event()
        self.leaving = False
        self.stale: set[str] = set()

    @property
    def name(self) -> str:
        """The service's name."""
        return self.found.name


class Crew:
    """All members. With *reload* one that cannot start waits for a change; without, it ends the whole."""

    def __init__(self, log: Log, patience: Patience, *, reload: bool) -> None:
        self.code = OK
        self.members: dict[str, Member] = {}
        self._log = log
        self._reload = reload
        self._pack = Pack(patience, self._on_kill)
        self._names: dict[Process, str] = {}

    @property
    def stopping(self) -> asyncio.Event:
        """Set once all are to end."""
        return self._pack.stopping

    def stop(self) -> None:
        """Tell every process to drain; the second time they stop at once."""
        if not self.stopping.is_set():
            self._log.line(DEV, "stopping", text="stopping: services drain; a second signal stops them at once")
        self._pack.stop()
        for member in self.members.values():
            member.asked.set()

    def close(self) -> None:
        """Leave nobody behind."""
        self._pack.close()

    def restart(self, names: Iterable[str]) -> None:
        """Let each of these drain and begin anew; one that waits for its back-off begins at once."""
        for name in names:
            member = self.members[name]
            member.stale = set()
            member.asked.set()
            if member.process is not None:
                self._pack.end(member.process)

    def dismiss(self, name: str) -> None:
        """Let one drain and not come back."""
        member = self.members.pop(name)
        member.leaving = True
        member.asked.set()
        if member.process is not None:
            self._pack.end(member.process)

    async def keep(self, member: Member) -> None:
        """Run the process of *member* until all are stopped, or it alone is dismissed."""
        restarts = Restarts(self._pack.patience)
        while not (self.stopping.is_set() or member.leaving):
            member.asked.clear()
            restarts.started()
            code = await self._run_once(member)
            if self.stopping.is_set() or member.leaving:
                self.code = self.code or (OK if code in (OK, -signal.SIGTERM) else FAILED)
                return
            if member.asked.is_set():
                restarts.quick = 0
                continue
            restarts.ended()
            if code == USAGE and not self._reload:
                self.code = USAGE
                self.stop()
                return
            await self._pause(member, None if code == USAGE else restarts.delay(), code)

    async def _pause(self, member: Member, delay: timedelta | None, code: int) -> None:
        """Wait for the back-off or, without one, for a change; a change, or the end of all, cuts it short."""
        after = "waits for a change" if delay is None else f"is started again in {delay.total_seconds():g} s"
        again = None if delay is None else delay.total_seconds()
        how = f"killed by signal {-code}" if code < 0 else f"ended with exit code {code}"
        self._log.line(member.name, "ended", level="error", text=f"{how}; {after}", code=code, again_in_s=again)
        await happens(member.asked, again)

    async def _run_once(self, member: Member) -> int:
        takes = (self._output(member), self._output(member), self._report(member))
        pipes = [_Lines(take) for take in takes]
        stdout, stderr, report = [await pipe.open() for pipe in pipes]
        job = Job(target=member.found.target, settings=msgspec.to_builtins(member.settings), report=report)
        try:
            process = await self._pack.start(
                [sys.executable, "-u", "-m", "tidewire.cli.dev.worker"],
                said=msgspec.json.encode(job) + b"\n",
                stdout=stdout,
                stderr=stderr,
                pass_fds=(report,),
            )
        finally:
            for end in (stdout, stderr, report):
                os.close(end)
        member.process, self._names[process] = process, member.name
        if member.asked.is_set():  # while it was being made
            self._pack.end(process)
        try:
            code = await self._pack.wait(process)
            # Somebody may have inherited the other ends, so their end is not waited for without a limit.
            with suppress(TimeoutError):
                async with asyncio.timeout(_LAST_WORDS):
                    for pipe in pipes:
                        await pipe.ended.wait()
            return code
        finally:
            member.process = None
            del self._names[process]
            for pipe in pipes:
                pipe.close()

    def _output(self, member: Member) -> Callable[[bytes], None]:
        return lambda line: self._log.output(member.name, line)

    def _report(self, member: Member) -> Callable[[bytes], None]:
        def take(line: bytes) -> None:
            try:
                told: dict[str, Any] = msgspec.json.decode(line)
            except msgspec.DecodeError:
                return  # the last line of a process that was killed in the middle of it
            if told["what"] == "files":
                member.files = set(told["files"])
            elif told["what"] == "failed":
                self._log.problem(member.name, told["message"], hint=told["hint"])
            else:
                self._log.report(member.name, told)

        return take

    def _on_kill(self, process: Process) -> None:
        text = "did not stop within its grace, and was killed"
        self._log.line(self._names[process], "killed", level="error", text=text)


class _Lines(asyncio.Protocol):
    """The reading end of a pipe; *take* gets each line."""

    def __init__(self, take: Callable[[bytes], None]) -> None:
        self.ended = asyncio.Event()
        self._take = take
        self._rest = b""
        self._transport: asyncio.ReadTransport | None = None

    async def open(self) -> int:
        """Begin to read, and return the end to write to, which the caller closes."""
        reading, writing = os.pipe()
        loop = asyncio.get_running_loop()
        self._transport, _ = await loop.connect_read_pipe(lambda: self, os.fdopen(reading, "rb", 0))
        return writing

    def close(self) -> None:
        """Read no more."""
        if self._transport is not None:
            self._transport.close()

    def data_received(self, data: bytes) -> None:
        """Take what has come; a line without an end is handed on in pieces."""
        *lines, self._rest = (self._rest + data).split(b"\n")
        if len(self._rest) > _LINE_MAX:
            lines, self._rest = [*lines, self._rest], b""
        for line in lines:
            self._take(line)

    def connection_lost(self, exc: Exception | None) -> None:
        """Take the rest."""
        if self._rest:
            self._take(self._rest)
        self.ended.set()
