"""What the project's settings say."""

from __future__ import annotations

from typing import Any

import msgspec
from django.conf import settings
from django.db import connections

from tidewire.errors import ConfigurationError
from tidewire.kit.lent import lender_of

__all__ = ["Told", "connection_of", "told"]


class Told(msgspec.Struct, frozen=True, kw_only=True, rename="upper", forbid_unknown_fields=True):
    """The dictionary ``TIDEWIRE`` of the settings; *store* is that of the database unless it is given."""

    source: str
    broker: str = "sqlite:///.tidewire/broker.db"
    database: str = "default"
    store: str = ""


def told() -> Told:
    """Return what the settings say.

    Raises:
        ConfigurationError: they say nothing, or something that cannot be.
    """
    given = getattr(settings, "TIDEWIRE", None)
    try:
        found = msgspec.convert(given, Told)
    except msgspec.ValidationError as error:
        raise ConfigurationError(
            f"the setting TIDEWIRE: {error}", hint='TIDEWIRE = {"SOURCE": "shop", "BROKER": "…"} in the settings module'
        ) from error
    if found.store:
        return found
    store = lender_of(connection_of(found)).url
    if not store:
        raise ConfigurationError(
            f"the database {found.database!r} cannot have a store: its ENGINE is neither PostgreSQL nor SQLite"
        )
    return msgspec.structs.replace(found, store=store)


def connection_of(found: Told) -> Any:
    """Return this thread's connection to the database that has the store."""
    return connections[found.database]
