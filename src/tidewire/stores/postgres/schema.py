"""The tables that tidewire keeps beside the user's own, in the service's PostgreSQL database.

Plain SQL, one list of statements per version; what has been released is never edited, later versions add to it.
``{t}`` stands before the name of each object: schema and prefix of the place.
"""

from __future__ import annotations

from collections.abc import Sequence
from zlib import crc32

from tidewire.errors import StoreRefused
from tidewire.kit.postgres.place import PostgresPlace

__all__ = ["VERSION", "check_version", "index_name", "lock_key", "upgrade_sql", "version_sql"]

_FIRST = (
    # Scopes of inbox marks, interned: the four texts would otherwise be in every row and index entry.
    """CREATE TABLE {t}scope (
    id integer GENERATED ALWAYS AS IDENTITY PRIMARY KEY, grp text NOT NULL, handler text NOT NULL,
    run bigint NOT NULL, source text NOT NULL, UNIQUE (grp, handler, run, source))""",
    # event_id: 16 bytes of a UUID, or the text of any other id. With UUIDv7 ids the end of the index that is written to
    # stays in memory, however many marks there are. The second index grows at its end alone, and lets pruning read
    # only what it deletes.
    """CREATE TABLE {t}mark (
    scope integer NOT NULL, at bigint NOT NULL, event_id bytea NOT NULL, digest bytea NOT NULL)""",
    "CREATE UNIQUE INDEX {i}mark_once ON {t}mark (scope, event_id)",
    "CREATE INDEX {i}mark_at ON {t}mark (at)",
    "CREATE TABLE {t}run (grp text PRIMARY KEY, run bigint NOT NULL)",
    # Only what may leave now. part: the hash partition of the key, so that one relay at a time reads a key in row
    # order. Sequences are not cached, so transactions that do not overlap keep their order.
    """CREATE TABLE {t}outbox (
    "row" bigint GENERATED ALWAYS AS IDENTITY, part smallint NOT NULL, xid xid8 NOT NULL DEFAULT pg_current_xact_id(),
    attempts integer NOT NULL DEFAULT 0, id text NOT NULL, source text NOT NULL, aggregatetype text NOT NULL,
    aggregateid text, type text NOT NULL, headers text NOT NULL, payload bytea NOT NULL,
    PRIMARY KEY (part, "row"))""",
    """CREATE TABLE {t}outbox_delayed (
    "row" bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY, due bigint NOT NULL, part smallint NOT NULL,
    id text NOT NULL, source text NOT NULL, aggregatetype text NOT NULL, aggregateid text, type text NOT NULL,
    headers text NOT NULL, payload bytea NOT NULL)""",
    "CREATE INDEX {i}outbox_due ON {t}outbox_delayed (due)",
    # Quarantine: what the broker refuses for good, and what comes behind it of the same key, under its old row.
    """CREATE TABLE {t}outbox_refused (
    "row" bigint PRIMARY KEY, part smallint NOT NULL, id text NOT NULL, source text NOT NULL,
    aggregatetype text NOT NULL, aggregateid text, type text NOT NULL, headers text NOT NULL, payload bytea NOT NULL,
    attempts integer NOT NULL, detail text NOT NULL, at bigint NOT NULL)""",
    "CREATE INDEX {i}outbox_refused_key ON {t}outbox_refused USING hash (aggregateid)",
    # The relays that are alive, and who reads which partition of the outbox; judged by the database's clock. The token
    # grows with every change of hands.
    """CREATE TABLE {t}relay (owner text PRIMARY KEY, until timestamptz NOT NULL)""",
    """CREATE TABLE {t}partition (
    part smallint PRIMARY KEY, owner text NOT NULL, token bigint NOT NULL, until timestamptz NOT NULL)""",
    "INSERT INTO {t}partition SELECT part, '', 0, '-infinity' FROM generate_series(0, 63) AS part",
    """CREATE TABLE {t}attempt (
    grp text NOT NULL, source text NOT NULL, event_id text NOT NULL, starts integer NOT NULL, failure text NOT NULL,
    PRIMARY KEY (grp, source, event_id))""",
    """CREATE TABLE {t}held (
    sequence bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY, grp text NOT NULL, topic text NOT NULL,
    key text NOT NULL, source text NOT NULL, event_id text NOT NULL, state text NOT NULL, due bigint,
    UNIQUE (grp, topic, key, source, event_id))""",
    "CREATE INDEX {i}held_head ON {t}held (grp, topic, key, sequence)",
    "CREATE TABLE {t}lane (grp text NOT NULL, lane text NOT NULL, epoch bigint NOT NULL, PRIMARY KEY (grp, lane))",
    # Recurring runs: the rule in one line, when it is due next, and whose lease is on it.
    """CREATE TABLE {t}timetable (
    name text PRIMARY KEY, rule text NOT NULL, due bigint NOT NULL, owner text NOT NULL, until timestamptz NOT NULL)""",
    # Which store this is: what is written through a caller's connection must be in the database that is relayed.
    "CREATE TABLE {t}store (id uuid PRIMARY KEY DEFAULT gen_random_uuid())",
    "INSERT INTO {t}store DEFAULT VALUES",
)

_MIGRATIONS: tuple[tuple[str, ...], ...] = (_FIRST,)
VERSION = len(_MIGRATIONS)


def index_name(place: PostgresPlace, name: str) -> str:
    """Return the plain name of an index or constraint, as errors say it."""
    return f"{place.prefix}{name}"


def lock_key(place: PostgresPlace) -> int:
    """Return the key of the advisory lock under which the tables of *place* are made and upgraded."""
    return crc32(f"tidewire store {place.schema}.{place.prefix}".encode())


def version_sql(place: PostgresPlace) -> str:
    """Return the query for the version of the tables; no such table means that there are none."""
    return f"SELECT max(version) FROM {place.named('schema')}"


def upgrade_sql(place: PostgresPlace, version: int) -> Sequence[str]:
    """Return the statements that bring tables of *version* (0: none) up to date, to be run in one transaction."""
    done: list[str] = []
    if version == 0:
        if place.schema != "public":
            done.append(f"CREATE SCHEMA IF NOT EXISTS {place.schema}")
        done.append(
            f"CREATE TABLE {place.named('schema')} (\n"
            "    version integer PRIMARY KEY, at timestamptz NOT NULL DEFAULT now())"
        )
    for number, statements in enumerate(_MIGRATIONS[version:], version + 1):
        done += [_filled(statement, place) for statement in statements]
        done.append(f"INSERT INTO {place.named('schema')} (version) VALUES ({number})")
    return done


def check_version(place: PostgresPlace, version: int) -> None:
    """Nothing, if tables of *version* are those of this tidewire.

    Raises:
        StoreRefused: they are missing, older or newer; the hint says what to do.
    """
    if version == VERSION:
        return
    if version > VERSION:
        raise StoreRefused(
            f"{place.shown}: the store's tables are of version {version}, and this tidewire knows {VERSION}",
            hint="run the tidewire that upgraded them, or a newer one",
        )
    what = "has no tables of tidewire" if version == 0 else f"has tables of version {version}, and {VERSION} is needed"
    raise StoreRefused(
        f"{place.shown}: the store {what}",
        hint="`tidewire store upgrade --store URL` makes them; `tidewire store sql` prints the SQL",
    )


def _filled(statement: str, place: PostgresPlace) -> str:
    return statement.replace("{t}", place.named("")).replace("{i}", place.prefix)
