"""What an error of a database means for an event, whichever library raises it."""

from __future__ import annotations

import sqlite3
from collections.abc import Generator, Iterator
from contextlib import contextmanager

from tidewire.errors import StoreUnavailable, TransactionLost

__all__ = ["meant", "typed"]

# SQLSTATE classes: connection, resources, operator's intervention, system error. A read-only server has failed over.
_SERVER = ("08", "53", "57P", "58", "25006")
_AGAIN = ("40001", "40P01")
_SQLITE = frozenset(
    {sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED, sqlite3.SQLITE_FULL, sqlite3.SQLITE_IOERR}
    | {sqlite3.SQLITE_CANTOPEN, sqlite3.SQLITE_NOMEM, sqlite3.SQLITE_READONLY, sqlite3.SQLITE_CORRUPT}
)
_LIBRARIES = ("asyncpg", "psycopg", "sqlalchemy", "django", "sqlite3")


def typed(error: BaseException) -> BaseException:
    """Return the error of tidewire that says what *error* means, or *error* itself where it is the statement's fault.

    Of a server that is away, and of a transaction that has lost against another one, no event is guilty.
    """
    for one in _chain(error):
        state = str(getattr(one, "sqlstate", None) or "")
        if state in _AGAIN:
            return TransactionLost(f"the transaction conflicted with another one ({state}); it runs again")
        code = getattr(one, "sqlite_errorcode", None)
        gone = state.startswith(_SERVER) or (code is not None and code & 0xFF in _SQLITE)
        if gone or (not state and _is_lost(one)):
            return StoreUnavailable(
                f"the database cannot be used now: {type(one).__name__} ({state or 'no SQLSTATE'})",
                hint="the event waits until it can, and no attempt is counted",
            )
    return error


@contextmanager
def meant() -> Generator[None]:
    """Raise what an error in the block means: see `typed`."""
    try:
        yield
    except Exception as error:
        meaning = typed(error)
        if meaning is error:
            raise
        raise meaning from error


def _chain(error: BaseException) -> Iterator[BaseException]:
    """Yield *error* if a database's library raised it, and the errors below it that say more."""
    seen: set[int] = set()
    one: BaseException | None = error
    if type(error).__module__.partition(".")[0] not in _LIBRARIES:
        return
    while one is not None and id(one) not in seen:
        seen.add(id(one))
        yield one
        one = getattr(one, "orig", None) or one.__cause__


def _is_lost(error: BaseException) -> bool:
    """Whether *error* says that the connection is gone, or could not be made."""
    if getattr(error, "connection_invalidated", False):
        return True
    if isinstance(error, ConnectionError):
        return True
    cls = type(error)
    name = f"{cls.__module__.partition('.')[0]}.{cls.__name__}"
    return name in ("psycopg.OperationalError", "asyncpg.ConnectionDoesNotExistError", "sqlalchemy.TimeoutError")
