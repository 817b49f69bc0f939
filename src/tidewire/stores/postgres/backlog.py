"""The outbox in PostgreSQL, as the relay sees it."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import timedelta

from tidewire.model import Pending
from tidewire.stores.postgres.access import Access
from tidewire.stores.postgres.outbox import COLUMNS, PostgresOutbox, message_of

__all__ = ["PostgresBacklog"]

_DETAIL_MAX = 1_000


class PostgresBacklog:
    """See `tidewire.protocols.Backlog`."""

    def __init__(self, access: Access, outbox: PostgresOutbox) -> None:
        self._access = access
        self._outbox = outbox
        ready, delayed, refused, lease = (
            access.table(name) for name in ("outbox", "outbox_delayed", "outbox_refused", "lease")
        )
        mine = f"EXISTS (SELECT 1 FROM {lease} WHERE name = 'relay' AND owner = $1::text AND until > clock_timestamp())"
        self._lease = (
            f"INSERT INTO {lease} AS l (name, owner, until) "
            "VALUES ('relay', $1::text, clock_timestamp() + $2::bigint * interval '1 microsecond') "
            "ON CONFLICT (name) DO UPDATE SET owner = excluded.owner, until = excluded.until "
            "WHERE l.owner = excluded.owner OR l.until <= clock_timestamp() RETURNING 1"
        )
        self._give = f"DELETE FROM {lease} WHERE name = 'relay' AND owner = $1::text"
        self._due = (
            f"WITH due AS (DELETE FROM {delayed} WHERE due <= extract(epoch FROM clock_timestamp()) * 1000000 "
            f'RETURNING *) INSERT INTO {ready} (part, {COLUMNS}) SELECT part, {COLUMNS} FROM due ORDER BY due, "row"'
        )
        self._claim = (
            f'SELECT o."row", o.attempts, {", ".join(f"o.{name}" for name in COLUMNS.split(", "))} FROM {ready} AS o '
            f'WHERE o."row" > $2::bigint AND {mine} AND NOT EXISTS (SELECT 1 FROM {refused} AS r '
            "WHERE o.aggregateid IS NOT NULL AND r.aggregateid = o.aggregateid AND r.aggregatetype = o.aggregatetype "
            'AND r."row" < o."row") ORDER BY o."row" LIMIT $3::bigint'
        )
        self._done = f'DELETE FROM {ready} WHERE "row" = ANY($2::bigint[]) AND {mine}'
        self._mine = f"SELECT {mine}"
        self._refuse = (
            f'UPDATE {ready} SET attempts = attempts + 1 WHERE "row" = $2::bigint AND {mine} RETURNING attempts'
        )
        self._quarantine = (
            f'WITH gone AS (DELETE FROM {ready} WHERE "row" = $1::bigint RETURNING *) '
            f'INSERT INTO {refused} ("row", part, {COLUMNS}, attempts, detail, at) '
            f'SELECT "row", part, {COLUMNS}, attempts, $2::text, '
            "(extract(epoch FROM clock_timestamp()) * 1000000)::bigint FROM gone"
        )

    async def lease(self, owner: str, duration: timedelta) -> bool:
        """Take or extend the lease."""
        if duration <= timedelta(0):
            await self._access.run("giving the relay's lease back", (self._give, (owner,)))
            return False
        taken = (self._lease, (owner, duration // timedelta(microseconds=1)))
        return bool((await self._access.run("taking the relay's lease", taken)).rows())

    async def claim(self, owner: str, *, after: int, limit: int) -> Sequence[Pending]:
        """Return due rows."""
        answers = await self._access.run("claiming events", (self._due, ()), (self._claim, (owner, after, limit)))
        return [Pending(row, message_of(columns), attempts) for row, attempts, *columns in answers.rows()]

    async def done(self, owner: str, rows: Sequence[int]) -> bool:
        """Delete rows."""
        answers = await self._access.run("marking events done", (self._done, (owner, [*rows])), (self._mine, (owner,)))
        return bool(answers.rows()[0][0])

    async def refused(self, owner: str, row: int, *, detail: str, attempts_max: int) -> bool:
        """Count a refusal."""
        rows = (await self._access.run("counting a refusal", (self._refuse, (owner, row)))).rows()
        if not rows or rows[0][0] < attempts_max:
            return False
        await self._access.run("quarantining an event", (self._quarantine, (row, detail[:_DETAIL_MAX])))
        return True
