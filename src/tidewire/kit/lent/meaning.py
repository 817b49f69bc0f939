"""What an error of a database means for an event, whichever library raises it."""

from __future__ import annotations

import sqlite3
from collections.abc import Callable, Generator, Iterator
from contextlib import contextmanager

from tidewire.errors import StoreUnavailable, TransactionAborted, TransactionLost

__all__ = ["is_consequence", "meant", "typed"]

# SQLSTATE classes: connection, resources, operator's intervention, system error. A read-only server has failed over.
_SERVER = ("08", "53", "57P", "58", "25006")
_AGAIN = ("40001", "40P01")
_ABORTED = "25P02"
_SQLITE = frozenset(
    {sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED, sqlite3.SQLITE_FULL, sqlite3.SQLITE_IOERR}
    | {sqlite3.SQLITE_CANTOPEN, sqlite3.SQLITE_NOMEM, sqlite3.SQLITE_READONLY, sqlite3.SQLITE_CORRUPT}
)
_LIBRARIES = ("asyncpg", "psycopg", "sqlalchemy", "django", "sqlite3")


def typed(error: BaseException, earlier: BaseException | None = None) -> BaseException:
    """Return the error of tidewire that says what *error* means, or *error* itself where it is the statement's fault.

    Of a server that is away, and of a transaction that has lost against another one, no event is guilty. *earlier* is
    the last error of the transaction before it, where that is known.
    """
    for one in _chain(error):
        state = _state(one)
        if state == _ABORTED:
            return _aborted(earlier)
        if state in _AGAIN:
            return TransactionLost(f"the transaction conflicted with another one ({state}); it runs again")
        code = getattr(one, "sqlite_errorcode", None)
        if _name(one) == "sqlalchemy.TimeoutError":
            return StoreUnavailable(  # in the message, and not in a hint: the log of a pause has the message alone
                "no connection of the application's SQLAlchemy pool was free in time "
                f"({str(one).partition(' (Background')[0]}): raise pool_size or max_overflow of its engine to the "
                "service's concurrency and what else uses it, or lower Service(concurrency=…)"
            )
        gone = state.startswith(_SERVER) or (code is not None and code & 0xFF in _SQLITE)
        if gone or (not state and _is_lost(one)):
            return StoreUnavailable(
                f"the database cannot be used now: {type(one).__name__} ({state or 'no SQLSTATE'})",
                hint="the event waits until it can, and no attempt is counted",
            )
    return error


@contextmanager
def meant(failed: Callable[[], BaseException | None] = lambda: None) -> Generator[None]:
    """Raise what an error in the block means: see `typed`. *failed* returns what went wrong before it."""
    try:
        yield
    except Exception as error:
        earlier = failed()
        meaning = typed(error, earlier)
        if meaning is error:
            raise
        raise meaning from (earlier if is_consequence(error) and earlier is not None else error)


def is_consequence(error: BaseException) -> bool:
    """Whether *error* says only that an earlier one has aborted the transaction."""
    return any(_state(one) == _ABORTED for one in _chain(error))


def _aborted(earlier: BaseException | None) -> BaseException:
    what = "an error of the database"
    if earlier is not None:
        meaning = typed(earlier)
        if meaning is not earlier:
            return meaning  # a conflict, or a server that is away, is nobody's failure, caught or not
        *_, innermost = (earlier, *_chain(earlier))
        what = f"{type(innermost).__name__} ({_state(innermost) or 'no SQLSTATE'})"
    return TransactionAborted(
        f"the handler caught {what} and went on: PostgreSQL keeps nothing of a transaction after an error in it",
        hint="let the error rise, or put what may fail into a savepoint: `async with session.begin_nested():`, in "
        "Django `with transaction.atomic():`",
    )


def _state(error: BaseException) -> str:
    return str(getattr(error, "sqlstate", None) or "")


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
    return _name(error) in ("psycopg.OperationalError", "asyncpg.ConnectionDoesNotExistError")


def _name(error: BaseException) -> str:
    cls = type(error)
    return f"{cls.__module__.partition('.')[0]}.{cls.__name__}"
