"""Which libraries' handles are known, by the module and name of their classes."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from tidewire.kit.handles.asyncpg import AsyncpgConnection
from tidewire.kit.handles.django import DjangoConnection
from tidewire.kit.handles.psycopg import AsyncPsycopgConnection, PsycopgConnection
from tidewire.kit.handles.seam import AsyncHandle, SyncHandle
from tidewire.kit.handles.sqlalchemy import (
    AlchemyConnection,
    AlchemySession,
    AsyncAlchemyConnection,
    AsyncAlchemySession,
)
from tidewire.kit.handles.sqlite import SqliteConnection

__all__ = ["async_handle", "describe", "sync_handle"]

_ASYNC: Mapping[str, Callable[[object], AsyncHandle]] = {
    "asyncpg.connection.Connection": AsyncpgConnection,
    "asyncpg.pool.PoolConnectionProxy": AsyncpgConnection,
    "psycopg.AsyncConnection": AsyncPsycopgConnection,
    "sqlalchemy.ext.asyncio.engine.AsyncConnection": AsyncAlchemyConnection,
    "sqlalchemy.ext.asyncio.session.AsyncSession": AsyncAlchemySession,
    "sqlalchemy.ext.asyncio.scoping.async_scoped_session": AsyncAlchemySession.scoped,
}
_SYNC: Mapping[str, Callable[[object], SyncHandle]] = {
    "django.db.backends.base.base.BaseDatabaseWrapper": DjangoConnection,
    "django.utils.connection.ConnectionProxy": DjangoConnection,
    "psycopg.Connection": PsycopgConnection,
    "sqlalchemy.engine.base.Connection": AlchemyConnection,
    "sqlalchemy.orm.session.Session": AlchemySession,
    "sqlalchemy.orm.scoping.scoped_session": AlchemySession.scoped,
    "sqlite3.Connection": SqliteConnection,
}


def async_handle(tx: object) -> AsyncHandle | None:
    """Return *tx* as a transaction whose statements are awaited, or None if it is no such handle."""
    for name in _names(tx):
        if name in _ASYNC:
            return _ASYNC[name](tx)
    return None


def sync_handle(tx: object) -> SyncHandle | None:
    """Return *tx* as a transaction of synchronous code, or None if it is no such handle."""
    for name in _names(tx):
        if name in _SYNC:
            return _SYNC[name](tx)
    return None


def describe(tx: object) -> str:
    """Return what *tx* is, for people: ``psycopg.AsyncConnection`` or the like."""
    return _names(tx)[0].removeprefix("builtins.")


def _names(tx: object) -> list[str]:
    return [f"{cls.__module__}.{cls.__qualname__}" for cls in type(tx).__mro__]
