"""The relay's statements, written out: what each locks, and by which index it finds its rows."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from datetime import timedelta

from tidewire.kit.postgres.wire import Statement
from tidewire.stores.postgres.access import Access
from tidewire.stores.postgres.events import COLUMNS, PARTITIONS, channel_of

__all__ = ["BacklogSql"]

_MINE = "p.owner = $1::text AND p.until > clock_timestamp()"
_NOW_US = "(extract(epoch FROM clock_timestamp()) * 1000000)::bigint"
_UNTIL = "clock_timestamp() + $2::bigint * interval '1 microsecond'"


class BacklogSql:
    """Statements for the tables of one store. A row is given by its number, ``row << 6 | part``."""

    def __init__(self, access: Access) -> None:
        names = ("relay", "partition", "outbox", "outbox_delayed", "outbox_refused")
        relay, partition, ready, delayed, refused = (access.table(name) for name in names)
        self._channel = channel_of(access.place)
        self._share(relay, partition)
        self._hand_out(partition, ready=ready, delayed=delayed, refused=refused)
        self._put_away(partition, ready=ready, refused=refused)

    def _share(self, relay: str, partition: str) -> None:
        self._forget_silent = f"DELETE FROM {relay} WHERE until <= clock_timestamp()"
        self._join = (
            f"INSERT INTO {relay} AS r (owner, until) VALUES ($1::text, {_UNTIL}) "
            "ON CONFLICT (owner) DO UPDATE SET until = excluded.until RETURNING xmax = 0"
        )
        # Locks the rows that it changes. Free ones that somebody else takes now are skipped; one's own that have run
        # out meanwhile are looked at again once they are locked.
        self._take = (
            f"WITH mine AS (SELECT p.part FROM {partition} AS p WHERE {_MINE}), "
            f"live AS (SELECT count(*) AS number FROM {relay} WHERE until > clock_timestamp()), "
            f"free AS (SELECT part FROM {partition} WHERE until <= clock_timestamp() ORDER BY part LIMIT "
            f"(SELECT greatest(0, ceil({PARTITIONS}.0 / number)::bigint - (SELECT count(*) FROM mine)) FROM live) "
            "FOR UPDATE SKIP LOCKED) "
            f"UPDATE {partition} AS p SET owner = $1::text, until = {_UNTIL}, "
            "token = token + CASE WHEN p.until > clock_timestamp() THEN 0 ELSE 1 END "
            "WHERE p.part IN (SELECT part FROM mine UNION ALL SELECT part FROM free) "
            "AND (p.owner = $1::text OR p.until <= clock_timestamp()) RETURNING p.part, p.token"
        )
        self._live = f"SELECT count(*) FROM {relay} WHERE until > clock_timestamp()"
        self._leave = f"DELETE FROM {relay} WHERE owner = $1::text"
        free = f"UPDATE {partition} SET owner = '', until = '-infinity' WHERE owner = $1::text"
        self._give_all = free
        self._give_up = f"{free} AND part = ANY($2::smallint[])"
        self._held = f"SELECT p.part, p.token FROM {partition} AS p WHERE {_MINE}"

    def _hand_out(self, partition: str, *, ready: str, delayed: str, refused: str) -> None:
        number = 'o."row" << 6 | o.part'
        columns = ", ".join(f"o.{name}" for name in COLUMNS.split(", "))
        # outbox_due; only rows of one's own partitions, so that of a key one relay at a time moves rows.
        self._release_due = (
            f'WITH due AS (DELETE FROM {delayed} WHERE "row" IN (SELECT d."row" FROM {delayed} AS d '
            f"WHERE d.due <= {_NOW_US} AND d.part IN (SELECT p.part FROM {partition} AS p WHERE {_MINE}) "
            'ORDER BY d.due, d."row" LIMIT 1000) RETURNING *) '
            f'INSERT INTO {ready} (part, {COLUMNS}) SELECT part, {COLUMNS} FROM due ORDER BY due, "row"'
        )
        self._next_due = f"SELECT min(due) - {_NOW_US} FROM {delayed}"  # the first entry of outbox_due
        # The primary key, from the first row of each partition. Quarantined keys: outbox_refused_key.
        self._find = (
            "SELECT o.number, o.attempts, o.size, o.aggregateid IS NOT NULL AND EXISTS "
            f'(SELECT 1 FROM {refused} AS r WHERE r.aggregateid = o.aggregateid AND r."row" < o.number >> 6 '
            f"AND r.aggregatetype = o.aggregatetype) FROM {partition} AS p CROSS JOIN LATERAL "
            f"(SELECT {number} AS number, o.attempts, octet_length(o.payload) AS size, o.aggregatetype, o.aggregateid "
            f'FROM {ready} AS o WHERE o.part = p.part AND o."row" > ($2::bigint - p.part) >> 6 '
            f'ORDER BY o."row" LIMIT $3::bigint) AS o '
            f"WHERE {_MINE} AND p.part <> ALL($4::smallint[]) ORDER BY o.number"
        )
        given = 'unnest($1::smallint[], $2::bigint[]) AS u (part, "row")'
        self._read = (  # the primary key, row by row
            f"SELECT {number}, {columns} FROM {given} CROSS JOIN LATERAL "
            f'(SELECT * FROM {ready} AS o WHERE o.part = u.part AND o."row" = u."row") AS o'
        )

    def _put_away(self, partition: str, *, ready: str, refused: str) -> None:
        self._done = (  # the primary key, row by row
            f"DELETE FROM {ready} AS o USING {partition} AS p, "
            'unnest($2::smallint[], $3::bigint[], $4::bigint[]) AS u (part, "row", token) '
            f'WHERE o.part = u.part AND o."row" = u."row" AND p.part = u.part AND p.token = u.token AND {_MINE}'
        )
        held = f"EXISTS (SELECT 1 FROM {partition} AS p WHERE p.part = $2::smallint AND {_MINE})"
        this = f'part = $2::smallint AND "row" = $3::bigint AND {held}'
        into = f'INSERT INTO {refused} ("row", part, {COLUMNS}, attempts, detail, at) '
        self._refuse = (
            f"WITH counted AS (UPDATE {ready} SET attempts = attempts + 1 "
            f"WHERE {this} AND attempts + 1 < $4::integer), "
            f"gone AS (DELETE FROM {ready} WHERE {this} AND attempts + 1 >= $4::integer RETURNING *), "
            f'quarantined AS ({into} SELECT "row", part, {COLUMNS}, attempts + 1, $5::text, {_NOW_US} FROM gone '
            "RETURNING 1) SELECT count(*) FROM quarantined"
        )
        self._sideline = (
            f"WITH gone AS (DELETE FROM {ready} AS o USING {partition} AS p, "
            'unnest($2::smallint[], $3::bigint[]) AS u (part, "row") '
            f'WHERE o.part = u.part AND o."row" = u."row" AND p.part = u.part AND {_MINE} RETURNING o.*) '
            f'{into} SELECT "row", part, {COLUMNS}, attempts, $4::text, {_NOW_US} FROM gone'
        )

    def take(self, owner: str, duration: timedelta) -> Sequence[Statement]:
        """Live on for *duration* (second row: whether that is new), and take a fair share (third); then who lives."""
        asked = (owner, duration // timedelta(microseconds=1))
        return [(self._forget_silent, ()), (self._join, asked), (self._take, asked), (self._live, ())]

    def leave(self, owner: str) -> Sequence[Statement]:
        """Live no more, and give everything back."""
        return [(self._leave, (owner,)), (self._give_all, (owner,))]

    def give_up(self, owner: str, parts: Iterable[int]) -> Statement:
        """Give *parts* back."""
        return (self._give_up, (owner, [*parts]))

    def tell(self, payload: str) -> Statement:
        """Notify the relays."""
        return ("SELECT pg_notify($1::text, $2::text)", (self._channel, payload))

    def held(self, owner: str) -> Statement:
        """Return partitions and tokens."""
        return (self._held, (owner,))

    def release_due(self, owner: str) -> Statement:
        """Append delayed rows whose time has come, in the order of their times."""
        return (self._release_due, (owner,))

    def next_due(self) -> Statement:
        """Return in how many microseconds the first delayed row is due."""
        return (self._next_due, ())

    def find(self, owner: str, *, after: int, depth: int, leaving: Iterable[int]) -> Statement:
        """Return number, attempts, size and whether it is blocked of the first *depth* rows of each partition."""
        return (self._find, (owner, after, depth, [*leaving]))

    def read(self, numbers: Sequence[int]) -> Statement:
        """Return the rows with these numbers."""
        return (self._read, _split(numbers))

    def done(self, owner: str, numbers: Sequence[int], tokens: Sequence[int]) -> Statement:
        """Delete rows, each if its partition is still held by its token."""
        return (self._done, (owner, *_split(numbers), [*tokens]))

    def refuse(self, owner: str, number: int, detail: str, attempts_max: int) -> Statement:
        """Count a refusal, or quarantine; returns how many rows were quarantined."""
        return (self._refuse, (owner, number & 63, number >> 6, attempts_max, detail))

    def sideline(self, owner: str, numbers: Sequence[int], detail: str) -> Statement:
        """Quarantine rows as they are."""
        return (self._sideline, (owner, *_split(numbers), detail))


def _split(numbers: Sequence[int]) -> tuple[list[int], list[int]]:
    return [number & 63 for number in numbers], [number >> 6 for number in numbers]
