"""One open broker file in this process: the log's home on SQLite."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, TypeVar

import msgspec

from tidewire.kit.sqlite_errors import is_full
from tidewire.kit.sqlite_file import SqliteFile
from tidewire.kit.sqllog.home import Connection, Listen
from tidewire.model import Message
from tidewire.protocols import Clock
from tidewire.transports.sqlite.reading import Reading
from tidewire.transports.sqlite.wake import MEMBERS, WORK, Waker

__all__ = ["SqliteHome"]

T = TypeVar("T")
_FRESH = 0.25
_COMMIT_BYTES, _ROW_BYTES = 12_288, 2_048
_RESERVE_BYTES = 1 << 20
_decode_topics = msgspec.json.Decoder(set[int]).decode


class SqliteHome:
    """See `tidewire.kit.sqllog.home.Home`. Reads answer at once, on the event loop; the write turn is the file's."""

    def __init__(self, file: SqliteFile, clock: Clock, name: str) -> None:
        self.what = file.what
        self.clock = clock
        self.boot = boot_id()
        self.refusal: Callable[[Message], str | None] | None = None
        self._file = file
        self._loop = asyncio.get_running_loop()
        self._writing = file.connect()
        self._reading = file.connect(read_only=True)
        self._beside = Reading(file)
        self._heard: Listen | None = None
        self._waker = Waker(name, self._woken)
        self.address = self._waker.address
        self._others: list[tuple[str, set[int]]] = []
        self._others_at = 0.0
        self._reserve = f"{file.path}-reserve"
        self._keep_reserve()

    def check_usable(self) -> None:
        """Raise in a forked child, and after a failed sync."""
        self._file.check_usable()

    def listen(self, heard: Listen) -> None:
        """Hear the datagrams of other processes."""
        self._heard = heard

    async def read(self, sql: str, parameters: Sequence[Any] = (), /) -> list[Any]:
        """Run a query on the read connection: nothing is waited for."""
        with self._file.mapped:
            return self._reading.execute(sql, parameters).fetchall()

    async def beside(self, job: Callable[[Connection], T], /) -> T:
        """Run *job* on a thread of its own."""
        return await self._beside.run(job)

    async def identity(self) -> str:
        """Return nothing: a file that was brought back from a copy is the same broker, and looks like another."""
        return ""

    async def tell_members(self, group: str) -> None:
        """Send a datagram to each of the group's processes."""
        addresses = [row[0] for row in await self.read("SELECT address FROM member WHERE grp = ?", (group,))]
        self._waker.send([address for address in addresses if address != self.address], MEMBERS)

    def leave(self) -> None:
        """What is queued is written: a file answers."""

    def close(self) -> None:
        """Close everything that the writer has not; blocks."""
        self._beside.close()
        self._file.close_connection(self._reading)
        self._file.close()

    def deaf(self) -> None:
        """Hear nothing any more; on the event loop."""
        self._waker.close()

    def _woken(self, what: bytes) -> None:
        if self._heard is not None:
            self._heard(None, None, members=what == MEMBERS)

    # --- on the writer thread -----------------------------------------------------------------------------------

    def write(self, work: Callable[[Connection], T], /) -> T:
        """Run *work* inside the file's write turn."""
        connection = self._writing
        before = connection.total_changes
        with self._file.writing(), self._file.mapped:
            connection.execute("BEGIN IMMEDIATE")
            try:
                result = work(connection)
                connection.execute("COMMIT")
            except BaseException:
                if connection.in_transaction:
                    connection.execute("ROLLBACK")
                raise
            self._file.committed(connection, size=_COMMIT_BYTES + (connection.total_changes - before) * _ROW_BYTES)
        return result

    def announce(self, connection: Connection, *, topics: set[int], subs: set[int]) -> None:
        """Others are told by datagrams, after the commit."""

    def tell(self, topics: set[int], subs: set[int]) -> None:
        """Send a datagram to the processes in which somebody reads *topics*."""
        now = self._loop.time()
        if now - self._others_at > _FRESH:
            self._others_at = now
            rows = self._writing.execute(
                "SELECT address, topics FROM member WHERE boot = ? AND address != ?", (self.boot, self.address)
            )
            self._others = [(address, _decode_topics(text)) for address, text in rows]
        if self._others:
            self._waker.send({address for address, read in self._others if not topics or read & topics}, WORK)

    def make_room(self, error: Exception) -> bool:
        """Spend the reserve if *error* says that the disk is full."""
        return is_full(error.__cause__) and self._spend_reserve()

    def rest(self, lull: Callable[[], bool]) -> None:
        """Copy the log in a lull, so that it seldom has to be while somebody waits."""
        if self._file.untidy and lull():
            with self._file.writing(), self._file.mapped:
                self._file.tidy(self._writing)

    def upkeep(self) -> None:
        """Make the reserve whole again, whoever has spent it, once there is room for a few of its size."""
        try:
            if os.stat(self._reserve).st_size >= _RESERVE_BYTES:
                return
            disk = os.statvfs(self._reserve)
        except OSError:
            return
        if disk.f_bavail * disk.f_frsize >= 3 * _RESERVE_BYTES:
            self._keep_reserve()

    def stop(self) -> None:
        """Close the writer's connection, in the turn."""
        self._file.close_connection(self._writing)

    # --- a reserve for a full disk: acks need room too ------------------------------------------------------------

    def _keep_reserve(self) -> None:
        try:
            descriptor = os.open(self._reserve, os.O_CREAT | os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
        except OSError:
            return
        try:
            if os.fstat(descriptor).st_size < _RESERVE_BYTES:
                os.posix_fallocate(descriptor, 0, _RESERVE_BYTES)
        except OSError:
            return
        finally:
            os.close(descriptor)

    def _spend_reserve(self) -> bool:
        try:
            os.truncate(self._reserve, 0)
        except OSError:
            return False
        return True


def boot_id() -> str:
    """Return what tells this start of the machine from every other: boot-clock ticks mean nothing beyond it."""
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    except OSError:
        return "unknown"
