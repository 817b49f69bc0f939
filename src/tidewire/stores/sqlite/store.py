"""Opening the SQLite store."""

from __future__ import annotations

import sqlite3
from collections.abc import AsyncGenerator, Sequence
from contextlib import asynccontextmanager
from datetime import timedelta
from functools import partial
from pathlib import Path
from typing import Any

from tidewire.clock import SystemClock
from tidewire.kit.handles import CallersUnit, async_handle
from tidewire.kit.sqlite_file import SqliteFile, open_sqlite_file
from tidewire.kit.threads import to_the_end
from tidewire.model import Guard
from tidewire.protocols import Clock, Unit
from tidewire.stores.sqlite.inbox import SqliteInbox
from tidewire.stores.sqlite.outbox import SqliteBacklog, SqliteOutbox
from tidewire.stores.sqlite.reading import Reader
from tidewire.stores.sqlite.records import SqliteAttempts, SqliteHeldKeys, SqliteLanes
from tidewire.stores.sqlite.schema import STORE
from tidewire.stores.sqlite.statements import SqliteStatements
from tidewire.stores.sqlite.timetable import SqliteTimetable
from tidewire.stores.sqlite.turns import Turns
from tidewire.stores.sqlite.unit import SqliteTx, SqliteUnit, SyncSqliteTx

__all__ = ["SqliteStore", "boot_id", "open_sqlite_store"]

_BOOT = Path("/proc/sys/kernel/random/boot_id")


class SqliteStore:
    """The service's own database in one SQLite file; see `tidewire.protocols.Store`.

    Its tables are named ``tidewire_…``; all others are the user's. Several processes of one service may share it.
    """

    def __init__(self, connection: sqlite3.Connection, reader: Reader, *, clock: Clock, poll: timedelta) -> None:
        self.file = reader.file
        self._speeds: dict[str, float] = {}
        self.inbox = SqliteInbox(reader, clock, self.unit)
        self.outbox = SqliteOutbox(reader, clock, self.unit, poll=poll)
        self._turns = Turns(self.file, connection, self.outbox)
        boot = boot_id()
        self.backlog = SqliteBacklog(reader, self.outbox, self.unit, clock, boot)
        self.timetable = SqliteTimetable(reader, self.unit, clock, boot)
        self.attempts = SqliteAttempts(reader, self.unit)
        self.held = SqliteHeldKeys(reader, self.unit)
        self.lanes = SqliteLanes(self.unit)
        self.statements = SqliteStatements(self.file.path, clock, self.outbox.nudge)

    @property
    def tx_types(self) -> tuple[type | None, type | None]:
        """What ``async def`` handlers and ``def`` handlers find in ``context.tx``."""
        return SqliteTx, SyncSqliteTx

    def unit(self, guard: Guard | None = None, *, label: str = "") -> SqliteUnit:
        """Return a unit that has not begun; *label* names whose turns are timed together."""
        return SqliteUnit(self._turns, guard, label, self._speeds)

    def saturated(self) -> bool:
        """Whether one more unit could only queue for the turn now."""
        return self._turns.saturated()

    async def close(self) -> None:
        """Commit what has begun; nothing can begin any more."""
        await self._turns.close()

    async def relays(self) -> Sequence[str]:
        """Return the owner of the relay's lease, if it lives."""
        return self.backlog.leaders()

    def adopt_tx(self, tx: Any) -> Unit | None:
        """Return the unit of a `SqliteTx` or `SyncSqliteTx` of this store, or of another library's transaction."""
        if isinstance(tx, (SqliteTx, SyncSqliteTx)):
            return tx.unit if tx.unit.turns is self._turns else None
        handle = async_handle(tx)
        return None if handle is None else CallersUnit(tx, handle)


@asynccontextmanager
async def open_sqlite_store(
    path: Path | str, *, clock: Clock | None = None, poll: timedelta = timedelta(milliseconds=250)
) -> AsyncGenerator[SqliteStore]:
    """Open the store at *path*, creating or upgrading its tables, and close it on leaving.

    *poll*: how often to look for what other processes of the service have put into the outbox.
    Leaving waits for the units that have begun. The user's own tables are the user's to create.

    Raises:
        StoreRefused: the file belongs to another program (the broker's included), is damaged, read-only, of a newer
            tidewire, or on a network file system.
        StoreUnavailable: it is locked, or the disk is full.
    """
    file = await to_the_end(partial(open_sqlite_file, path, STORE), SqliteFile.close)
    try:
        writing, reading = file.connect(), file.connect(read_only=True)
        store = SqliteStore(writing, Reader(file, reading), clock=clock or SystemClock(), poll=poll)
        try:
            yield store
        finally:
            try:
                await store.close()
            finally:
                await to_the_end(partial(file.close_connection, reading))
    finally:
        file.close()


def boot_id() -> str:
    """Return what tells this start of the machine from every other, for the ticks of leases."""
    try:
        return _BOOT.read_text().strip()
    except OSError:
        return "unknown"
