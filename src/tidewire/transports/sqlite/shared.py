"""One open broker file in this process: its writer, its reader, and everybody here who waits for its commits."""

from __future__ import annotations

import asyncio
import sqlite3
from pathlib import Path
from typing import Any, Protocol

import msgspec

from tidewire.kit.sqlite_file import SqliteFile
from tidewire.model import Subscription
from tidewire.protocols import Clock
from tidewire.transports.sqlite.lanes import Lane
from tidewire.transports.sqlite.log import Names, append_due
from tidewire.transports.sqlite.reading import Reading
from tidewire.transports.sqlite.wake import MEMBERS, WORK, Waker
from tidewire.transports.sqlite.writer import Writer

__all__ = ["Shared", "Waiting"]

_FRESH = 0.25
_encode = msgspec.json.Encoder().encode
_decode_topics = msgspec.json.Decoder(set[int]).decode


class Waiting(Protocol):
    """A receiver of this process, as those see it who wake it up or count what it has."""

    subscription: Subscription
    members_changed: asyncio.Event
    lanes: dict[str, Lane]

    def touched(self, topics: set[int] | None, subs: set[int] | None) -> None:
        """A commit touched these (None: anything)."""
        ...


class Shared:
    """What the transport and its receivers have in common."""

    def __init__(self, file: SqliteFile, clock: Clock, name: str) -> None:
        self.file = file
        self.clock = clock
        self.boot = boot_id()
        self.receivers: list[Waiting] = []
        self._loop = asyncio.get_running_loop()
        self._writing = file.connect()
        self._reading = file.connect(read_only=True)
        self.aside = Reading(file)
        self.names = Names(self.read)
        self.waker = Waker(name, self._woken)
        self.writer = Writer(file, self._writing, tell=self._tell, wake=self._wake)
        self._others: list[tuple[str, set[int]]] = []
        self._others_at = 0.0

    def read(self, sql: str, parameters: tuple[Any, ...] = ()) -> sqlite3.Cursor:
        """Run a query on the read connection: committed rows.

        Raises:
            TransportUnavailable, TransportRefused: the file cannot be read.
        """
        with self.file.mapped:
            return self._reading.execute(sql, parameters)

    async def append_due(self) -> None:
        """Append delayed messages whose time has come."""
        now = self.clock.now_us()

        def append(connection: sqlite3.Connection) -> None:
            self.writer.topics |= append_due(connection, now)

        await self.writer.submit(append)

    async def tell_members(self, group: str) -> None:
        """Let the members of *group*, here and elsewhere, look who is there."""
        for receiver in self.receivers:
            if receiver.subscription.group == group:
                receiver.members_changed.set()
        addresses = [row[0] for row in self.read("SELECT address FROM member WHERE grp = ?", (group,))]
        self.waker.send([address for address in addresses if address != self.waker.address], MEMBERS)

    def close(self) -> None:
        """Finish writing and close everything; blocks."""
        self.aside.close()
        self.writer.close()
        self.file.close_connection(self._reading)
        self.file.close()

    def _woken(self, what: bytes) -> None:
        """Another process has committed something."""
        for receiver in self.receivers:
            receiver.touched(None, None)
            if what == MEMBERS:
                receiver.members_changed.set()

    def _tell(self, topics: set[int], subs: set[int]) -> None:
        """On the writer thread, after a commit: wake the processes in which somebody reads what was touched."""
        now = self._loop.time()
        if now - self._others_at > _FRESH:
            self._others_at = now
            rows = self._writing.execute(
                "SELECT address, topics FROM member WHERE boot = ? AND address != ?", (self.boot, self.waker.address)
            )
            self._others = [(address, _decode_topics(text)) for address, text in rows]
        if self._others:
            self.waker.send({address for address, read in self._others if not topics or read & topics}, WORK)

    def _wake(self, topics: set[int], subs: set[int]) -> None:
        for receiver in self.receivers:
            receiver.touched(topics, subs)


def boot_id() -> str:
    """Return what tells this start of the machine from every other: boot-clock ticks mean nothing beyond it."""
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    except OSError:
        return "unknown"
