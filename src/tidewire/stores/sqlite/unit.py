"""Units of the SQLite store, and the handles through which users write their own rows in them."""

from __future__ import annotations

import asyncio
import logging
import re
import sqlite3
import threading
from collections.abc import Awaitable, Callable, Iterable, Sequence
from typing import Any, Literal, NamedTuple, TypeVar

from tidewire.errors import LaneFenced, TransactionClosed, TransactionControl, TransactionLost
from tidewire.kit.handles.placeholders import numbered
from tidewire.kit.sqlite_errors import is_full
from tidewire.kit.sqlite_file import SqliteFile
from tidewire.model import Guard
from tidewire.protocols import Unit
from tidewire.stores.sqlite.turns import Leaving, Shared, Turns

__all__ = ["SqliteTx", "SqliteUnit", "SyncSqliteTx", "Written", "own_unit"]

T = TypeVar("T")
Parameters = Sequence[Any] | dict[str, Any]
_logger = logging.getLogger("tidewire.store")
_SLOW, _VERY_SLOW = 0.001, 1.0
_LEADING = re.compile(r"(?:[\s\ufeff]|--[^\n]*\n|/\*.*?\*/|;)*([A-Za-z]+)", re.DOTALL)
_CONTROL = {"BEGIN", "COMMIT", "END", "ROLLBACK", "SAVEPOINT", "RELEASE", "ATTACH", "DETACH", "PRAGMA", "VACUUM"}
_INFRASTRUCTURE = {
    sqlite3.SQLITE_NOMEM,
    sqlite3.SQLITE_IOERR,
    sqlite3.SQLITE_CORRUPT,
    sqlite3.SQLITE_FULL,
    sqlite3.SQLITE_CANTOPEN,
    sqlite3.SQLITE_NOTADB,
    sqlite3.SQLITE_READONLY,
    sqlite3.SQLITE_BUSY,
    sqlite3.SQLITE_LOCKED,
}


class Written(NamedTuple):
    """What a statement did: *rowcount* as SQLite counts it (-1 for a query), *lastrowid* of an insert."""

    rowcount: int
    lastrowid: int | None


