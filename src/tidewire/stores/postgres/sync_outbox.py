"""The outbox in PostgreSQL for synchronous code, which opens nothing."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import timedelta
from typing import Any

from tidewire.errors import ConfigurationError
from tidewire.kit.handles import async_handle, describe, sync_handle
from tidewire.kit.postgres.place import PostgresPlace
from tidewire.kit.postgres.pool import PostgresPool
from tidewire.model import Message
from tidewire.protocols import Clock
from tidewire.stores.postgres.access import Access
from tidewire.stores.postgres.migrate import STORE_ERRORS
from tidewire.stores.postgres.outbox import PostgresOutbox

__all__ = ["PostgresSyncOutbox"]


class PostgresSyncOutbox:
    """See `tidewire.protocols.SyncOutbox`: that of the store at *place*, to which nothing is opened."""

    def __init__(self, place: PostgresPlace, clock: Clock) -> None:
        unopened = Access(place, PostgresPool(place, STORE_ERRORS, size=1))
        self._outbox = PostgresOutbox(unopened, clock, poll=timedelta(0))

    def put(self, tx: Any, messages: Sequence[Message]) -> None:
        """Insert rows in the caller's transaction, in order."""
        statements = self._outbox.told(self._outbox.rows(messages))
        handle = sync_handle(tx)
        if handle is None:
            raise _no_handle(tx)
        sql = handle.begun()
        identity = self._outbox.identity
        if not identity.knows(sql.connection):
            what = f"publish(tx=…): this {describe(tx)}"
            identity.check_dialect(what, sql.dialect)
            identity.check_there(what, sql.rows(identity.there))
            identity.check(what, sql.connection, sql.rows(identity.ask))
        for text, parameters in statements:
            sql.rows(text, parameters)


def _no_handle(tx: Any) -> ConfigurationError:
    if async_handle(tx) is not None:
        return ConfigurationError(
            f"publish(tx=…): a {describe(tx)} is awaited",
            hint="publish with `await publisher.publish(event, tx=…)` of a publisher that is opened with the store",
        )
    return ConfigurationError(
        f"publish(tx=…): a {describe(tx)} is not a transaction that synchronous code can write into",
        hint="psycopg's Connection, SQLAlchemy's Session or Connection, or Django's connection",
    )
