"""Whole schemas of a PostgreSQL database, for whoever needs one for a while."""

from __future__ import annotations

import psycopg

from tidewire.errors import StoreRefused, StoreUnavailable
from tidewire.kit.postgres.errors import PostgresErrors
from tidewire.kit.postgres.place import PostgresPlace
from tidewire.kit.postgres.wire import connect_wire

__all__ = ["drop_schema"]

_ERRORS = PostgresErrors(StoreUnavailable, StoreRefused)


async def drop_schema(place: PostgresPlace) -> None:
    """Drop the schema of *place* with everything in it; nothing where there is none.

    Raises:
        StoreUnavailable: the server cannot be reached.
        StoreRefused: it is not ours to drop.
    """
    try:
        wire = await connect_wire(place.url)
    except psycopg.Error as error:
        raise _ERRORS.connecting(error, place.shown) from error
    try:
        answers = await wire.run((f"DROP SCHEMA IF EXISTS {place.schema} CASCADE", ()))
        if answers.error is not None:
            raise _ERRORS.typed(f"dropping the schema {place.schema}", answers.error) from answers.error
    finally:
        wire.close()
