"""The outbox in SQLite, written through somebody else's connection to the store's file.

Such a connection knows nothing of the write turn: it has SQLite's own lock, for which the store waits. The rows
become visible with its commit, and a relay finds them when it looks next.
"""

from __future__ import annotations

import os
from collections.abc import Generator, Sequence
from contextlib import contextmanager
from itertools import chain
from pathlib import Path
from typing import Any

from tidewire.errors import ConfigurationError
from tidewire.kit.handles import CallersUnit, SyncHandle, async_handle, describe, sync_handle
from tidewire.model import Message
from tidewire.protocols import Clock
from tidewire.stores.sqlite.rows import COLUMNS, leaving_row
from tidewire.stores.sqlite.turns import Leaving

__all__ = ["FILES", "SqliteSyncOutbox", "check_dialect", "check_file", "insertions", "put_in_callers"]

FILES = "PRAGMA database_list"
_ROWS_MAX = 1_000  # eight columns each: SQLite takes 32,766 parameters


class SqliteSyncOutbox:
    """See `tidewire.protocols.SyncOutbox`: that of the store in the file at *path*, which is not opened."""

    def __init__(self, path: Path | str, clock: Clock) -> None:
        self._path = Path(os.path.abspath(path))
        self._clock = clock

    def put(self, tx: Any, messages: Sequence[Message]) -> None:
        """Insert rows in the caller's transaction, in order."""
        now = self._clock.now_us()
        statements = insertions([leaving_row(message, now) for message in messages])
        sql = _known(tx).begun()
        what = f"publish(tx=…): this {describe(tx)}"
        check_dialect(what, sql.dialect, self._path)
        check_file(what, sql.rows(FILES), self._path)
        with _explained(self._path):
            for text, parameters in statements:
                sql.rows(text, parameters)


async def put_in_callers(unit: CallersUnit, messages: Sequence[Message], *, path: Path, now: int) -> None:
    """Insert rows of the store at *path* in a caller's transaction, in order; see `tidewire.protocols.Outbox.put`."""
    statements = insertions([leaving_row(message, now) for message in messages])
    sql = await unit.handle.begun()
    what = f"publish(tx=…): this {describe(unit.tx)}"
    check_dialect(what, sql.dialect, path)
    check_file(what, await sql.rows(FILES), path)
    for text, parameters in statements:
        await sql.rows(text, parameters)


def _known(tx: Any) -> SyncHandle:
    handle = sync_handle(tx)
    if handle is not None:
        return handle
    if async_handle(tx) is not None:
        raise ConfigurationError(
            f"publish(tx=…): a {describe(tx)} is awaited",
            hint="publish with `await publisher.publish(event, tx=…)` of a publisher that is opened with the store",
        )
    raise ConfigurationError(
        f"publish(tx=…): a {describe(tx)} is not a transaction that synchronous code can write into",
        hint="a sqlite3.Connection, SQLAlchemy's Session or Connection, or Django's connection",
    )


def insertions(rows: Sequence[Leaving]) -> list[tuple[str, list[Any]]]:
    """Return the statements that insert *rows*: one for what may leave now, one for what may not."""
    found: list[tuple[str, list[Any]]] = []
    for start in range(0, len(rows), _ROWS_MAX):
        some = rows[start : start + _ROWS_MAX]
        found += _insert("tidewire_outbox", COLUMNS, [one.columns for one in some if one.due is None])
        later = [(*one.columns, one.due) for one in some if one.due is not None]
        found += _insert("tidewire_outbox_delayed", f"{COLUMNS}, due", later)
    return found


def _insert(table: str, columns: str, rows: Sequence[tuple[Any, ...]]) -> list[tuple[str, list[Any]]]:
    if not rows:
        return []
    width = len(rows[0])
    places = ", ".join(
        f"({', '.join(f'${first + number}' for number in range(1, width + 1))})"
        for first in range(0, width * len(rows), width)
    )
    return [(f"INSERT INTO {table} ({columns}) VALUES {places}", [*chain.from_iterable(rows)])]


def check_dialect(what: str, dialect: str, path: Path) -> None:
    """Refuse what is no SQLite at all."""
    if dialect != "sqlite":
        raise ConfigurationError(
            f"{what} is to a database of {dialect}, the store is {path}",
            hint="event and data commit together in one database only: the one that the service's store is in",
        )


def check_file(what: str, files: Sequence[tuple[Any, ...]], path: Path) -> None:
    """Refuse *what*, whose main file is not the store's."""
    place = next((os.fsdecode(place) for _, name, place in files if os.fsdecode(name) == "main"), "")
    try:
        same = bool(place) and os.path.samefile(place, path)
    except OSError:
        same = False
    if not same:
        raise ConfigurationError(
            f"{what} is to {place or 'a database in memory'}, the store is {path}",
            hint="event and data commit together in one database only: the one that the service's store is in",
        )


@contextmanager
def _explained(path: Path) -> Generator[None]:
    """Say what it means when the file has never been a store; every other error is its library's."""
    try:
        yield
    except Exception as error:
        if "no such table: tidewire_outbox" not in str(error):
            raise
        raise ConfigurationError(
            f"publish(tx=…): {path} has no outbox yet", hint="`tidewire store upgrade` makes it"
        ) from error
