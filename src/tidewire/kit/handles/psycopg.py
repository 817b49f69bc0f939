"""Callers' connections of psycopg 3."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from tidewire.kit.handles.seam import AsyncSql, SyncSql, not_begun

__all__ = ["AsyncPsycopgConnection", "PsycopgConnection"]


class PsycopgConnection:
    """See `tidewire.kit.handles.seam.SyncHandle`."""

    dialect = "postgresql"

    def __init__(self, connection: Any) -> None:
        self._connection = connection

    @property
    def connection(self) -> object:
        """The driver's connection."""
        return self._connection

    def begun(self) -> SyncSql:
        """Refuse autocommit outside of `transaction()`; else the first statement begins."""
        _check_begun(self._connection, "with")
        return self

    def rows(self, sql: str, parameters: Sequence[Any] = ()) -> Sequence[tuple[Any, ...]]:
        """Run it on a cursor of its own, whatever kinds of cursors and rows the connection makes."""
        from psycopg import RawCursor
        from psycopg.rows import tuple_row

        with RawCursor(self._connection, row_factory=tuple_row) as cursor:
            cursor.execute(sql.encode(), tuple(parameters))
            return cursor.fetchall() if cursor.description is not None else ()


class AsyncPsycopgConnection:
    """See `tidewire.kit.handles.seam.AsyncHandle`."""

    dialect = "postgresql"

    def __init__(self, connection: Any) -> None:
        self._connection = connection

    @property
    def connection(self) -> object:
        """The driver's connection."""
        return self._connection

    async def begun(self) -> AsyncSql:
        """As `PsycopgConnection.begun`."""
        _check_begun(self._connection, "async with")
        return self

    async def rows(self, sql: str, parameters: Sequence[Any] = ()) -> Sequence[tuple[Any, ...]]:
        """As `PsycopgConnection.rows`."""
        from psycopg import AsyncRawCursor
        from psycopg.rows import tuple_row

        async with AsyncRawCursor(self._connection, row_factory=tuple_row) as cursor:
            await cursor.execute(sql.encode(), tuple(parameters))
            return await cursor.fetchall() if cursor.description is not None else ()


def _check_begun(connection: Any, how: str) -> None:
    idle = connection.info.transaction_status.name == "IDLE"
    if connection.autocommit and idle:
        raise not_begun("psycopg connection in autocommit mode", f"publish inside `{how} connection.transaction():`")
