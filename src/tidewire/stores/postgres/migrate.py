"""Making and upgrading the store's tables: under a lock, in one transaction, by whoever asks for it."""

from __future__ import annotations

from tidewire.errors import StoreRefused, StoreUnavailable
from tidewire.kit.postgres.errors import PostgresErrors, state_of
from tidewire.kit.postgres.place import PostgresPlace
from tidewire.kit.postgres.wire import Answers, Statement, Wire
from tidewire.stores.postgres.schema import VERSION, check_version, lock_key, upgrade_sql, version_sql

__all__ = ["STORE_ERRORS", "read_version", "upgrade"]

STORE_ERRORS = PostgresErrors(StoreUnavailable, StoreRefused)
_NO_TABLE, _NO_SCHEMA = "42P01", "3F000"


async def read_version(wire: Wire, place: PostgresPlace) -> int:
    """Return the version of the tables in *place*; 0 means that there are none.

    Raises:
        StoreUnavailable, StoreRefused: it cannot be read.
    """
    answers = await wire.run((version_sql(place), ()))
    if answers.error is not None and state_of(answers.error) in (_NO_TABLE, _NO_SCHEMA):
        return 0
    return int(_checked(answers, "reading the version of the store").rows()[0][0] or 0)


async def upgrade(wire: Wire, place: PostgresPlace) -> tuple[int, int]:
    """Bring the tables in *place* up to date and return the version before and now. Whoever comes second waits.

    Raises:
        StoreRefused: they are newer than this tidewire, or we may not create tables.
        StoreUnavailable: the database cannot be written now.
    """
    what = "upgrading the store"
    before = await read_version(wire, place)
    if before == VERSION:
        return before, before
    lock: Statement = ("SELECT pg_advisory_xact_lock($1::bigint)", (lock_key(place),))
    _checked(await wire.run(("BEGIN", ()), lock), what)
    try:
        _checked(await wire.run(("SAVEPOINT look", ())), what)
        before = await read_version(wire, place)
        _checked(await wire.run(("ROLLBACK TO SAVEPOINT look", ())), what)
        if before > VERSION:
            check_version(place, before)
        statements: list[Statement] = [(sql, ()) for sql in upgrade_sql(place, before)]
        _checked(await wire.run(*statements, ("COMMIT", ())), what)
    finally:
        if wire.alive and wire.in_transaction:
            await wire.run(("ROLLBACK", ()))
    return before, VERSION


def _checked(answers: Answers, what: str) -> Answers:
    if answers.error is not None:
        lost = answers.lost and answers.error.sqlstate is None
        typed = STORE_ERRORS.lost if lost else STORE_ERRORS.typed
        raise typed(what, answers.error) from answers.error
    return answers
