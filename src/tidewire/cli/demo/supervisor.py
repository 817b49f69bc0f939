"""The demo's supervisor: starts the services, kills them if asked to, starts them again, and ends them all."""

from __future__ import annotations

import asyncio
import json
import random
import signal
import socket
import sys
from asyncio.subprocess import PIPE, Process
from collections import Counter
from collections.abc import Sequence
from datetime import timedelta

from tidewire.cli.demo.premises import Premises
from tidewire.cli.demo.shop.services import SERVICES
from tidewire.cli.exits import UNAVAILABLE
from tidewire.cli.processes import Pack, Patience, signal_process

__all__ = ["PATIENCE", "Supervisor"]

PATIENCE = Patience(timedelta(seconds=7))


class Member:
    """One service, over as many processes as it takes."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.process: Process | None = None
        self.ready = asyncio.Event()
        self.counts: Counter[str] = Counter()
        self.starts = 0
        self.kills = 0


class Supervisor:
    """Runs the shop on its *premises*; each process it starts, it ends, by its pid.

    It keeps the *listener* of the door open, so that who comes while the service is down waits and is not refused.
    """

    def __init__(self, premises: Premises, *, listener: socket.socket, plant: str = "") -> None:
        self._premises = premises
        self._listener = listener
        self._plant = plant
        self._pack = Pack(PATIENCE, lambda _: None)
        self.members = {name: Member(name) for name in SERVICES}
        self.errors: list[str] = []
        self.server_kills = 0

    @property
    def kills(self) -> int:
        """How many processes were killed on purpose."""
        return sum(member.kills for member in self.members.values())

    def total(self, kind: str) -> int:
        """How many facts of *kind* the services have told."""
        return sum(member.counts[kind] for member in self.members.values())

    async def keep(self, name: str) -> None:
        """Until stopped: keep one service running; a process that dies by itself is told in `errors`."""
        member = self.members[name]
        while not self._pack.stopping.is_set():
            process = member.process = await self._start(name)
            member.starts += 1
            killed = member.kills
            told, said = await asyncio.gather(self._listen(member, process), self._last_words(process))
            code = await self._pack.wait(process)
            member.ready.clear()
            member.process = None
            if self._pack.stopping.is_set():
                return
            if code == UNAVAILABLE:  # its server is away; another try will find it
                await asyncio.sleep(0.5)
            elif member.kills == killed:
                self.errors.append(f"{name} ended by itself with {code} after {told} lines: {said}")
                if len(self.errors) > 20:
                    return
                await asyncio.sleep(0.5)
            await asyncio.sleep(0.05)

    async def chaos(self, chance: random.Random, *, kills: int, every: float) -> None:
        """Kill services that are up, at random times about *every* seconds, until there were *kills*.

        The demo's own servers are killed too, after a third and after two thirds of them.
        """
        troubled = 0
        while self.kills < kills and not self._pack.stopping.is_set():
            await asyncio.sleep(every * chance.uniform(0.3, 1.7))
            if self.kills * 3 >= kills * (troubled + 1):
                troubled += 1
                self.server_kills += await self._premises.trouble()
            up = [member for member in self.members.values() if member.ready.is_set() and member.process]
            if up:
                self._kill(chance.choice(up))

    async def ready(self) -> None:
        """Wait until every service has come up."""
        for member in self.members.values():
            await member.ready.wait()

    async def stop(self) -> None:
        """Ask every service to drain and end; what does not in time is killed."""
        self._pack.stop()
        processes = [member.process for member in self.members.values() if member.process is not None]
        await asyncio.gather(*(process.wait() for process in processes))

    def _kill(self, member: Member) -> None:
        if member.process is not None and member.process.returncode is None:
            member.kills += 1
            member.ready.clear()
            signal_process(member.process, signal.SIGKILL)

    async def _start(self, name: str) -> Process:
        arguments: Sequence[str] = ["-m", "tidewire.cli.demo.worker", name]
        places = {"TIDEWIRE_BROKER": self._premises.broker, "TIDEWIRE_STORE": self._premises.stores[name]}
        descriptor = self._listener.fileno()
        if name == "orders":
            arguments = [*arguments, "--listen-on", str(descriptor)]
        if self._plant:
            arguments = [*arguments, "--plant", self._plant]
        listening = (descriptor,) if name == "orders" else ()
        return await self._pack.start(
            [sys.executable, *arguments], stdout=PIPE, stderr=PIPE, pass_fds=listening, environment=places
        )

    async def _listen(self, member: Member, process: Process) -> int:
        """Take in what the process tells, until it ends; return the number of lines."""
        assert process.stdout is not None
        lines = 0
        async for line in process.stdout:
            lines += 1
            counts = json.loads(line)
            if counts.pop("ready", 0):
                member.ready.set()
            member.counts.update(counts)
        return lines

    async def _last_words(self, process: Process) -> str:
        assert process.stderr is not None
        words = b""
        async for line in process.stderr:
            words = (words + line)[-2_000:]
        return words.decode(errors="replace").strip()
