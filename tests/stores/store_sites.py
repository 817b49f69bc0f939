"""The stores of this repository as the conformance suite wants them, with a table of the user's in each."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractAsyncContextManager
from typing import Any

from tidewire.protocols import Clock
from tidewire.stores.memory import open_memory_store
from tidewire.stores.sqlite import open_sqlite_store
from tidewire.testing.stores import Site


class MemoryRows:
    """The user's rows in the memory store: keys of a mapping."""

    async def prepare(self, store: Any) -> None:
        """Nothing to make: a mapping takes any key."""

    async def insert(self, unit: Any, name: str) -> None:
        """Set the key, unless it is there."""
        if await unit.tx.get(("row", name)):
            raise KeyError(name)
        await unit.tx.put(("row", name), True)

    def insert_now(self, unit: Any, name: str) -> None:
        """The same from a thread."""
        if unit.sync_tx.get(("row", name)):
            raise KeyError(name)
        unit.sync_tx.put(("row", name), True)

    async def names(self, store: Any) -> Sequence[str]:
        """Return the committed keys."""
        return [key[1] for key in store.rows]


class SqliteRows:
    """The user's rows in the SQLite store: a table."""

    async def prepare(self, store: Any) -> None:
        """Make the table."""
        unit = store.unit()
        await unit.tx.execute("CREATE TABLE IF NOT EXISTS named (name TEXT PRIMARY KEY)")
        await (await unit.seal())

    async def insert(self, unit: Any, name: str) -> None:
        """Insert a row."""
        await unit.tx.execute("INSERT INTO named VALUES (?)", (name,))

    def insert_now(self, unit: Any, name: str) -> None:
        """The same from a thread."""
        unit.sync_tx.execute("INSERT INTO named VALUES (?)", (name,))

    async def names(self, store: Any) -> Sequence[str]:
        """Return the committed rows."""
        unit = store.unit()
        rows = await unit.tx.fetchall("SELECT name FROM named ORDER BY rowid")
        await unit.rollback()
        return [row[0] for row in rows]


Opened = Callable[[Clock], AbstractAsyncContextManager[Any]]


def memory_site(opened: Opened = lambda clock: open_memory_store(clock=clock), *, patience: float = 8.0) -> Site:
    """Return a store in memory; *opened* may put something between the suite and the store."""
    return Site(open=opened, rows=MemoryRows(), patience=patience)


def sqlite_site(path: str) -> Site:
    """Return a store in the file at *path*, which other processes may open, too."""
    return Site(
        open=lambda clock: open_sqlite_store(path, clock=clock),
        rows=SqliteRows(),
        shared=True,
        durable=True,
        elsewhere=("store_sites:sqlite_site", path),
    )
