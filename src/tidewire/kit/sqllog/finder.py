"""Where an event lies in the log, how far each group is with it, and what belongs to it."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from functools import partial
from typing import Any, Literal, TypeAlias

import msgspec

from tidewire.kit.sqllog.home import Connection
from tidewire.kit.sqllog.reading import MESSAGE_COLUMNS, message_of
from tidewire.kit.sqllog.shared import Shared
from tidewire.model import DeadChannel, Found, InboxChannel, Standing, Topic

__all__ = ["LogFinder"]

Table: TypeAlias = Literal["log", "delayed", "inbox", "dead"]
State: TypeAlias = Literal["settled", "waiting", "delayed"]
_SLICE_ROWS = 20_000
_COLUMNS: dict[Table, str] = {  # number, whose (a topic or a group on one), lane, due, stored at
    "log": f"m.seq, m.topic, m.lane, 0, m.at, {MESSAGE_COLUMNS}",
    "delayed": f"m.row, m.topic, 0, m.due, NULL, {MESSAGE_COLUMNS}",
    "inbox": f"m.seq, m.sub, m.lane, m.due, m.at, {MESSAGE_COLUMNS}",
    "dead": f"m.seq, m.sub, 0, 0, m.at, {MESSAGE_COLUMNS}",
}
_NUMBER: dict[Table, str] = {"log": "seq", "delayed": "row", "inbox": "seq", "dead": "seq"}
_RELATED: tuple[Table, ...] = ("log", "delayed", "dead")
_encode = msgspec.json.Encoder().encode


class LogFinder:
    """See `tidewire.protocols.Finder`. Searches run beside the event loop, and publishing goes on meanwhile.

    What a topic keeps until its time has a position that begins with ``delayed-``, and no time of its storing.
    """

    def __init__(self, shared: Shared) -> None:
        self._shared = shared

    async def find(self, event_id: str, *, limit: int = 100) -> Sequence[Found]:
        """Look into one index per topic and per kind of channel. Oldest first; nothing has the empty id."""
        if not event_id or limit < 1:
            return ()
        now = self._shared.clock.now_us()
        return await self._shared.home.beside(lambda connection: Search(connection, now, limit).by_id(event_id))

    async def related(self, correlation_id: str, *, limit: int = 1_000) -> Sequence[Found]:
        """Read all that is there when it begins, in slices: about a second per million messages.

        A slice is one state of the file; what moves while the search is on may be missed, or seen twice.
        """
        if not correlation_id or limit < 1:
            return ()
        now, found = self._shared.clock.now_us(), list[Found]()
        for table in _RELATED:
            first, last = await self._shared.home.beside(partial(_ends, table=table))
            here: list[Found] = []
            while first <= last and len(here) < limit:
                job = partial(_slice, table=table, wanted=correlation_id, ends=(first, last), now=now, limit=limit)
                some, first = await self._shared.home.beside(job)
                here += some
            found += here
        return _oldest(found, limit)


class Search:
    """One look on one state of the file, for up to *limit* messages, as things are at *now*."""

    def __init__(self, connection: Connection, now: int, limit: int) -> None:
        self._connection = connection
        self._now = now
        self._limit = limit
        self._topics: dict[int, str] = dict(connection.execute("SELECT id, name FROM topic").fetchall())
        self._groups: dict[int, list[tuple[int, str]]] = {topic: [] for topic in self._topics}
        self._subs: dict[int, tuple[str, str]] = {}
        for sub, group, topic in connection.execute("SELECT id, grp, topic FROM member_of ORDER BY grp").fetchall():
            self._groups[topic].append((sub, group))
            self._subs[sub] = (self._topics[topic], group)

    def by_id(self, event_id: str) -> list[Found]:
        """Return every message with the id."""
        found: list[Found] = []
        for topic in self._topics:
            # Named, so that it cannot become a reading of the log.
            where = "INDEXED BY log_once WHERE m.id != '' AND m.topic = ? AND m.id = ?"
            found += self._look("log", where, topic, event_id)
        for table in ("delayed", "inbox", "dead"):
            found += self._look(table, "WHERE m.id = ?", event_id)  # delayed_id, inbox_id, dead_id
        return _oldest(found, self._limit)

    def related(self, table: Table, wanted: str, first: int, last: int) -> list[Found]:
        """Return what has the id or the correlation id among the rows from *first* to *last*."""
        # Headers are written by one encoder; a quote inside a value is escaped, so this is a header and its value.
        header = f'"ce-correlationid":{_encode(wanted).decode()}'
        where = f"WHERE m.{_NUMBER[table]} BETWEEN ? AND ? AND (m.id = ? OR instr(m.headers, ?) > 0)"
        return self._look(table, where, first, last, wanted, header)

    def _look(self, table: Table, where: str, *parameters: int | str) -> list[Found]:
        sql = f"SELECT {_COLUMNS[table]} FROM {table} m {where} ORDER BY m.{_NUMBER[table]} LIMIT ?"
        rows = self._connection.execute(sql, (*parameters, self._limit)).fetchall()
        return [self._found(table, row) for row in rows]

    def _found(self, table: Table, row: Sequence[Any]) -> Found:
        number, whose, lane, due, at, *columns = row
        later: State = "delayed" if due > self._now else "waiting"
        if table == "inbox" or table == "dead":
            topic, group = self._subs[whose]
            address = InboxChannel(topic, group) if table == "inbox" else DeadChannel(topic, group)
            return Found(
                message_of(address, columns), number, at, [Standing(group, "dead" if table == "dead" else later)]
            )
        message, groups = message_of(Topic(self._topics[whose]), columns), self._groups[whose]
        if table == "delayed":
            return Found(message, f"delayed-{number}", at, [Standing(group, later) for _, group in groups])
        return Found(message, number, at, [Standing(group, self._state(sub, lane, number)) for sub, group in groups])

    def _state(self, sub: int, lane: int, seq: int) -> State:
        """How far a group is with one row of the log; what it has moved to a channel of its own is settled here."""
        row = self._connection.execute(  # both by their primary keys
            "SELECT c.pos, a.settled, a.due FROM cursor c "
            "LEFT JOIN above a ON a.sub = c.sub AND a.lane = c.lane AND a.seq = ?3 WHERE c.sub = ?1 AND c.lane = ?2",
            (sub, lane, seq),
        ).fetchone()
        position, settled, due = row
        if seq <= position or settled:
            return "settled"
        return "delayed" if (due or 0) > self._now else "waiting"


def _slice(
    connection: Connection, *, table: Table, wanted: str, ends: tuple[int, int], now: int, limit: int
) -> tuple[list[Found], int]:
    """Search some rows between *ends*; return what was found, and the row to go on from."""
    # Rows that retention has removed may leave large gaps.
    number = _NUMBER[table]
    (first,) = connection.execute(f"SELECT min({number}) FROM {table} WHERE {number} >= ?", ends[:1]).fetchone()
    if first is None:
        return [], ends[1] + 1
    last = min(first + _SLICE_ROWS - 1, ends[1])
    return Search(connection, now, limit).related(table, wanted, first, last), last + 1


def _ends(connection: Connection, *, table: Table) -> tuple[int, int]:
    """Return the first and the last row; the second is the smaller one if there is none."""
    number = _NUMBER[table]
    sql = f"SELECT (SELECT min({number}) FROM {table}), (SELECT max({number}) FROM {table})"
    first, last = connection.execute(sql).fetchone()
    return (1, 0) if first is None else (first, last)


def _oldest(found: Iterable[Found], limit: int) -> list[Found]:
    """Return the *limit* oldest; what has no time has not begun to wait for a group yet, and comes last."""
    return sorted(found, key=lambda one: (one.stored_at is None, one.stored_at or 0))[:limit]
