"""SQLAlchemy's sessions and connections. Statements go to the driver as they are, in the session's transaction."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from tidewire.kit.handles.placeholders import spelled
from tidewire.kit.handles.seam import AsyncSql, SyncSql, not_begun

__all__ = ["AlchemyConnection", "AlchemySession", "AsyncAlchemyConnection", "AsyncAlchemySession"]


class AlchemyConnection:
    """A `Connection`; see `tidewire.kit.handles.seam.SyncHandle`."""

    def __init__(self, connection: Any) -> None:
        self._connection = connection

    @property
    def dialect(self) -> str:
        """SQLAlchemy's name of the database."""
        return str(self._connection.dialect.name)

    @property
    def connection(self) -> object:
        """The driver's connection."""
        return self._connection.connection.driver_connection

    def begun(self) -> SyncSql:
        """Refuse the isolation level AUTOCOMMIT; any other connection begins with its first statement."""
        _check_transactional(self._connection)
        return self

    def rows(self, sql: str, parameters: Sequence[Any] = ()) -> Sequence[tuple[Any, ...]]:
        """Run it as the driver writes it."""
        spelling = spelled(sql, parameters, style=self._connection.dialect.paramstyle)
        result = self._connection.exec_driver_sql(*spelling)
        return [tuple(row) for row in result] if result.returns_rows else ()


class AlchemySession:
    """A `Session`; see `tidewire.kit.handles.seam.SyncHandle`."""

    def __init__(self, session: Any) -> None:
        self._session = session

    @classmethod
    def scoped(cls, sessions: Any) -> AlchemySession:
        """Return the session that a `scoped_session` has for this thread."""
        return cls(sessions())

    def begun(self) -> SyncSql:
        """Take the session's connection, which begins as any statement of it would."""
        _check_autobegin(self._session, "with")
        return AlchemyConnection(self._session.connection()).begun()


class AsyncAlchemyConnection:
    """An `AsyncConnection`; see `tidewire.kit.handles.seam.AsyncHandle`."""

    def __init__(self, connection: Any) -> None:
        self._connection = connection

    @property
    def dialect(self) -> str:
        """SQLAlchemy's name of the database."""
        return str(self._connection.dialect.name)

    @property
    def connection(self) -> object:
        """The driver's connection."""
        return self._connection.sync_connection.connection.driver_connection

    async def begun(self) -> AsyncSql:
        """As `AlchemyConnection.begun`."""
        _check_transactional(self._connection.sync_connection)
        return self

    async def rows(self, sql: str, parameters: Sequence[Any] = ()) -> Sequence[tuple[Any, ...]]:
        """As `AlchemyConnection.rows`."""
        spelling = spelled(sql, parameters, style=self._connection.dialect.paramstyle)
        result = await self._connection.exec_driver_sql(*spelling)
        return [tuple(row) for row in result] if result.returns_rows else ()


class AsyncAlchemySession:
    """An `AsyncSession`; see `tidewire.kit.handles.seam.AsyncHandle`."""

    def __init__(self, session: Any) -> None:
        self._session = session

    @classmethod
    def scoped(cls, sessions: Any) -> AsyncAlchemySession:
        """Return the session that an `async_scoped_session` has for this task."""
        return cls(sessions())

    async def begun(self) -> AsyncSql:
        """As `AlchemySession.begun`."""
        _check_autobegin(self._session, "async with")
        return await AsyncAlchemyConnection(await self._session.connection()).begun()


def _check_autobegin(session: Any, how: str) -> None:
    plain = getattr(session, "sync_session", session)
    if not plain.autobegin and not plain.in_transaction():
        raise not_begun(f"SQLAlchemy {type(session).__name__}", f"publish inside `{how} session.begin():`")


def _check_transactional(connection: Any) -> None:
    """Look at the driver's own connection: levels may be set on the engine, on the connection or for one statement."""
    adapted = connection.connection.dbapi_connection
    raw = connection.connection.driver_connection
    if connection.dialect.name == "sqlite":
        alone = raw.isolation_level is None and not raw.in_transaction
    else:
        alone = bool(getattr(adapted, "autocommit", False))
    if alone:
        raise not_begun(
            "SQLAlchemy connection with the isolation level AUTOCOMMIT", "use an engine or a session without it"
        )
