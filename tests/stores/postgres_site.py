"""The PostgreSQL store as the conformance suite wants it, with a table of the user's in it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from tidewire.stores.postgres import open_postgres_store
from tidewire.testing.stores import Site


class PostgresRows:
    """The user's rows: a table in the store's schema."""

    def __init__(self, table: str) -> None:
        self._table = table

    async def prepare(self, store: Any) -> None:
        """Make the table."""
        unit = store.unit()
        await unit.tx.execute(f"CREATE TABLE IF NOT EXISTS {self._table} (name text PRIMARY KEY)")
        await (await unit.seal())

    async def insert(self, unit: Any, name: str) -> None:
        """Insert a row."""
        await unit.tx.execute(f"INSERT INTO {self._table} VALUES ($1)", (name,))

    def insert_now(self, unit: Any, name: str) -> None:
        """The same from a thread."""
        unit.sync_tx.execute(f"INSERT INTO {self._table} VALUES ($1)", (name,))

    async def names(self, store: Any) -> Sequence[str]:
        """Return the committed rows."""
        unit = store.unit()
        rows = await unit.tx.fetchall(f"SELECT name FROM {self._table}")
        await unit.rollback()
        return [row["name"] for row in rows]


def postgres_site(url: str, schema: str) -> Site:
    """Return a store in *schema* of the database at *url*, which other processes may open, too."""
    place = f"{url}?schema={schema}"
    return Site(
        open=lambda clock: open_postgres_store(place, clock=clock, provision=True),
        rows=PostgresRows(f"{schema}.named"),
        own_time=True,
        partitioned=True,
        shared=True,
        durable=True,
        elsewhere=("postgres_site:postgres_site", url, schema),
    )
