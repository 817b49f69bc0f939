"""Where the service's store lies in the broker's database: its units settle in their own transaction."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol, runtime_checkable

import psycopg

from tidewire.kit.sqllog.home import Connection
from tidewire.kit.sqllog.lanes import Lane
from tidewire.kit.sqllog.shared import Shared
from tidewire.kit.sqllog.transport import LogTransport
from tidewire.model import Capabilities, Delivery, InboxChannel
from tidewire.protocols import Store, Unit
from tidewire.transports.postgres.home import PostgresHome

__all__ = ["PostgresTransport"]


@runtime_checkable
class _Sqlish(Protocol):
    """A unit that takes statements of ours, with ``$1`` placeholders: now, or on its way to the commit."""

    async def rows(self, sql: str, parameters: Sequence[Any] = ()) -> Sequence[tuple[Any, ...]]: ...

    def later(self, statement: tuple[str, Sequence[Any]]) -> None: ...


class PostgresTransport(LogTransport):
    """A log whose home is a database; see `tidewire.protocols.Enlisting`. Made by `open_postgres_transport`."""

    def __init__(self, shared: Shared, capabilities: Capabilities) -> None:
        super().__init__(shared, capabilities)
        assert isinstance(shared.home, PostgresHome), "a log in PostgreSQL"
        self._home = shared.home

    async def enlist(self, store: Store) -> bool:
        """Leave a row in our database, and say whether *store*'s units see it."""
        unit = store.unit()
        if not isinstance(unit, _Sqlish):
            return False
        home = self._home

        def appear(connection: Connection) -> None:
            connection.execute(
                "INSERT INTO writer (name, turn, at) VALUES (?, 0, 0) ON CONFLICT DO NOTHING", (home.address,)
            )

        await self._shared.writer.submit(appear)
        try:
            return bool(await unit.rows(f"SELECT 1 FROM {home.table('writer')} WHERE name = $1::text", (home.address,)))
        except psycopg.Error:  # there is no such table there, or its user may not read it
            return False
        finally:
            await unit.rollback()

    def settle_with(self, unit: Unit, deliveries: Sequence[Delivery]) -> None:
        """Send what settles *deliveries*, all of one lane, ahead of the commit of *unit*."""
        assert isinstance(unit, _Sqlish), "a unit of a store that was enlisted"
        found = self._lane_of(deliveries[0])
        if found is None:
            return  # it is not ours any more: the unit's guard says so
        owner, lane = found
        private = [one.position for one in deliveries if isinstance(one.message.to, InboxChannel)]
        public = [one.position for one in deliveries if not isinstance(one.message.to, InboxChannel)]
        ours = (lane.sub, lane.number, lane.epoch, owner)
        if public:
            unit.later((self._home.settle_sql, (*ours, public)))
        if private:
            unit.later((self._home.settle_private_sql, (*ours, private)))

    def _lane_of(self, delivery: Delivery) -> tuple[str, Lane] | None:
        for receiver in self._shared.receivers:
            lane = receiver.lanes.get(delivery.lane)
            if lane is not None and lane.epoch == delivery.epoch and lane.has_out(delivery):
                return receiver.subscription.member, lane
        return None
