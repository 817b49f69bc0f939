"""Looking at a store's file from outside, without opening it for use."""

from __future__ import annotations

import asyncio
import sqlite3
from collections.abc import Sequence
from functools import partial
from pathlib import Path

from tidewire.clock import SystemClock
from tidewire.errors import StoreUnavailable
from tidewire.kit.sqlite_file import look_into
from tidewire.model import InboxState, OutboxState
from tidewire.protocols import Clock
from tidewire.rules.relaying import BEHIND
from tidewire.stores.sqlite.schema import STORE
from tidewire.stores.sqlite.store import boot_id, open_sqlite_store

__all__ = ["SqliteStoreLook", "SqliteTables"]


class SqliteStoreLook:
    """See `tidewire.protocols.StoreLook`. Each call opens the file at *path* anew and closes it."""

    def __init__(self, path: Path | str, *, clock: Clock | None = None) -> None:
        self._path = path
        self._clock = clock or SystemClock()

    async def marked(self, group: str) -> frozenset[str]:
        """Read the scopes of the marks; a store that a first start is still to make has none."""

        def read(connection: sqlite3.Connection) -> frozenset[str]:
            rows = connection.execute("SELECT DISTINCT handler FROM tidewire_scope WHERE grp = ?", (group,))
            return frozenset(handler for (handler,) in rows)

        def look() -> frozenset[str]:
            try:
                return look_into(self._path, STORE, read=read)
            except StoreUnavailable:
                if Path(self._path).exists():
                    raise
                return frozenset()

        return await asyncio.to_thread(look)

    async def outbox(self) -> OutboxState:
        """Count the rows, and look for a lease that has not ended."""
        return await asyncio.to_thread(partial(look_into, self._path, STORE, read=self._outbox))

    async def inbox(self) -> Sequence[InboxState]:
        """Count the marks."""
        return await asyncio.to_thread(partial(look_into, self._path, STORE, read=_inbox))

    def _outbox(self, connection: sqlite3.Connection) -> OutboxState:
        connection.execute("BEGIN")  # one state of the file for all that is read
        (ready,) = connection.execute("SELECT count(*) FROM tidewire_outbox").fetchone()
        delayed, next_due = connection.execute("SELECT count(*), min(due) FROM tidewire_outbox_delayed").fetchone()
        stuck, since, behind = connection.execute(
            "SELECT count(*), min(at), count(*) FILTER (WHERE detail = ?) FROM tidewire_outbox_refused", (BEHIND,)
        ).fetchone()
        (relays,) = connection.execute(
            "SELECT count(*) FROM tidewire_lease WHERE name = 'relay' AND boot = ? AND until > ?",
            (boot_id(), self._clock.ticks()),
        ).fetchone()
        connection.execute("COMMIT")
        return OutboxState(
            ready=ready, delayed=delayed, stuck=stuck, stuck_since=since, relayed=relays > 0, behind=behind,
            next_due=next_due,
        )  # fmt: skip


def _inbox(connection: sqlite3.Connection) -> Sequence[InboxState]:
    rows = connection.execute(
        "SELECT grp, count(*), min(at) FROM tidewire_mark JOIN tidewire_scope ON tidewire_scope.id = scope "
        "GROUP BY grp ORDER BY grp"
    )
    return [InboxState(group=group, marks=marks, oldest=oldest) for group, marks, oldest in rows]


class SqliteTables:
    """See `tidewire.protocols.StoreTables`. A service that starts upgrades its file by itself."""

    def __init__(self, path: Path | str) -> None:
        self._path = Path(path)

    @property
    def needed(self) -> int:
        """The number of migrations."""
        return len(STORE.migrations)

    async def versions(self) -> tuple[int, int]:
        """Read the version in the file's header; no file has none."""

        def read(connection: sqlite3.Connection) -> int:
            return int(connection.execute("PRAGMA user_version").fetchone()[0])

        def look() -> int:
            return look_into(self._path, STORE, read=read) if self._path.exists() else 0

        return await asyncio.to_thread(look), self.needed

    async def upgrade(self) -> tuple[int, int]:
        """Open the store, as a service would."""
        before, _ = await self.versions()
        async with open_sqlite_store(self._path):
            pass
        return before, self.needed

    def sql(self, version: int) -> Sequence[str]:
        """Return the statements of the migrations."""
        return [statement for statements in STORE.migrations[version:] for statement in statements]

    async def facts(self) -> Sequence[tuple[str, str]]:
        """Say how large the file is."""
        return [(str(self._path), f"{self._path.stat().st_size / 1_048_576:,.1f} MiB")] if self._path.exists() else []