class SqliteUnit:
    """One unit; see `tidewire.protocols.Unit`. Made by `SqliteStore.unit`.

    A constraint violation undoes its statement only, and a handler may catch it. An error of the disk or the
    file poisons the unit: it cannot be sealed, even if the handler swallows the error.
    """

    __slots__ = (
        "_beginning",
        "_guard",
        "_label",
        "_leaving",
        "_lock",
        "_poison",
        "_shared",
        "_since",
        "_speeds",
        "_spent",
        "_state",
        "_sync",
        "_tx",
        "turns",
    )

    def __init__(self, turns: Turns, guard: Guard | None, label: str, speeds: dict[str, float]) -> None:
        self.turns = turns
        self._guard = guard
        self._label = label
        self._speeds = speeds
        self._state: Literal["new", "open", "lost", "ended"] = "new"
        self._shared: Shared | None = None
        self._since = 0.0
        self._spent = 0.0
        self._beginning: asyncio.Future[None] | None = None
        self._leaving: list[Leaving] = []
        self._poison: Exception | None = None
        self._tx: SqliteTx | None = None
        self._sync: SyncSqliteTx | None = None
        self._lock: threading.Lock | None = None

    @property
    def tx(self) -> SqliteTx:
        """The handle for ``async def`` handlers."""
        if self._tx is None:
            self._tx = SqliteTx(self)
        return self._tx

    @property
    def sync_tx(self) -> SyncSqliteTx:
        """The handle for ``def`` handlers, after `begin`."""
        if self._sync is None:
            self._lock = threading.Lock()
            self._sync = SyncSqliteTx(self, self._lock)
        return self._sync

    @property
    def slow(self) -> bool:
        """Whether statements of this unit's kind take above 1 ms a turn on average: then they leave the loop."""
        return self._speeds.get(self._label, 0.0) > _SLOW

    async def begin(self) -> None:
        """Take the turn; nothing if it is taken."""
        if self._state == "open":
            return
        if self._state == "new" and self._beginning is None:
            shared = self.turns.take_at_once(self)
            if shared is not None:
                self._opened(shared)
                return
        if self._beginning is not None:  # two first statements at once share one turn
            await asyncio.shield(self._beginning)
            return
        if self._state != "new":
            raise TransactionClosed("this unit has ended", hint="use context.tx only while its handler runs")
        beginning = self._beginning = asyncio.get_running_loop().create_future()
        try:
            self._opened(await self.turns.take(self))
        finally:
            self._beginning = None
            beginning.set_result(None)

    def _opened(self, shared: Shared) -> None:
        self._shared = shared
        self._state = "open"
        self._since = self.turns.clock()

    async def seal(self) -> Awaitable[None]:
        """End the turn; what comes back resolves when the shared transaction is durable."""
        if self._state == "new":
            if not self._leaving:
                self._state = "ended"
                return _durable()
            await self.begin()
        if self._state == "lost":
            self._state = "ended"
            if self._poison is not None:  # its own statement did it: its own failure
                raise self._poison
            raise TransactionLost("the transaction of this unit was rolled back by a statement; run the unit again")
        if self._state == "ended":
            raise TransactionClosed("this unit has ended")
        shared = self._shared
        assert shared is not None
        if self._poison is not None:
            poison = self._poison
            await self.rollback()
            raise poison
        if self._guard is not None and not self._owned(self._guard, shared):
            guard = self._guard
            await self.rollback()
            raise LaneFenced(f"{guard.group}: epoch {guard.epoch} of lane {guard.lane} has been taken over")
        interrupted = await self._quiet()
        try:
            self.execute("RELEASE unit")
            self._state = "ended"
            shared.leaving += self._leaving
            self.turns.give(close=self._timed() > _SLOW)
        finally:
            self._release_lock()
        if interrupted:
            raise asyncio.CancelledError
        return shared

    async def rollback(self) -> None:
        """End without effect; a running statement of a thread ends first."""
        if self._state == "open":
            interrupted = await self._quiet()
            self._state = "ended"
            try:
                if self.turns.connection.in_transaction:
                    with self.turns.file.mapped:
                        self.turns.connection.execute("ROLLBACK TO unit")
                        self.turns.connection.execute("RELEASE unit")
            finally:
                self._timed()
                self.turns.give()
                self._release_lock()
            if interrupted:
                raise asyncio.CancelledError
        elif self._state == "lost" or self._state == "new":
            self._state = "ended"

    def lose(self) -> None:
        """The shared transaction is gone; called by the turns that lost it."""
        self._state = "lost"
        self.turns.give()

    def leave(self, messages: Iterable[Leaving]) -> None:
        """Write *messages* into the outbox with the commit, if the unit is sealed.

        Raises:
            TransactionClosed: the unit has ended.
        """
        if self._state == "ended" or self._state == "lost":
            raise TransactionClosed("this unit has ended")
        self._leaving += messages

    def forget_guards(self) -> None:
        """An epoch has changed in this transaction: later units of it must look again."""
        assert self._shared is not None
        self._shared.guarded.clear()

    def execute(self, sql: str, parameters: Parameters = ()) -> sqlite3.Cursor:
        """Run a statement of tidewire's own on the loop; errors are typed."""
        if self._state != "open":
            raise TransactionClosed("this unit has ended")
        try:
            return self.turns.connection.execute(sql, parameters)
        except sqlite3.Error as error:
            raise self._failed(error) from error

    def statement(self, run: Callable[[sqlite3.Cursor], T]) -> T:
        """Run a user's statement, here and now. Checks the unit's token, so that a late thread writes nothing.

        Raises:
            sqlite3.Error: the statement's own fault.
            StoreUnavailable, StoreRefused: the file's; the unit cannot be sealed any more.
            TransactionClosed: the unit has ended.
        """
        if self._state != "open" or self.turns.holder is not self:
            raise TransactionClosed("this unit has ended", hint="use context.tx only while its handler runs")
        cursor = self.turns.connection.cursor()
        cursor.row_factory = sqlite3.Row
        started = self.turns.clock()
        try:
            return run(cursor)
        except sqlite3.Error as error:
            typed = self._failed(error)
            if typed is error:
                raise
            raise typed from error
        finally:
            self._spent += self.turns.clock() - started

    async def _quiet(self) -> bool:
        """Wait until no thread runs a statement of this unit, and keep it so; True if we were cancelled meanwhile."""
        if self._lock is None or self._lock.acquire(blocking=False):
            return False
        waiting = asyncio.get_running_loop().run_in_executor(None, self._lock.acquire)
        try:
            await asyncio.shield(waiting)
        except asyncio.CancelledError:
            await asyncio.wait([waiting])
            return True
        return False

    def _release_lock(self) -> None:
        if self._lock is not None:
            self._lock.release()

    def _failed(self, error: sqlite3.Error) -> Exception:
        """Note what a failed statement means for this unit and return what is to be raised."""
        if not self.turns.connection.in_transaction:
            self._poison = error
            self._state = "lost"  # at once: outside a transaction the next statement would commit by itself
            self.turns.lost()
        code = getattr(error, "sqlite_errorcode", 0) or 0
        if code & 0xFF in _INFRASTRUCTURE or is_full(error):
            self._poison = self.turns.file.typed(error)
            return self._poison
        return error

    def _owned(self, guard: Guard, shared: Shared) -> bool:
        """Whether the guard holds; asked once per shared transaction, whose lock lets nobody change it."""
        key = (guard.group, guard.lane, guard.epoch)
        if key not in shared.guarded:
            row = self.turns.connection.execute(  # the primary key
                "SELECT epoch FROM tidewire_lane WHERE grp = ? AND lane = ?", (guard.group, guard.lane)
            ).fetchone()
            if row is None or row[0] != guard.epoch:
                return False
            shared.guarded.add(key)
        return True

    def _timed(self) -> float:
        """Note how long the user's statements took; return the larger of this and the average of its kind."""
        speeds = self._speeds
        average = speeds[self._label] = self._spent * 0.1 + speeds.get(self._label, 0.0) * 0.9
        took = self.turns.clock() - self._since
        if took > _VERY_SLOW:
            _logger.warning("tidewire.store.slow_turn", extra={"handler": self._label, "seconds": round(took, 3)})
        return max(average, self._spent)


