"""A caller's own `sqlite3.Connection`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from tidewire.kit.handles.placeholders import numbered
from tidewire.kit.handles.seam import SyncSql, not_begun

__all__ = ["SqliteConnection"]


class SqliteConnection:
    """See `tidewire.kit.handles.seam.SyncHandle`."""

    dialect = "sqlite"

    def __init__(self, connection: Any) -> None:
        self._connection = connection

    @property
    def connection(self) -> object:
        """The driver's connection."""
        return self._connection

    def begun(self) -> SyncSql:
        """Refuse a connection that commits each statement; any other begins with the first one that writes."""
        connection = self._connection
        alone = getattr(connection, "autocommit", -1) is True or connection.isolation_level is None
        if alone and not connection.in_transaction and getattr(connection, "autocommit", -1) is not False:
            raise not_begun(
                "sqlite3.Connection", 'run `connection.execute("BEGIN IMMEDIATE")` first, and commit() last'
            )
        return self

    def rows(self, sql: str, parameters: Sequence[Any] = ()) -> Sequence[tuple[Any, ...]]:
        """Run it on a cursor of its own, which makes tuples whatever the connection makes."""
        cursor = self._connection.cursor()
        cursor.row_factory = None
        try:
            cursor.execute(numbered(sql), tuple(parameters))
            found: list[tuple[Any, ...]] = cursor.fetchall()
            return found
        finally:
            cursor.close()
