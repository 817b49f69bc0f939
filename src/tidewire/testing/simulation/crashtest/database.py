"""The store of a service in a crash test: SQL in memory, one writer, and a commit that takes everything or nothing.

Marks, outbox and leases are those of the memory store; the user's statements run in an SQLite database of the world's
own, which outlives every process in it. What a process had open when it died is rolled back.
"""

from __future__ import annotations

import sqlite3
import threading
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import quote

from tidewire.errors import StoreRefused, TransactionClosed
from tidewire.model import Guard
from tidewire.protocols import Clock
from tidewire.stores.memory.unit import MemoryUnit
from tidewire.stores.sqlite.unit import SqliteTx, SyncSqliteTx
from tidewire.testing.simulation.loop import Process
from tidewire.testing.simulation.stores import Database

__all__ = ["SqlDatabase", "copied"]

T = TypeVar("T")
_OURS = "tidewire_"


class SqlDatabase(Database):
    """A store whose ``context.tx`` is that of the SQLite store. *start* is a database in bytes, to begin with."""

    def __init__(self, clock: Clock, start: bytes = b"") -> None:
        super().__init__(clock)
        self.connection = sqlite3.connect(":memory:", isolation_level=None)
        self.connection.row_factory = sqlite3.Row
        if start:
            self.connection.deserialize(start)

    def unit(self, guard: Guard | None = None, *, label: str = "") -> SqlUnit:
        """Return a unit that has not begun."""
        return SqlUnit(self, guard)

    def adopt_tx(self, tx: Any) -> MemoryUnit | None:
        """Return the unit of a transaction handle of this store."""
        unit = tx.unit if isinstance(tx, (SqliteTx, SyncSqliteTx)) else None
        return unit if isinstance(unit, SqlUnit) and unit.store is self else None

    def drop(self, process: Process) -> None:
        """End the connections of a process that has died: what it had open never happened."""
        holds = self._taken and self._holder is process
        if holds and self.connection.in_transaction:
            self.connection.execute("ROLLBACK")
        super().drop(process)

    def apply(self, unit: MemoryUnit) -> None:
        """Make what *unit* did true: its rows first, for a constraint may refuse them only now."""
        if self.connection.in_transaction:
            self.connection.execute("COMMIT")
        super().apply(unit)

    def tables(self) -> Mapping[str, Sequence[Mapping[str, Any]]]:
        """Return the rows of the user's tables, by the tables' names."""
        names = [
            row["name"]
            for row in self.connection.execute("SELECT name FROM sqlite_master WHERE type = 'table' ORDER BY name")
            if not row["name"].startswith(("sqlite_", _OURS))
        ]
        return {name: self._rows(f"SELECT * FROM {_quoted(name)}") for name in names}  # noqa: S608 - a table's name

    def _rows(self, query: str) -> list[dict[str, Any]]:
        return [dict(row) for row in self.connection.execute(query)]


class SqlUnit(MemoryUnit):
    """A unit with SQL in it: one transaction of the database, from its first statement to `seal` or `rollback`."""

    slow = False

    def __init__(self, store: SqlDatabase, guard: Guard | None) -> None:
        super().__init__(store, guard)
        self._sql = store.connection
        itself: Any = self
        self._handle: Any = SqliteTx(itself)
        self._sync: Any = SyncSqliteTx(itself, threading.Lock())

    @property
    def tx(self) -> Any:
        """The handle for ``async def`` handlers."""
        return self._handle

    @property
    def sync_tx(self) -> Any:
        """The same for ``def`` handlers."""
        return self._sync

    async def begin(self) -> None:
        """Take the turn; nothing if it is taken."""
        fresh = not self.open
        await super().begin()
        if fresh and not self._sql.in_transaction:
            self._sql.execute("BEGIN")

    async def rollback(self) -> None:
        """Forget everything."""
        if self.open and self._sql.in_transaction:
            self._sql.execute("ROLLBACK")
        await super().rollback()

    def statement(self, run: Callable[[sqlite3.Cursor], T]) -> T:
        """Run a user's statement, here and now; one that fails is undone alone.

        Raises:
            sqlite3.Error: the statement's own fault.
            TransactionClosed: the unit has ended.
        """
        if not self.open:
            raise TransactionClosed("this unit has ended", hint="use context.tx only while its handler runs")
        return run(self._sql.cursor())


def copied(path: Path) -> bytes:
    """Return the database at *path* without tidewire's own tables; nothing for a file that is not there.

    Raises:
        StoreRefused: it is no SQLite database.
    """
    if not path.exists():
        return b""
    copy = sqlite3.connect(":memory:", isolation_level=None)
    try:
        source = sqlite3.connect(f"file://{quote(str(path.absolute()))}?mode=ro", uri=True)
        try:
            source.backup(copy)
        finally:
            source.close()
        ours = copy.execute(
            "SELECT type, name FROM sqlite_master WHERE type = 'table' AND name LIKE 'tidewire\\_%' ESCAPE '\\'"
        )
        for kind, name in ours.fetchall():
            copy.execute(f"DROP {kind} {_quoted(name)}")
        plain = bytearray(copy.serialize())
        plain[18:20] = b"\1\1"  # no log: a database in memory cannot have one, and would not open
        return bytes(plain)
    except sqlite3.Error as error:
        raise StoreRefused(f"store {path} cannot be copied: {error}", hint="name the service's own file") from error
    finally:
        copy.close()


def _quoted(name: str) -> str:
    return '"' + name.replace('"', '""') + '"'
