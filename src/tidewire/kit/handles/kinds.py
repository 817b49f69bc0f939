"""Which libraries' handles are known, by the module and name of their classes."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple, TypeVar
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

__all__ = ["async_handle", "describe", "sync_handle", "transaction_look"]

T = TypeVar("T")

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
_LOOKS: Mapping[str, Callable[[Any], bool]] = {
    "asyncpg.connection.Connection": lambda connection: not connection.is_closed() and connection.is_in_transaction(),
    "psycopg.AsyncConnection": lambda connection: (
        connection.info.transaction_status.name in ("ACTIVE", "INTRANS", "INERROR")
    ),
}


class _Kind(NamedTuple):
    """What is known of a class: its name, and what makes handles of its objects and looks at them, if it is known."""

    name: str
    asynchronous: Callable[[object], AsyncHandle] | None
    synchronous: Callable[[object], SyncHandle] | None
    look: Callable[[Any], bool] | None


_kinds: WeakKeyDictionary[type, _Kind] = WeakKeyDictionary()


def async_handle(tx: object) -> AsyncHandle | None:
    """Return *tx* as a transaction whose statements are awaited, or None if it is no such handle."""
    make = _kind_of(tx.__class__).asynchronous
    return None if make is None else make(tx)


def sync_handle(tx: object) -> SyncHandle | None:
    """Return *tx* as a transaction of synchronous code, or None if it is no such handle."""
    make = _kind_of(tx.__class__).synchronous
    return None if make is None else make(tx)


def describe(tx: object) -> str:
    """Return what *tx* is, for people: ``psycopg.AsyncConnection`` or the like."""
    return _kind_of(tx.__class__).name


def transaction_look(connection: object) -> Callable[[Any], bool] | None:
    """Return what says of a driver's own *connection* whether it has a transaction open, without asking the server.
    None where the driver does not say."""
    return _kind_of(connection.__class__).look


def _kind_of(cls: type) -> _Kind:
    """Return what is known of *cls*: what its nearest known ancestor says."""
    known = _kinds.get(cls)
    if known is None:
        names = [f"{one.__module__}.{one.__qualname__}" for one in cls.__mro__]
        plain = names[0].removeprefix("builtins.")
        known = _kinds[cls] = _Kind(plain, _nearest(names, _ASYNC), _nearest(names, _SYNC), _nearest(names, _LOOKS))
    return known


def _nearest(names: Sequence[str], known: Mapping[str, T]) -> T | None:
    return next((known[name] for name in names if name in known), None)
