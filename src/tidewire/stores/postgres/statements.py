"""What the PostgreSQL store writes in units, as statements for any handle that leads to its database."""

from __future__ import annotations

from collections.abc import Sequence

from tidewire.errors import AlreadyMarked, LaneFenced
from tidewire.kit.handles import AsyncSql
from tidewire.kit.lent import Step
from tidewire.kit.postgres.text import kept
from tidewire.model import Guard, Mark, Message
from tidewire.protocols import Clock
from tidewire.stores.postgres.access import Access
from tidewire.stores.postgres.callers import check_identity
from tidewire.stores.postgres.events import Leaving
from tidewire.stores.postgres.inbox import PostgresInbox, packed
from tidewire.stores.postgres.outbox import PostgresOutbox

__all__ = ["PostgresStatements"]


class PostgresStatements:
    """See `tidewire.kit.lent.Statements`."""

    def __init__(self, access: Access, *, inbox: PostgresInbox, outbox: PostgresOutbox, clock: Clock) -> None:
        self._inbox = inbox
        self._outbox = outbox
        self._clock = clock
        self._guard = (  # holds the row until the unit ends: whoever takes the lane over waits for the commit
            f"SELECT 1 FROM {access.table('lane')} WHERE grp = $1::text AND lane = $2::text AND epoch = $3::bigint "
            "FOR SHARE"
        )
        self._mark = (  # mark_once waits for an open transaction with the same mark
            f"INSERT INTO {access.table('mark')} (scope, at, event_id, digest) "
            "VALUES ($1::integer, $2::bigint, $3::bytea, $4::bytea) ON CONFLICT DO NOTHING RETURNING 1"
        )
        self._advance = (
            f"UPDATE {access.table('timetable')} SET due = $4::bigint, owner = '', until = '-infinity' "
            "WHERE name = $1::text AND owner = $2::text AND due = $3::bigint RETURNING 1"
        )

    async def check(self, sql: AsyncSql, what: str) -> None:
        """Ask the table ``store``."""
        if not self._outbox.identity.knows(sql.connection):
            await check_identity(self._outbox.identity, what, sql)

    def guard(self, guard: Guard) -> Step:
        """Look for the epoch by the primary key, and hold it."""
        return Step(
            self._guard,
            (kept(guard.group), kept(guard.lane), guard.epoch),
            LaneFenced(f"{guard.group}: epoch {guard.epoch} of lane {guard.lane} has been taken over"),
        )

    async def mark(self, mark: Mark, digest: bytes) -> Sequence[Step]:
        """Insert the mark; its scope is made in a transaction of its own, so that no unit waits for another."""
        scope = await self._inbox.scope_of(mark)
        return (
            Step(
                self._mark,
                (scope, self._clock.now_us(), packed(mark.event_id), digest),
                AlreadyMarked(f"{mark.group}.{mark.handler}: event {mark.event_id} has already taken effect"),
            ),
        )

    def rows(self, messages: Sequence[Message]) -> Sequence[Leaving]:
        """Return the rows, of which some may wait for their time."""
        return self._outbox.rows(messages)

    def put(self, rows: Sequence[Leaving]) -> Sequence[Step]:
        """One statement for what may leave now, one for what may not."""
        return [Step(text, parameters) for text, parameters in self._outbox.statements(rows)]

    def advance(self, name: str, *, owner: str, due: int, to: int) -> Step:
        """Move on by the primary key."""
        return Step(
            self._advance,
            (kept(name), kept(owner), due, to),
            AlreadyMarked(f"the run of {name} at {due} is not {owner}'s"),
        )

    def written(self, rows: Sequence[Leaving]) -> None:
        """Wake who relays them, here or elsewhere."""
        self._outbox.wake.committed([row.part for row in rows])