class SqliteTx:
    """``context.tx`` of the SQLite store: the user's statements, in the unit's transaction.

    Placeholders are SQLite's (``?``, ``?1``, ``:name``) or, so that a statement runs on PostgreSQL too, ``$1``.
    Rows are `sqlite3.Row`: by index and by name. BEGIN, COMMIT and the like are the unit's own business.
    """

    __slots__ = ("unit",)

    def __init__(self, unit: SqliteUnit) -> None:
        self.unit = unit

    async def execute(self, sql: str, parameters: Parameters = ()) -> Written:
        """Run one statement and say what it did.

        Raises:
            sqlite3.Error: the statement's own fault; it alone is undone.
            StoreUnavailable, StoreRefused: the disk's or the file's; the unit is lost.
            TransactionControl: it would begin or end a transaction.
            TransactionClosed: the handler has ended.
        """
        return await self._run(sql, lambda cursor: _written(cursor.execute(spelled(sql), parameters)))

    async def executemany(self, sql: str, rows: Iterable[Parameters]) -> Written:
        """Run one statement for each of *rows*; errors as `execute`, and the rows before the failing one stay."""
        return await self._run(sql, lambda cursor: _written(cursor.executemany(spelled(sql), rows)))

    async def fetchone(self, sql: str, parameters: Parameters = ()) -> sqlite3.Row | None:
        """Return the first row of a query, or None; errors as `execute`."""
        return await self._run(sql, lambda cursor: _row(cursor.execute(spelled(sql), parameters)))

    async def fetchall(self, sql: str, parameters: Parameters = ()) -> list[sqlite3.Row]:
        """Return all rows of a query; errors as `execute`."""
        return await self._run(sql, lambda cursor: cursor.execute(spelled(sql), parameters).fetchall())

    async def fetchval(self, sql: str, parameters: Parameters = ()) -> Any:
        """Return the first column of the first row, or None; errors as `execute`."""
        row = await self.fetchone(sql, parameters)
        return None if row is None else row[0]

    async def _run(self, sql: str, run: Callable[[sqlite3.Cursor], T]) -> T:
        check_statement(sql)
        unit = self.unit
        await unit.begin()
        if unit.slow:
            return await unit.turns.on_thread(lambda: unit.statement(run))
        return unit.statement(run)


