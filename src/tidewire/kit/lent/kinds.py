"""Which libraries' pools can lend, by the module and name of their classes."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from tidewire.errors import ConfigurationError
from tidewire.kit.handles import describe
from tidewire.kit.lent.django import DjangoDatabase
from tidewire.kit.lent.seam import Lender
from tidewire.kit.lent.sqlalchemy import AsyncSessions, Sessions

__all__ = ["lender_of"]

_LENDERS: Mapping[str, Callable[[Any], Lender]] = {
    "django.db.backends.base.base.BaseDatabaseWrapper": DjangoDatabase,
    "django.utils.connection.ConnectionProxy": DjangoDatabase,
    "sqlalchemy.engine.base.Engine": Sessions.on,
    "sqlalchemy.ext.asyncio.engine.AsyncEngine": AsyncSessions.on,
    "sqlalchemy.ext.asyncio.session.async_sessionmaker": AsyncSessions,
    "sqlalchemy.orm.session.sessionmaker": Sessions,
}


def lender_of(pool: object) -> Lender:
    """Return *pool* as one that lends its transactions to units.

    Raises:
        ConfigurationError: it is none that is known.
    """
    for cls in type(pool).__mro__:
        found = _LENDERS.get(f"{cls.__module__}.{cls.__qualname__}")
        if found is not None:
            return found(pool)
    raise ConfigurationError(
        f"a {describe(pool)} cannot lend transactions to units",
        hint="SQLAlchemy's AsyncEngine, async_sessionmaker, Engine or sessionmaker, or Django's connection",
    )
