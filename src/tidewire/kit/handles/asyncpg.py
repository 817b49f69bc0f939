"""Callers' connections of asyncpg."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from tidewire.kit.handles.seam import AsyncSql, not_begun

__all__ = ["AsyncpgConnection"]


class AsyncpgConnection:
    """See `tidewire.kit.handles.seam.AsyncHandle`. A connection of a pool is one too."""

    dialect = "postgresql"

    def __init__(self, connection: Any) -> None:
        self._connection = connection

    @property
    def connection(self) -> object:
        """The driver's connection, without the proxy that a pool puts around it."""
        return getattr(self._connection, "_con", self._connection)

    async def begun(self) -> AsyncSql:
        """Refuse a connection outside of `transaction()`: asyncpg commits each statement then."""
        if not self._connection.is_in_transaction():
            raise not_begun("asyncpg connection", "publish inside `async with connection.transaction():`")
        return self

    async def rows(self, sql: str, parameters: Sequence[Any] = ()) -> Sequence[tuple[Any, ...]]:
        """Run it as asyncpg does: prepared, and kept for the next time."""
        return [tuple(record) for record in await self._connection.fetch(sql, *parameters)]
