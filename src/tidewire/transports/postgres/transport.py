"""The PostgreSQL broker: a durable log in one database, shared by the processes of many machines."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from datetime import timedelta
from functools import partial
from typing import Literal

import psycopg

from tidewire.chance import Ids, UUID7Ids
from tidewire.kit.postgres.errors import state_of
from tidewire.kit.postgres.place import PostgresPlace, postgres_place
from tidewire.kit.sqllog.log import MESSAGE_BYTES_MAX
from tidewire.kit.sqllog.transport import opened
from tidewire.kit.threads import to_the_end
from tidewire.model import Capabilities
from tidewire.protocols import Clock
from tidewire.transports.postgres.enlisting import PostgresTransport
from tidewire.transports.postgres.home import PostgresHome
from tidewire.transports.postgres.schema import VERSION, demand_tables, make_tables, read_version
from tidewire.transports.postgres.session import ERRORS, Facts, Limits, Session

__all__ = ["PostgresTransport", "capabilities_of", "open_postgres_transport"]

_MAY_NOT = "42501"


def capabilities_of(facts: Facts) -> Capabilities:
    """Return what a broker on a server with these *facts* promises."""
    durability: Literal["os", "fsync", "replicated"] = "fsync" if facts.fsync else "os"
    if facts.replicated and facts.fsync:
        durability = "replicated"
    return Capabilities(
        order=True,
        fencing=True,
        atomic=True,
        dedup=timedelta(days=7),
        native_attempts=True,
        replay=True,
        delay_max=None,
        lease=True,
        batch_max=None,
        durability=durability,
        message_bytes_max=MESSAGE_BYTES_MAX,
        settle_window=None,
    )


@asynccontextmanager
async def open_postgres_transport(
    url: str,
    *,
    create: bool = True,
    clock: Clock | None = None,
    ids: Ids | None = None,
    limits: Limits = Limits(),  # noqa: B008 - a value
) -> AsyncGenerator[PostgresTransport]:
    """Open the broker in the database at *url*, and close it on leaving. With *create*, tables that are missing are
    made and older ones upgraded.

    *clock*: only its ticks are used, between two answers of the database, whose clock judges leases and due times.

    Raises:
        ConfigurationError: not such a URL.
        TransportRefused: the server does not let us in, the tables are missing or of a newer tidewire.
        TransportUnavailable: it cannot be reached, or takes no writes.
    """
    place = postgres_place(url)
    name = (ids or UUID7Ids()).event_id().replace("-", "")
    home = PostgresHome(place, name=name, ticks=clock, limits=limits)
    try:
        facts = await to_the_end(partial(_prepared, home, create=create))
        home.hear_others()
        async with opened(home, lambda shared: PostgresTransport(shared, capabilities_of(facts))) as transport:
            yield transport
    finally:
        await to_the_end(home.close)


def _prepared(home: PostgresHome, *, create: bool) -> Facts:
    session = home.begin()
    try:
        _check_tables(session, home.place, create=create)
    except psycopg.Error as error:
        raise ERRORS.typed(f"making the tables of {home.what}", error) from error
    return session.facts


def _check_tables(session: Session, place: PostgresPlace, *, create: bool) -> None:
    version = read_version(session.connection, place)
    if create and version < VERSION:
        try:
            make_tables(session.connection, place)
        except psycopg.Error as error:
            if state_of(error) != _MAY_NOT:
                raise
        else:
            version = VERSION
    demand_tables(version, place)
