"""Looking at a PostgreSQL store from outside, and seeing to its tables."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Sequence
from contextlib import asynccontextmanager

from tidewire.errors import StoreError
from tidewire.kit.postgres.place import PostgresPlace, postgres_place
from tidewire.kit.postgres.pool import PostgresPool
from tidewire.kit.postgres.text import given, kept
from tidewire.kit.postgres.wire import Wire
from tidewire.model import InboxState, OutboxState
from tidewire.rules.findings import Section
from tidewire.rules.relaying import BEHIND
from tidewire.stores.postgres.access import OLDEST_WRITE, Access
from tidewire.stores.postgres.migrate import STORE_ERRORS, read_version, upgrade
from tidewire.stores.postgres.schema import VERSION, check_version, upgrade_sql

__all__ = ["PostgresStoreLook", "PostgresTables", "examine_postgres_store"]


class PostgresStoreLook:
    """See `tidewire.protocols.StoreLook`. Each call connects anew."""

    def __init__(self, url: str) -> None:
        self._place = postgres_place(url)

    async def marked(self, group: str) -> frozenset[str]:
        """Read the scopes of the marks; a store whose tables are still to be made has none."""
        async with _connected(self._place) as (wire, access):
            if await read_version(wire, self._place) == 0:
                return frozenset()
            sql = f"SELECT DISTINCT handler FROM {self._place.named('scope')} WHERE grp = $1::text"
            answers = await access.run("reading scopes of marks", (sql, (kept(group),)))
        return frozenset(given(handler) for (handler,) in answers.rows())

    async def outbox(self) -> OutboxState:
        """Count the rows, and look for a lease that has not ended."""
        async with _connected(self._place) as (wire, access):
            check_version(self._place, await read_version(wire, self._place))
            named = self._place.named
            sql = (
                f"SELECT (SELECT count(*) FROM {named('outbox')}), (SELECT count(*) FROM {named('outbox_delayed')}), "
                f"(SELECT min(due) FROM {named('outbox_delayed')}), "
                f"EXISTS (SELECT 1 FROM {named('partition')} WHERE until > clock_timestamp()), {OLDEST_WRITE}, "
                "count(*), min(at), count(*) FILTER (WHERE detail = $1::text) "
                f"FROM {named('outbox_refused')}"
            )
            row = (await access.run("looking at the outbox", (sql, (BEHIND,)))).rows()[0]
        ready, delayed, next_due, relayed, oldest, stuck, since, behind = row
        return OutboxState(
            ready=ready, delayed=delayed, stuck=stuck, stuck_since=since, relayed=relayed, behind=behind,
            next_due=next_due, oldest_write=oldest,
        )  # fmt: skip

    async def inbox(self) -> Sequence[InboxState]:
        """Count the marks; that reads all of them."""
        async with _connected(self._place) as (wire, access):
            check_version(self._place, await read_version(wire, self._place))
            sql = (
                f"SELECT s.grp, count(*), min(m.at) FROM {self._place.named('mark')} AS m "
                f"JOIN {self._place.named('scope')} AS s ON s.id = m.scope GROUP BY s.grp ORDER BY s.grp"
            )
            rows = (await access.run("counting inbox marks", (sql, ()))).rows()
        return [InboxState(group=given(group), marks=marks, oldest=oldest) for group, marks, oldest in rows]


class PostgresTables:
    """See `tidewire.protocols.StoreTables`."""

    def __init__(self, url: str) -> None:
        self._place = postgres_place(url)

    @property
    def needed(self) -> int:
        """The version of the schema."""
        return VERSION

    async def versions(self) -> tuple[int, int]:
        """Ask the version table."""
        async with _connected(self._place) as (wire, _):
            return await read_version(wire, self._place), VERSION

    async def upgrade(self) -> tuple[int, int]:
        """Make or change the tables, in one transaction."""
        async with _connected(self._place) as (wire, _):
            return await upgrade(wire, self._place)

    def sql(self, version: int) -> Sequence[str]:
        """Return what `upgrade` would run."""
        return upgrade_sql(self._place, version)

    async def facts(self) -> Sequence[tuple[str, str]]:
        """Ask the server's own statistics: no table is read from end to end."""
        async with _connected(self._place) as (_, access):
            sizes = (
                "SELECT c.relname, greatest(c.reltuples, s.n_live_tup, 0)::bigint, pg_total_relation_size(c.oid) "
                "FROM pg_class AS c JOIN pg_namespace AS n ON n.oid = c.relnamespace "
                "LEFT JOIN pg_stat_all_tables AS s ON s.relid = c.oid "
                "WHERE n.nspname = $1::text AND starts_with(c.relname::text, $2::text) AND c.relkind = 'r' ORDER BY 1"
            )
            answers = await access.run("reading the sizes of tables", (sizes, (self._place.schema, self._place.prefix)))
        return [
            (f"{self._place.schema}.{name}", f"about {rows:,} rows, {size / 1_048_576:,.1f} MiB")
            for name, rows, size in answers.rows()
        ]


def examine_postgres_store(url: str, section: Section) -> bool:
    """Look at the server of the store at *url*, note it in *section*, and say whether it can be looked at. Blocks."""
    place = postgres_place(url)
    try:
        return asyncio.run(_examine(place, section))
    except StoreError as error:
        section.error("store-unavailable", error.message, fix=error.hint or "start it, or name another with --store")
        return False


async def _examine(place: PostgresPlace, section: Section) -> bool:
    async with _connected(place) as (wire, access):
        version = await read_version(wire, place)
        sql = (
            "SELECT current_setting('server_version'), current_setting('synchronous_commit'), "
            "current_setting('max_connections')::integer, current_setting('fsync')"
        )
        server, synchronous, connections, fsync = (await access.run("reading settings", (sql, ()))).rows()[0]
    section.fact("server", f"PostgreSQL {server}, at most {connections} connections")
    section.fact("tables", f"version {version} of {VERSION}")
    if synchronous == "off" or fsync == "off":
        name = "fsync" if fsync == "off" else "synchronous_commit"
        section.warning(
            "store-not-durable",
            f"{name} is off: what was committed last is lost with the machine",
            fix=f"set {name} = on for this database or role",
        )
    if version != VERSION:
        section.error(
            "store-tables",
            f"its tables are of version {version}, and {VERSION} is needed",
            fix="`tidewire store upgrade`"
            if version < VERSION
            else "run the tidewire that upgraded them, or a newer one",
        )
        return False
    return True


@asynccontextmanager
async def _connected(place: PostgresPlace) -> AsyncGenerator[tuple[Wire, Access]]:
    pool = PostgresPool(place, STORE_ERRORS, size=2)
    try:
        async with pool.lent() as wire:
            yield wire, Access(place, pool)
    finally:
        await pool.close(1.0)
