"""Opening the PostgreSQL store."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Sequence
from contextlib import asynccontextmanager
from datetime import timedelta
from typing import Any

from tidewire.clock import SystemClock
from tidewire.kit.handles import CallersUnit, async_handle
from tidewire.kit.postgres.place import PostgresPlace, postgres_place
from tidewire.kit.postgres.pool import PostgresPool
from tidewire.model import Guard
from tidewire.protocols import Clock, Unit
from tidewire.stores.postgres.access import OLDEST_WRITE, Access
from tidewire.stores.postgres.backlog import PostgresBacklog
from tidewire.stores.postgres.inbox import PostgresInbox
from tidewire.stores.postgres.migrate import STORE_ERRORS, read_version, upgrade
from tidewire.stores.postgres.outbox import PostgresOutbox
from tidewire.stores.postgres.records import PostgresAttempts, PostgresHeldKeys, PostgresLanes, guard_sql
from tidewire.stores.postgres.schema import check_version, index_name
from tidewire.stores.postgres.statements import PostgresStatements
from tidewire.stores.postgres.timetable import PostgresTimetable
from tidewire.stores.postgres.tx import PostgresTx, SyncPostgresTx
from tidewire.stores.postgres.unit import Core, PostgresUnit
from tidewire.stores.postgres.wake import waking

__all__ = ["PostgresStore", "open_postgres_store"]

_OWN_CONNECTIONS = 3
_CLOSE_MAX = 5.0


class PostgresStore:
    """The service's own PostgreSQL database; see `tidewire.protocols.Store`.

    Each unit has a connection of its own while it runs, out of a bounded pool; what the store does besides has a few
    of its own, so that no unit waits for another. Leases are judged by the database's clock.
    """

    def __init__(self, place: PostgresPlace, *, clock: Clock, poll: timedelta) -> None:
        self.place = place
        self.pool = PostgresPool(place, STORE_ERRORS, size=place.connections)
        self.own = PostgresPool(place, STORE_ERRORS, size=_OWN_CONNECTIONS)
        access = self.access = Access(place, self.own)
        self.inbox = PostgresInbox(access, clock)
        self.attempts = PostgresAttempts(access)
        self.held = PostgresHeldKeys(access)
        self.lanes = PostgresLanes(access)
        self.timetable = PostgresTimetable(access)
        self.outbox = PostgresOutbox(access, clock, poll=poll)
        self.backlog = PostgresBacklog(access, self.outbox)
        self._core = Core(
            self.pool, STORE_ERRORS, self.outbox,
            guard_sql=guard_sql(access), mark_index=index_name(place, "mark_once"),
            handle=PostgresTx, sync_handle=SyncPostgresTx, loop=asyncio.get_running_loop(),
        )  # fmt: skip
        self.inbox.attach(self._core)
        self.timetable.attach(self._core)
        self.outbox.attach(self._core)
        self.statements = PostgresStatements(access, inbox=self.inbox, outbox=self.outbox, clock=clock)

    @property
    def tx_types(self) -> tuple[type | None, type | None]:
        """What ``async def`` handlers and ``def`` handlers find in ``context.tx``."""
        return PostgresTx, SyncPostgresTx

    def unit(self, guard: Guard | None = None, *, label: str = "") -> PostgresUnit:
        """Return a unit that has not begun; it takes a connection at its first statement, or for its seal."""
        return PostgresUnit(self._core, guard)

    def saturated(self) -> bool:
        """Whether one more unit would have to wait for a connection."""
        return self.pool.saturated()

    async def oldest_write(self) -> timedelta | None:
        """Return for how long the oldest transaction is open that has written something, here or next door.

        While it is, nothing that was deleted since it began can be cleaned up, and claims get slower.
        """
        answers = await self.access.run("looking for long transactions", (f"SELECT {OLDEST_WRITE}", ()))
        age = answers.rows()[0][0]
        return None if age is None else timedelta(microseconds=age)

    async def relays(self) -> Sequence[str]:
        """Return the owners of leases that have not ended, by the database's clock."""
        live = f"SELECT owner FROM {self.access.table('relay')} WHERE until > clock_timestamp()"
        answers = await self.access.run("looking for relays", (live, ()))
        return [owner for (owner,) in answers.rows()]

    def adopt_tx(self, tx: Any) -> Unit | None:
        """Return the unit of a `PostgresTx` or `SyncPostgresTx` of this store, or of another library's transaction."""
        if isinstance(tx, PostgresTx | SyncPostgresTx):
            return tx.unit if tx.unit.core is self._core else None
        handle = async_handle(tx)
        return None if handle is None else CallersUnit(tx, handle)

    async def close(self) -> None:
        """Wait a little for the units that have begun, then close every connection."""
        await self.pool.close(_CLOSE_MAX)
        await self.own.close(_CLOSE_MAX)


@asynccontextmanager
async def open_postgres_store(
    url: str,
    *,
    clock: Clock | None = None,
    poll: timedelta = timedelta(milliseconds=250),
    provision: bool = False,
) -> AsyncGenerator[PostgresStore]:
    """Open the store at *url* (see `postgres_place` for its parameters) and close it on leaving.

    *provision*: make or upgrade the tables; otherwise they must be there. *poll*: how often to look for what others
    have put into the outbox, should a notification be lost.

    Raises:
        ConfigurationError: the URL is none.
        StoreRefused: the server refuses us, or the tables are missing, older, or of a newer tidewire.
        StoreUnavailable: it cannot be reached, or takes no writes.
    """
    store = PostgresStore(postgres_place(url), clock=clock or SystemClock(), poll=poll)
    try:
        async with store.own.lent() as wire:
            if provision:
                await upgrade(wire, store.place)
            check_version(store.place, await read_version(wire, store.place))
        await store.outbox.identity.learn(store.access)
        async with waking(store.outbox.wake, store.outbox.commits.watch()):
            yield store
    finally:
        await store.close()
