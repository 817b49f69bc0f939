"""The outbox in PostgreSQL, as its writers see it.

Only rows that may leave now are in ``outbox``; delayed and quarantined ones lie in tables of their own. A row number
is drawn before its transaction commits, so a lower one can become visible later: nobody reads with a cursor.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from datetime import timedelta
from itertools import chain

from tidewire.kit.handles import CallersUnit, describe
from tidewire.kit.postgres.wire import Statement
from tidewire.model import Message, Stuck
from tidewire.protocols import Clock, Unit
from tidewire.stores.postgres.access import Access
from tidewire.stores.postgres.callers import CallersCommits, Identity, check_identity
from tidewire.stores.postgres.events import COLUMNS, Leaving, leaving_row, message_of, notification, number_of
from tidewire.stores.postgres.unit import Core, own_unit
from tidewire.stores.postgres.wake import Wake

__all__ = ["PostgresOutbox"]

_WINDOW_MAX = 8_192
_HEARING_POLLS = 4
_ROWS_MAX = 16
_TYPES = ("smallint", "text", "text", "text", "text", "text", "text", "bytea")
_LISTS = (
    "unnest($1::smallint[], $2::text[], $3::text[], $4::text[], $5::text[], $6::text[], $7::text[], $8::bytea[]{more}) "
    "WITH ORDINALITY AS u (part, id, source, aggregatetype, aggregateid, type, headers, payload{names}, place)"
)


class PostgresOutbox:
    """See `tidewire.protocols.Outbox`. *window* holds rows of this process that are committed and not yet relayed, by
    their numbers, so that the relay need not read and decode what it has just written. *due_at* is when the first
    delayed row is due, by the loop's clock, as of the last claim."""

    def __init__(self, access: Access, clock: Clock, *, poll: timedelta) -> None:
        self._access = access
        self._clock = clock
        self._poll = poll.total_seconds()
        self._core: Core | None = None
        self.identity = Identity(access.place)
        self.wake = Wake(access)
        self.commits = CallersCommits(self.wake.committed)
        self.window: dict[int, Message] = {}
        self.due_at = float("inf")
        ready, delayed, refused = (access.table(name) for name in ("outbox", "outbox_delayed", "outbox_refused"))
        columns = f"part, {COLUMNS}"
        into = f"INSERT INTO {ready} ({columns})"
        # Numbers are drawn in the order of the rows. A few rows are said one by one: arrays cost the server more.
        few = [f"{into} VALUES {_places(count)}" for count in range(1, _ROWS_MAX + 1)]
        many = f"{into} SELECT {columns} FROM {_LISTS.format(more='', names='')} ORDER BY place"
        self._insert = [*few, many]
        self._insert_numbered = [f'{sql} RETURNING "row"' for sql in self._insert]
        lists = _LISTS.format(more=", $9::bigint[]", names=", due")
        self._insert_delayed = (
            f"INSERT INTO {delayed} ({columns}, due) SELECT {columns}, due FROM {lists} ORDER BY place"
        )
        self._count = (
            f"SELECT (SELECT count(*) FROM {ready}) + (SELECT count(*) FROM {delayed}), "
            f"(SELECT count(*) FROM {refused})"
        )
        self._stuck = (
            f'SELECT "row", part, attempts, detail, at, {COLUMNS} FROM {refused} WHERE "row" > $1::bigint '
            'ORDER BY "row" LIMIT $2::bigint'
        )
        self._requeue = (
            f'WITH gone AS (DELETE FROM {refused} WHERE "row" = ANY($1::bigint[]) RETURNING *) '
            f'INSERT INTO {ready} ({columns}) SELECT {columns} FROM gone ORDER BY "row" RETURNING part'
        )

    def attach(self, core: Core) -> None:
        """Say whose units are ours."""
        self._core = core

    async def put(self, unit: Unit, messages: Sequence[Message]) -> None:
        """Insert rows with the seal of *unit*, in order; in a caller's transaction at once."""
        if not isinstance(unit, CallersUnit):
            own_unit(unit, self._core).leave(self.rows(messages))
            return
        rows = self.rows(messages)
        sql = await unit.handle.begun()
        connection = sql.connection
        if not self.identity.knows(connection):
            await check_identity(self.identity, f"publish(tx=…): this {describe(unit.tx)}", sql)
        is_seen = self.commits.sees(connection)
        for text, parameters in self._inserts(rows, self._insert) if is_seen else self.told(rows):
            await sql.rows(text, parameters)
        if is_seen:  # now, and not before: SQLAlchemy begins with the first statement
            self.commits.expect(connection, [row.part for row in rows])

    def rows(self, messages: Sequence[Message]) -> list[Leaving]:
        """Return the rows of *messages*; what cannot be a row raises here, and not at the commit."""
        now = self._clock.now_us()
        return [leaving_row(message, now) for message in messages]

    def told(self, rows: Sequence[Leaving]) -> Sequence[Statement]:
        """Return what inserts *rows* in a caller's transaction, whose commit wakes the relays.

        It is told in the same statement: duplicates of one transaction are one notification.
        """
        _, told = notification(self._access.place, [row.part for row in rows])
        return [
            (f"{sql} RETURNING pg_notify(${len(values) + 1}::text, ${len(values) + 2}::text)", (*values, *told))
            for sql, values in self._inserts(rows, self._insert)
        ]

    def statements(self, rows: Sequence[Leaving]) -> Sequence[Statement]:
        """Return what inserts *rows*: one statement for those that may leave now, then one for those that may not.

        The first returns the row numbers.
        """
        return self._inserts(rows, self._insert_numbered)

    def _inserts(self, rows: Sequence[Leaving], texts: Sequence[str]) -> list[Statement]:
        at_once = [(row.part, *row.columns) for row in rows if row.due is None]
        later = [(row.part, *row.columns, row.due) for row in rows if row.due is not None]
        done: list[Statement] = []
        if 0 < len(at_once) <= _ROWS_MAX:
            done.append((texts[len(at_once) - 1], [*chain.from_iterable(at_once)]))
        elif at_once:
            done.append((texts[_ROWS_MAX], [list(column) for column in zip(*at_once, strict=True)]))
        if later:
            done.append((self._insert_delayed, [list(column) for column in zip(*later, strict=True)]))
        return done

    def written(self, rows: Sequence[Leaving], places: Sequence[tuple[int, ...]]) -> None:
        """Keep for the relay of this process what it is to publish, as far as there is room, and wake who has to."""
        at_once = [row for row in rows if row.due is None]
        for row, (place,) in zip(at_once, places, strict=True):
            if row.part in self.wake.parts and len(self.window) < _WINDOW_MAX:
                self.window[number_of(place, row.part)] = row.message
        self.wake.committed({row.part for row in rows})

    async def wait(self, longest: timedelta) -> bool:
        """Wait for a commit, of this process or told of by others, for a due time, or for the time to look."""
        poll = self._poll * (_HEARING_POLLS if self.wake.hears else 1)
        due = self.due_at - asyncio.get_running_loop().time()
        seconds = longest.total_seconds()
        return await self.wake.wait(max(0.0, min(seconds, poll, due))) or min(poll, due) <= seconds

    async def count(self) -> tuple[int, int]:
        """Return how many rows are pending (delayed ones included) and how many are quarantined."""
        pending, refused = (await self._access.run("counting events", (self._count, ()))).rows()[0]
        return int(pending), int(refused)

    async def stuck(self, *, after: int = 0, limit: int = 100) -> Sequence[Stuck]:
        """Return quarantined rows."""
        rows = (await self._access.run("reading quarantined events", (self._stuck, (after >> 6, limit)))).rows()
        return [
            Stuck(number_of(row, part), message_of(columns), attempts, detail, at)
            for row, part, attempts, detail, at, *columns in rows
        ]

    async def requeue(self, rows: Sequence[int]) -> int:
        """Move quarantined rows behind what is pending."""
        asked = [row >> 6 for row in rows]
        parts = (await self._access.run("requeueing events", (self._requeue, (asked,)))).rows()
        self.wake.committed(part for (part,) in parts)
        return len(parts)


def _places(rows: int) -> str:
    """Return the parameters of so many rows, as VALUES wants them."""
    numbers = range(0, rows * len(_TYPES), len(_TYPES))
    one_row = [", ".join(f"${first + at}::{kind}" for at, kind in enumerate(_TYPES, 1)) for first in numbers]
    return ", ".join(f"({row})" for row in one_row)
