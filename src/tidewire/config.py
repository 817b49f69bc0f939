"""URLs and environment to open resources: the one file that knows every adapter by name.

An adapter is imported inside the function that needs it, so that `tidewire --help` and `import tidewire` load none.
"""

from __future__ import annotations

import difflib
import os
import re
from collections.abc import Callable, Mapping
from contextlib import AbstractAsyncContextManager
from datetime import timedelta
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias
from urllib.parse import unquote, urlsplit

import msgspec

from tidewire.clock import SystemClock
from tidewire.errors import ConfigurationError, MissingExtra, StoreRefused, TransportRefused
from tidewire.kit.settings_file import settings_in
from tidewire.protocols import BrokerLook, Clock, Store, StoreLook, StoreTables, Transport
from tidewire.rules.findings import Section

if TYPE_CHECKING:
    from tidewire.runtime.sync_producer import SyncPublisher

__all__ = [
    "Settings",
    "broker_of_tests",
    "colour_refused",
    "examine_broker",
    "examine_store",
    "look_at_broker",
    "look_at_store",
    "masked",
    "open_store",
    "open_store_on",
    "open_transport",
    "settings_and_origins",
    "settings_from",
    "store_tables",
    "sync_publisher",
]

OpenTransport: TypeAlias = Callable[..., AbstractAsyncContextManager[Transport]]
"""What an entry point of the group ``tidewire.transports`` names: called with the URL and ``create=``."""
OpenStore: TypeAlias = Callable[..., AbstractAsyncContextManager[Store]]
"""What an entry point of the group ``tidewire.stores`` names: called with the URL and ``create= clock= poll=``."""

_BUILT_IN = ("memory", "sqlite")
_LATER = {"amqp", "amqps", "nats", "redis", "sns+sqs", "eventbridge", "mysql"}


class Settings(msgspec.Struct, frozen=True, kw_only=True):
    """How a service is run. Precedence: command line, environment (``TIDEWIRE_…``), ``tidewire.toml`` or
    ``[tool.tidewire]`` in ``pyproject.toml``, default.

    *broker*, *store*: URLs; no store means none. *lease*, *grace*, *max_hold*, *stuck_after* in seconds. *lanes*
    of topics that are created. *provision*: create missing topics and groups. *log*: ``text`` or ``json``.
    *relay*: publish the store's outbox from this process; false where `tidewire relay` does.
    *probe*: ``HOST:PORT`` where ``tidewire run`` answers health probes; none means nowhere.
    *services*: what ``tidewire dev`` runs, each as ``module:service``; none means all that it finds.
    """

    broker: str = "sqlite:///.tidewire/broker.db"
    store: str = ""
    lease: float = 30.0
    grace: float = 10.0
    max_hold: float = 600.0
    stuck_after: float = 60.0
    lanes: int = 8
    provision: bool = False
    log: str = "text"
    probe: str = ""
    relay: bool = True
    services: tuple[str, ...] = ()

    def seconds(self, name: str) -> timedelta:
        """Return the setting *name* as a duration."""
        return timedelta(seconds=getattr(self, name))

    def probe_address(self) -> tuple[str, int] | None:
        """Return host and port of *probe*, or None where there is none."""
        return _address(self.probe) if self.probe else None


def settings_from(
    environ: Mapping[str, str] | None = None,
    *,
    directory: Path | None = None,
    assumed: Mapping[str, object] | None = None,
    **given: object,
) -> Settings:
    """Return the effective settings; *given* (the command line) wins, None means not given.

    *assumed* stands in the place of the defaults, for a command that has others.

    ``TIDEWIRE_BROKER_FILE`` and the like name a file that holds the value, for mounted secrets.

    Raises:
        ConfigurationError: names every unknown setting and every bad value at once, with "did you mean".
    """
    return settings_and_origins(environ, directory=directory, assumed=assumed, **given)[0]


def settings_and_origins(
    environ: Mapping[str, str] | None = None,
    *,
    directory: Path | None = None,
    assumed: Mapping[str, object] | None = None,
    **given: object,
) -> tuple[Settings, Mapping[str, str]]:
    """Return the effective settings, and where each that is no default was found: a file, a variable, the command line.

    The rest is as `settings_from`.
    """
    environ = os.environ if environ is None else environ
    problems: list[str] = []
    values: dict[str, object] = dict(assumed or {})
    origins: dict[str, str] = {}
    known = {field.name: field for field in msgspec.structs.fields(Settings)}
    sources = [settings_in(directory or Path.cwd(), problems), _from_environment(environ, problems)]
    sources.append({name: (value, "the command line") for name, value in given.items() if value is not None})
    for source in sources:
        for name, (value, where) in source.items():
            if name not in known:
                problems.append(f"{where}: unknown setting {name!r}{_did_you_mean(name, known)}")
                continue
            if name == "services" and isinstance(value, str):
                value = [part.strip() for part in value.split(",") if part.strip()]
            try:
                values[name] = msgspec.convert(value, known[name].type, strict=not isinstance(value, str))
                origins[name] = where
            except msgspec.ValidationError as error:
                problems.append(f"{where}: {name}: {error}")
    problems += _impossible(values)
    if problems:
        raise ConfigurationError("; ".join(problems), hint="docs/settings.md lists every setting")
    return msgspec.convert(values, Settings), origins


