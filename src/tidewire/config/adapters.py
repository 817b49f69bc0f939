"""URLs to open resources: the one file that knows every adapter by name.

An adapter is imported inside the function that needs it, so that `tidewire --help` and `import tidewire` load none.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractAsyncContextManager
from datetime import timedelta
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

from tidewire.clock import SystemClock
from tidewire.config.urls import BUILT_IN, EXTRAS, did_you_mean, masked, path_in, scheme_of
from tidewire.errors import ConfigurationError, MissingExtra, StoreRefused, TransportRefused
from tidewire.protocols import BrokerLook, Clock, Store, StoreLook, StoreTables, Transport
from tidewire.rules.findings import Section

if TYPE_CHECKING:
    from tidewire.runtime.sync_producer import SyncPublisher

__all__ = [
    "examine_broker",
    "examine_store",
    "look_at_broker",
    "look_at_store",
    "open_store",
    "open_store_on",
    "open_transport",
    "store_tables",
    "sync_publisher",
]

OpenTransport: TypeAlias = Callable[..., AbstractAsyncContextManager[Transport]]
"""What an entry point of the group ``tidewire.transports`` names: called with the URL and ``create=``."""
OpenStore: TypeAlias = Callable[..., AbstractAsyncContextManager[Store]]
"""What an entry point of the group ``tidewire.stores`` names: called with the URL and ``create= clock= poll=``."""

_LATER = {"nats", "redis", "sns+sqs", "eventbridge", "mysql"}


def open_transport(url: str, *, create: bool = True) -> AbstractAsyncContextManager[Transport]:
    """Return the context manager that opens the broker at *url*: ``memory://``, ``sqlite:///path``,
    ``postgresql://user@host/database``, ``kafka://host:9092``, ``amqp://host`` and ``amqps://host``, or what a package
    provides: the entry point of the group ``tidewire.transports`` whose name is the scheme.

    Without *create* a file that is not there, or a database without our tables, is refused, for whoever only looks.

    Raises:
        ConfigurationError: not a URL of a broker; names what it could be, or the package that cannot be loaded.
        MissingExtra: a client library is not installed.
        TransportRefused: no such file.
    """
    scheme = scheme_of(url, "broker")
    if scheme == "postgresql":
        try:
            from tidewire.transports.postgres import open_postgres_transport
        except ImportError as error:
            raise MissingExtra("a broker in PostgreSQL needs psycopg", hint="pip install tidewire[postgres]") from error
        return open_postgres_transport(url, create=create)
    if scheme == "kafka":
        try:
            from tidewire.transports.kafka import open_kafka_transport
        except ImportError as error:
            raise MissingExtra("kafka:// needs confluent-kafka", hint="pip install tidewire[kafka]") from error
        return open_kafka_transport(url)
    if scheme in ("amqp", "amqps"):
        try:
            from tidewire.transports.rabbitmq import open_rabbit_transport
        except ImportError as error:
            raise MissingExtra("amqp:// needs aiormq", hint="pip install tidewire[rabbitmq]") from error
        return open_rabbit_transport(url)
    if scheme not in BUILT_IN:
        provided: OpenTransport = _provided(url, "broker", "tidewire.transports")
        return provided(url, create=create)
    path = path_in(url, "broker")
    if scheme == "memory":
        from tidewire.transports.memory import open_memory_transport

        return open_memory_transport()
    if not create and not Path(path).exists():
        raise TransportRefused(
            f"there is no broker file {path}",
            hint="name it with --broker or TIDEWIRE_BROKER; a service that starts with --provision makes it",
        )
    from tidewire.transports.sqlite import open_sqlite_transport

    return open_sqlite_transport(path)


def open_store(
    url: str,
    *,
    create: bool = True,
    provision: bool = False,
    clock: Clock | None = None,
    poll: timedelta = timedelta(milliseconds=250),
) -> AbstractAsyncContextManager[Store]:
    """Return the context manager that opens the store at *url*: ``memory://``, ``sqlite:///path``,
    ``postgresql://user@host/database``, or what a package provides: the entry point of the group ``tidewire.stores``
    whose name is the scheme.

    Without *create* a file that is not there is refused, for whoever only looks. *provision*: make or upgrade the
    tables in a PostgreSQL database; else they must be there. *clock* is the system's unless given; *poll*: how often
    to look for what other processes have put into the outbox.

    Raises:
        ConfigurationError: not a URL of a store; names what it could be, or the package that cannot be loaded.
        MissingExtra: a client library is not installed.
        StoreRefused: no such file.
    """
    scheme = scheme_of(url, "store")
    if scheme == "postgresql":
        _need_psycopg("store")
        from tidewire.stores.postgres import open_postgres_store

        return open_postgres_store(url, clock=clock, poll=poll, provision=provision and create)
    if scheme not in BUILT_IN:
        provided: OpenStore = _provided(url, "store", "tidewire.stores")
        return provided(url, create=create, clock=clock, poll=poll)
    path = path_in(url, "store")
    if scheme == "memory":
        from tidewire.stores.memory import open_memory_store

        return open_memory_store(clock=clock)
    if not create and not Path(path).exists():
        raise StoreRefused(f"there is no store file {path}", hint="name it with --store or TIDEWIRE_STORE")
    from tidewire.stores.sqlite import open_sqlite_store

    return open_sqlite_store(path, clock=clock, poll=poll)


def open_store_on(
    pool: object,
    *,
    url: str = "",
    clock: Clock | None = None,
    poll: timedelta = timedelta(milliseconds=250),
    provision: bool = False,
) -> AbstractAsyncContextManager[Store]:
    """Return the context manager that opens a store whose units run on *pool*, the caller's own, which stays open.

    ``context.tx`` is what the pool lends: an ``AsyncSession`` of SQLAlchemy's ``AsyncEngine`` or
    ``async_sessionmaker``, a ``Session`` of its ``Engine`` or ``sessionmaker`` for ``def`` handlers. Mark, effect and
    outgoing events commit in that one transaction. The rest goes over connections of the store's own to *url*, which
    is the pool's unless given. *provision*: make or upgrade the store's tables; else they must be there.

    Raises:
        ConfigurationError: no pool that is known, or one that leads to another database.
        StoreRefused, StoreUnavailable: as the store at that URL.
    """
    from tidewire.stores.lent import open_lent_store

    return open_lent_store(pool, url, partial(open_store, clock=clock, poll=poll, provision=provision))


def sync_publisher(source: str, *, store: str, clock: Clock | None = None) -> SyncPublisher:
    """Return what publishes from synchronous code into the outbox of the store at the URL *store*, which is not opened.

    *source* is the CloudEvents source of what it publishes: the name of the service whose store it is. A service, or
    a publisher that is opened with the same store, relays what it has written.

    Raises:
        ConfigurationError: not a URL of a store that other libraries can write into.
    """
    clock = clock or SystemClock()
    scheme = scheme_of(store, "store")
    from tidewire.runtime.sync_producer import SyncPublisher

    if scheme == "postgresql":
        _need_psycopg("store")
        from tidewire.kit.postgres.place import postgres_place
        from tidewire.stores.postgres.sync_outbox import PostgresSyncOutbox

        return SyncPublisher(source, PostgresSyncOutbox(postgres_place(store), clock))
    if scheme != "sqlite":
        raise ConfigurationError(
            f"store {masked(store)!r} has no transactions of other libraries",
            hint="use a store at sqlite:///… or postgresql://…",
        )
    from tidewire.stores.sqlite.callers import SqliteSyncOutbox

    return SyncPublisher(source, SqliteSyncOutbox(path_in(store, "store"), clock))


def examine_broker(url: str, section: Section, *, now_us: int, full: bool) -> bool:
    """Look at where the broker at *url* lies, note it in *section*, and say whether it can be looked at. Blocks.

    Raises:
        ConfigurationError: as `open_transport`.
    """
    if scheme_of(url, "broker") != "sqlite":
        return True
    from tidewire.kit.sqlite_health import examine_file
    from tidewire.transports.sqlite.schema import BROKER

    return examine_file(path_in(url, "broker"), BROKER, section=section, now_us=now_us, full=full)


def examine_store(url: str, section: Section, *, now_us: int, full: bool) -> bool:
    """Look at where the store at *url* lies, as `examine_broker` does."""
    if scheme_of(url, "store") == "postgresql":
        _need_psycopg("store")
        from tidewire.stores.postgres.look import examine_postgres_store

        return examine_postgres_store(url, section)
    if scheme_of(url, "store") != "sqlite":
        return True
    from tidewire.kit.sqlite_health import examine_file
    from tidewire.stores.sqlite.schema import STORE

    return examine_file(path_in(url, "store"), STORE, section=section, now_us=now_us, full=full)


def look_at_broker(url: str) -> BrokerLook:
    """Return what reads the broker at *url* and changes nothing.

    Raises:
        ConfigurationError: as `open_transport`.
    """
    if scheme_of(url, "broker") == "sqlite":
        from tidewire.transports.sqlite.look import SqliteBrokerLook

        return SqliteBrokerLook(path_in(url, "broker"))
    if scheme_of(url, "broker") == "postgresql":
        try:
            from tidewire.transports.postgres.look import PostgresBrokerLook
        except ImportError as error:
            raise MissingExtra("a broker in PostgreSQL needs psycopg", hint="pip install tidewire[postgres]") from error
        return PostgresBrokerLook(url)
    from tidewire.kit.looks import OpenedBrokerLook

    return OpenedBrokerLook(partial(open_transport, url, create=False))


def look_at_store(url: str) -> StoreLook:
    """Return what reads the store at *url* and changes nothing.

    Raises:
        ConfigurationError: as `open_store`.
    """
    scheme = scheme_of(url, "store")
    if scheme == "postgresql":
        _need_psycopg("store")
        from tidewire.stores.postgres.look import PostgresStoreLook

        return PostgresStoreLook(url)
    if scheme == "sqlite":
        from tidewire.stores.sqlite.look import SqliteStoreLook

        return SqliteStoreLook(path_in(url, "store"))
    from tidewire.kit.looks import OpenedStoreLook

    return OpenedStoreLook(partial(open_store, url, create=False))


def store_tables(url: str) -> StoreTables:
    """Return what sees to the tables of the store at *url*.

    Raises:
        ConfigurationError: not a URL of a store whose tables are tidewire's own.
    """
    scheme = scheme_of(url, "store")
    if scheme == "postgresql":
        _need_psycopg("store")
        from tidewire.stores.postgres.look import PostgresTables

        return PostgresTables(url)
    if scheme != "sqlite":
        raise ConfigurationError(
            f"store {masked(url)!r} has no tables to see to", hint="sqlite:///path or postgresql://user@host/database"
        )
    from tidewire.stores.sqlite.look import SqliteTables

    return SqliteTables(path_in(url, "store"))


def _need_psycopg(what: str) -> None:
    from importlib.util import find_spec

    if find_spec("psycopg") is None:
        raise MissingExtra(f"a {what} in PostgreSQL needs psycopg", hint="pip install tidewire[postgres]")


def _provided(url: str, what: str, group: str) -> Callable[..., Any]:
    """Return the function that an installed package provides for the scheme of *url*."""
    from importlib.metadata import entry_points  # slow to import, and only needed for what is not built in

    scheme = url.partition("://")[0]
    found = {point.name: point for point in entry_points(group=group)}
    point = found.get(scheme)
    if point is None:
        known = sorted({*BUILT_IN, *EXTRAS[what], *found})
        later = " (it is not in this version)" if scheme in _LATER else did_you_mean(scheme, known)
        raise ConfigurationError(
            f"{what} {masked(url)!r}: no installed package provides {scheme!r}{later}",
            hint=f"known schemes: {', '.join(known)}; a package adds one by an entry point in the group {group}",
        )
    package = point.dist.name if point.dist is not None else point.value
    try:
        opener: Callable[..., Any] = point.load()
    except Exception as error:
        raise ConfigurationError(
            f"{what} {masked(url)!r}: the package {package} provides {scheme!r}, and {point.value} cannot be loaded: "
            f"{type(error).__name__}: {error}",
            hint=f"install {package} again, or a version of it that fits this tidewire",
        ) from error
    return opener
