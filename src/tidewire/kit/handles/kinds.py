"""Which libraries' handles are known, by the module and name of their classes."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any
from weakref import WeakKeyDictionary

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

__all__ = ["async_handle", "describe", "is_in_transaction", "sync_handle"]

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

_known_names: WeakKeyDictionary[type, list[str]] = WeakKeyDictionary()


def async_handle(tx: object) -> AsyncHandle | None:
    """Return *tx* as a transaction whose statements are awaited, or None if it is no such handle."""
    for name in _names(tx.__class__):
        if name in _ASYNC:
            return _ASYNC[name](tx)
    return None


def sync_handle(tx: object) -> SyncHandle | None:
    """Return *tx* as a transaction of synchronous code, or None if it is no such handle."""
    for name in _names(tx.__class__):
        if name in _SYNC:
            return _SYNC[name](tx)
    return None


def describe(tx: object) -> str:
    """Return what *tx* is, for people: ``psycopg.AsyncConnection`` or the like."""
    return _names(tx.__class__)[0].removeprefix("builtins.")


def is_in_transaction(connection: Any) -> bool | None:
    """Return whether a driver's own *connection* has a transaction open, as the driver knows it without asking the
    server. None where the driver does not say."""
    names = _names(connection.__class__)
    if "asyncpg.connection.Connection" in names:
        return not connection.is_closed() and bool(connection.is_in_transaction())
    if "psycopg.AsyncConnection" in names:
        return connection.info.transaction_status.name in ("ACTIVE", "INTRANS", "INERROR")
    return None


def _names(kind: type) -> list[str]:
    """Return the full names of a class and of all it inherits from, nearest first."""
    names = _known_names.get(kind)
    if names is None:
        names = _known_names[kind] = [f"{cls.__module__}.{cls.__qualname__}" for cls in kind.__mro__]
    return names
