"""What the PostgreSQL store remembers besides effects: attempts, held keys, lane epochs."""

from __future__ import annotations

from collections.abc import Sequence

import msgspec

from tidewire.errors import LaneFenced
from tidewire.kit.postgres.text import given, kept
from tidewire.kit.postgres.wire import Statement
from tidewire.model import Failure, Held
from tidewire.stores.postgres.access import Access

__all__ = ["PostgresAttempts", "PostgresHeldKeys", "PostgresLanes", "guard_sql"]

_encode = msgspec.json.Encoder().encode
_decode = msgspec.json.Decoder(Failure).decode


class PostgresAttempts:
    """See `tidewire.protocols.Attempts`."""

    def __init__(self, access: Access) -> None:
        self._access = access
        table = access.table("attempt")
        one = "grp = $1::text AND source = $2::text AND event_id = $3::text"  # the primary key
        self._get = f"SELECT starts, failure FROM {table} WHERE {one}"
        self._begin = (
            f"INSERT INTO {table} AS a (grp, source, event_id, starts, failure) "
            "VALUES ($1::text, $2::text, $3::text, 1, '{}') "
            "ON CONFLICT (grp, source, event_id) DO UPDATE SET starts = a.starts + 1 RETURNING starts"
        )
        self._fail = (
            f"INSERT INTO {table} AS a (grp, source, event_id, starts, failure) "
            "VALUES ($1::text, $2::text, $3::text, 0, $4::text) "
            "ON CONFLICT (grp, source, event_id) DO UPDATE SET starts = 0, failure = excluded.failure"
        )
        self._forget = f"DELETE FROM {table} WHERE {one}"

    async def get(self, group: str, source: str, event_id: str) -> Failure | None:
        """Return what is remembered of the event."""
        answers = await self._access.run("reading attempts", (self._get, _key(group, source, event_id)))
        for starts, failure in answers.rows():
            return msgspec.structs.replace(_decode(failure), starts=starts)
        return None

    async def begin(self, group: str, source: str, event_id: str) -> int:
        """Count a start that has not ended."""
        answers = await self._access.run("recording a start", (self._begin, _key(group, source, event_id)))
        return int(answers.rows()[0][0])

    async def fail(self, group: str, source: str, event_id: str, failure: Failure) -> None:
        """Store the failure; the start it belongs to has ended."""
        text = _encode(msgspec.structs.replace(failure, starts=0)).decode()
        await self._access.run("recording a failure", (self._fail, (*_key(group, source, event_id), text)))

    async def forget(self, group: str, source: str, event_id: str) -> None:
        """Remove the row; a missing one is no matter."""
        await self._access.run("forgetting attempts", (self._forget, _key(group, source, event_id)))


class PostgresHeldKeys:
    """See `tidewire.protocols.HeldKeys`."""

    def __init__(self, access: Access) -> None:
        self._access = access
        table = access.table("held")
        self._keys = f"SELECT DISTINCT topic, key FROM {table} WHERE grp = $1::text AND topic = ANY($2::text[])"
        self._head = (  # held_head
            f"SELECT source, event_id, state, due, sequence FROM {table} "
            "WHERE grp = $1::text AND topic = $2::text AND key = $3::text ORDER BY sequence LIMIT 1"
        )
        self._put = (
            f"INSERT INTO {table} (grp, topic, key, source, event_id, state, due) "
            "VALUES ($1::text, $2::text, $3::text, $4::text, $5::text, $6::text, $7::bigint) "
            "ON CONFLICT (grp, topic, key, source, event_id) "
            "DO UPDATE SET state = excluded.state, due = excluded.due RETURNING sequence"
        )
        self._free = (
            f"DELETE FROM {table} WHERE grp = $1::text AND topic = $2::text AND key = $3::text "
            "AND source = $4::text AND event_id = $5::text"
        )

    async def keys(self, group: str, topics: Sequence[str]) -> Sequence[tuple[str, str]]:
        """Return the held keys."""
        if not topics:
            return []
        asked = (kept(group), [kept(topic) for topic in topics])
        answers = await self._access.run("reading held keys", (self._keys, asked))
        return [(given(topic), given(key)) for topic, key in answers.rows()]

    async def head(self, group: str, topic: str, key: str) -> Held | None:
        """Return the oldest row of the key."""
        answers = await self._access.run("reading a held key", (self._head, (kept(group), kept(topic), kept(key))))
        for source, event_id, state, due, sequence in answers.rows():
            return Held(group, topic, key, given(source), given(event_id), state, due, sequence)
        return None

    async def put(self, rows: Sequence[Held]) -> Sequence[Held]:
        """Insert or update, in one transaction; a row that exists keeps its place in the order."""
        if not rows:
            return []
        statements: list[Statement] = [(self._put, (*_place(row), row.state, row.due)) for row in rows]
        answers = await self._access.run("holding keys", *statements)
        return [msgspec.structs.replace(row, sequence=answers.rows(index)[0][0]) for index, row in enumerate(rows)]

    async def free(self, rows: Sequence[Held]) -> None:
        """Remove rows, in one transaction."""
        if rows:
            await self._access.run("freeing keys", *[(self._free, _place(row)) for row in rows])


class PostgresLanes:
    """See `tidewire.protocols.Lanes`."""

    def __init__(self, access: Access) -> None:
        self._access = access
        # Waits for units that hold the row by `guard_sql`: they are committing.
        self._adopt = (
            f"INSERT INTO {access.table('lane')} AS l (grp, lane, epoch) VALUES ($1::text, $2::text, $3::bigint) "
            "ON CONFLICT (grp, lane) DO UPDATE SET epoch = excluded.epoch WHERE excluded.epoch >= l.epoch "
            "RETURNING epoch"
        )

    async def adopt(self, group: str, lane: str, epoch: int) -> int:
        """Record the epoch, unless a higher one has been."""
        answers = await self._access.run("adopting a lane", (self._adopt, (kept(group), kept(lane), epoch)))
        for (recorded,) in answers.rows():
            return int(recorded)
        raise LaneFenced(f"{group}: a later epoch than {epoch} has taken lane {lane} over")


def guard_sql(access: Access) -> str:
    """Return the statement that holds a lane's row in a unit until it ends, and fails by a division by zero where the
    epoch is not the recorded one: what follows in its batch, COMMIT included, is then skipped."""
    return (
        f"SELECT 1 / count(*) FROM (SELECT 1 FROM {access.table('lane')} "
        "WHERE grp = $1::text AND lane = $2::text AND epoch = $3::bigint FOR SHARE) AS held"
    )


def _key(group: str, source: str, event_id: str) -> tuple[str, str, str]:
    return kept(group), kept(source), kept(event_id)


def _place(row: Held) -> tuple[str, str, str, str, str]:
    return kept(row.group), kept(row.topic), kept(row.key), kept(row.source), kept(row.event_id)