class SyncSqliteTx:
    """The same for ``def`` handlers: no ``await``. One statement at a time; a late one writes nothing."""

    __slots__ = ("_lock", "unit")

    def __init__(self, unit: SqliteUnit, lock: threading.Lock) -> None:
        self.unit = unit
        self._lock = lock

    def execute(self, sql: str, parameters: Parameters = ()) -> Written:
        """As `SqliteTx.execute`."""
        return self._run(sql, lambda cursor: _written(cursor.execute(spelled(sql), parameters)))

    def executemany(self, sql: str, rows: Iterable[Parameters]) -> Written:
        """As `SqliteTx.executemany`."""
        return self._run(sql, lambda cursor: _written(cursor.executemany(spelled(sql), rows)))

    def fetchone(self, sql: str, parameters: Parameters = ()) -> sqlite3.Row | None:
        """As `SqliteTx.fetchone`."""
        return self._run(sql, lambda cursor: _row(cursor.execute(spelled(sql), parameters)))

    def fetchall(self, sql: str, parameters: Parameters = ()) -> list[sqlite3.Row]:
        """As `SqliteTx.fetchall`."""
        return self._run(sql, lambda cursor: cursor.execute(spelled(sql), parameters).fetchall())

    def fetchval(self, sql: str, parameters: Parameters = ()) -> Any:
        """As `SqliteTx.fetchval`."""
        row = self.fetchone(sql, parameters)
        return None if row is None else row[0]

    def _run(self, sql: str, run: Callable[[sqlite3.Cursor], T]) -> T:
        check_statement(sql)
        with self._lock:
            return self.unit.statement(run)


def own_unit(unit: Unit, file: SqliteFile) -> SqliteUnit:
    """Return *unit* as one of the store in *file*.

    Raises:
        TypeError: it is another store's: effect and mark in two databases are refused.
    """
    inner = getattr(unit, "inner", unit)
    if not isinstance(inner, SqliteUnit) or inner.turns.file is not file:
        raise TypeError(f"{type(unit).__name__} is not a unit of this store: effect and mark must share one database")
    return inner


def spelled(sql: str) -> str:
    """Return *sql* as SQLite counts placeholders, if it is written as PostgreSQL does."""
    return numbered(sql) if "$" in sql else sql


_checked: dict[str, str] = {}


def check_statement(sql: str) -> None:
    """Refuse statements that would begin, end or leave the unit's transaction.

    Raises:
        TransactionControl: names the statement's first word.
    """
    word = _checked.get(sql)
    if word is None:
        found = _LEADING.match(sql)
        word = found.group(1).upper() if found else ""
        if len(_checked) >= 1_024:
            _checked.clear()
        _checked[sql] = word
    if word in _CONTROL:
        raise TransactionControl(
            f"{word} is not for handlers: the unit begins, commits and rolls back",
            hint="raise an error to roll back, return to commit",
        )


def _written(cursor: sqlite3.Cursor) -> Written:
    return Written(cursor.rowcount, cursor.lastrowid)


def _row(cursor: sqlite3.Cursor) -> sqlite3.Row | None:
    row: sqlite3.Row | None = cursor.fetchone()
    cursor.close()
    return row


def _durable() -> Awaitable[None]:
    done: asyncio.Future[None] = asyncio.get_running_loop().create_future()
    done.set_result(None)
    return done