def open_transport(url: str, *, create: bool = True) -> AbstractAsyncContextManager[Transport]:
    """Return the context manager that opens the broker at *url*: ``memory://``, ``sqlite:///path``,
    ``postgresql://user@host/database``, ``kafka://host:9092``, or what a package provides: the entry point of the
    group ``tidewire.transports`` whose name is the scheme.

    Without *create* a file that is not there, or a database without our tables, is refused, for whoever only looks.

    Raises:
        ConfigurationError: not a URL of a broker; names what it could be, or the package that cannot be loaded.
        MissingExtra: a client library is not installed.
        TransportRefused: no such file.
    """
    scheme = _scheme(url, "broker")
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
    if scheme not in _BUILT_IN:
        provided: OpenTransport = _provided(url, "broker", "tidewire.transports")
        return provided(url, create=create)
    path = _path(url, "broker")
    if scheme == "memory":
        from tidewire.transports.memory import open_memory_transport

        return open_memory_transport()
    if not create and not Path(path).exists():
        raise TransportRefused(
            f"there is no broker file {path}", hint="name it with --broker or TIDEWIRE_BROKER, or start a service first"
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
    scheme = _scheme(url, "store")
    if scheme == "postgresql":
        _need_psycopg("store")
        from tidewire.stores.postgres import open_postgres_store

        return open_postgres_store(url, clock=clock, poll=poll, provision=provision and create)
    if scheme not in _BUILT_IN:
        provided: OpenStore = _provided(url, "store", "tidewire.stores")
        return provided(url, create=create, clock=clock, poll=poll)
    path = _path(url, "store")
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
    scheme = _scheme(store, "store")
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

    return SyncPublisher(source, SqliteSyncOutbox(_path(store, "store"), clock))


def examine_broker(url: str, section: Section, *, now_us: int, full: bool) -> bool:
    """Look at where the broker at *url* lies, note it in *section*, and say whether it can be looked at. Blocks.

    Raises:
        ConfigurationError: as `open_transport`.
    """
    if _scheme(url, "broker") != "sqlite":
        return True
    from tidewire.kit.sqlite_health import examine_file
    from tidewire.transports.sqlite.schema import BROKER

    return examine_file(_path(url, "broker"), BROKER, section=section, now_us=now_us, full=full)


def examine_store(url: str, section: Section, *, now_us: int, full: bool) -> bool:
    """Look at where the store at *url* lies, as `examine_broker` does."""
    if _scheme(url, "store") == "postgresql":
        _need_psycopg("store")
        from tidewire.stores.postgres.look import examine_postgres_store

        return examine_postgres_store(url, section)
    if _scheme(url, "store") != "sqlite":
        return True
    from tidewire.kit.sqlite_health import examine_file
    from tidewire.stores.sqlite.schema import STORE

    return examine_file(_path(url, "store"), STORE, section=section, now_us=now_us, full=full)


def broker_of_tests() -> str:
    """Return ``TIDEWIRE_TEST_BROKER``, the URL on which users' tests run in real time, or nothing: in memory."""
    return os.environ.get("TIDEWIRE_TEST_BROKER", "")


def look_at_broker(url: str) -> BrokerLook:
    """Return what reads the broker at *url* and changes nothing.

    Raises:
        ConfigurationError: as `open_transport`.
    """
    if _scheme(url, "broker") == "sqlite":
        from tidewire.transports.sqlite.look import SqliteBrokerLook

        return SqliteBrokerLook(_path(url, "broker"))
    if _scheme(url, "broker") == "postgresql":
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
    scheme = _scheme(url, "store")
    if scheme == "postgresql":
        _need_psycopg("store")
        from tidewire.stores.postgres.look import PostgresStoreLook

        return PostgresStoreLook(url)
    if scheme == "sqlite":
        from tidewire.stores.sqlite.look import SqliteStoreLook

        return SqliteStoreLook(_path(url, "store"))
    from tidewire.kit.looks import OpenedStoreLook

    return OpenedStoreLook(partial(open_store, url, create=False))


def store_tables(url: str) -> StoreTables:
    """Return what sees to the tables of the store at *url*.

    Raises:
        ConfigurationError: not a URL of a store whose tables are tidewire's own.
    """
    scheme = _scheme(url, "store")
    if scheme == "postgresql":
        _need_psycopg("store")
        from tidewire.stores.postgres.look import PostgresTables

        return PostgresTables(url)
    if scheme != "sqlite":
        raise ConfigurationError(
            f"store {masked(url)!r} has no tables to see to", hint="sqlite:///path or postgresql://user@host/database"
        )
    from tidewire.stores.sqlite.look import SqliteTables

    return SqliteTables(_path(url, "store"))


def colour_refused(environ: Mapping[str, str] | None = None) -> bool:
    """Whether the person wants no colour on their terminal: ``NO_COLOR`` is set, or the terminal is ``dumb``."""
    environ = os.environ if environ is None else environ
    return bool(environ.get("NO_COLOR")) or environ.get("TERM") == "dumb"


def masked(url: str) -> str:
    """Return *url* without its password, and without those in its query, for people to read."""
    try:
        password = urlsplit(url).password
    except ValueError:
        return "<not a url>"
    shown = url.replace(f":{password}@", ":***@") if password else url
    return re.sub(r"(?i)((?:password|secret)[^=&]*=)[^&#]*", r"\1***", shown)


def _scheme(url: str, what: str) -> str:
    scheme, separator, _ = url.partition("://")
    if not separator or not scheme:
        raise ConfigurationError(
            f"{what} {masked(url)!r} is not a {what} URL{_did_you_mean(scheme, _BUILT_IN)}",
            hint=f"for example sqlite:///data/{what}.db; built-in schemes: {', '.join(_BUILT_IN)}",
        )
    return scheme


def _need_psycopg(what: str) -> None:
    from importlib.util import find_spec

    if find_spec("psycopg") is None:
        raise MissingExtra(f"a {what} in PostgreSQL needs psycopg", hint="pip install tidewire[postgres]")


def _path(url: str, what: str) -> str:
    scheme, _, rest = url.partition("://")
    if scheme == "memory":
        return ""
    if not rest.startswith("/") or not rest[1:]:
        raise ConfigurationError(
            f"{what} {url!r} names no file", hint="sqlite:///relative/path or sqlite:////absolute/path"
        )
    return unquote(rest[1:])


def _provided(url: str, what: str, group: str) -> Callable[..., Any]:
    """Return the function that an installed package provides for the scheme of *url*."""
    from importlib.metadata import entry_points  # slow to import, and only needed for what is not built in

    scheme = url.partition("://")[0]
    found = {point.name: point for point in entry_points(group=group)}
    point = found.get(scheme)
    if point is None:
        known = sorted({*_BUILT_IN, *found})
        later = " (it is not in this version)" if scheme in _LATER else _did_you_mean(scheme, known)
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


def _from_environment(environ: Mapping[str, str], problems: list[str]) -> dict[str, tuple[object, str]]:
    found: dict[str, tuple[object, str]] = {}
    for name, value in environ.items():
        if not name.startswith("TIDEWIRE_") or name.startswith("TIDEWIRE_TEST_"):
            continue
        setting = name.removeprefix("TIDEWIRE_").lower()
        if setting.endswith("_file"):
            try:
                value = Path(value).read_text().strip()
            except OSError as error:
                problems.append(f"{name}: cannot read the file it names ({error.strerror})")
                continue
            setting = setting.removesuffix("_file")
        found[setting] = (value, name)
    return found


def _impossible(values: Mapping[str, object]) -> list[str]:
    problems: list[str] = []
    for name in ("lease", "grace", "max_hold", "stuck_after", "lanes"):
        value = values.get(name, 1)
        if isinstance(value, (int, float)) and not 0 < value < 10**8:
            problems.append(f"{name} must be above zero, not {value}")
    if values.get("log", "text") not in ("text", "json"):
        problems.append(f"log must be text or json, not {values['log']!r}")
    if values.get("probe") and _address(str(values["probe"])) is None:
        problems.append(f"probe must be HOST:PORT, for example 0.0.0.0:8080, not {values['probe']!r}")
    broker, store = values.get("broker", Settings().broker), values.get("store")
    if store and _one_file(str(broker), str(store)):
        problems.append("broker and store cannot be the same file; give the store a file of its own")
    return problems


def _address(text: str) -> tuple[str, int] | None:
    """Return the host and port that *text* names (``[::1]:8080`` too), or None if it names none."""
    try:
        parts = urlsplit(f"//{text}")
        host, port = parts.hostname, parts.port
    except ValueError:
        return None
    return (host, port) if host and port is not None and parts.netloc == text else None


def _one_file(first: str, second: str) -> bool:
    """Whether two URLs name one file, however they spell it."""
    paths = [unquote(url.partition(":///")[2]) for url in (first, second) if url.startswith("sqlite:///")]
    return len(paths) == 2 and os.path.realpath(paths[0]) == os.path.realpath(paths[1])


def _did_you_mean(word: str, known: object) -> str:
    close = difflib.get_close_matches(word, list(known), n=1)  # type: ignore[call-overload]
    return f"; did you mean {close[0]!r}?" if close else ""
