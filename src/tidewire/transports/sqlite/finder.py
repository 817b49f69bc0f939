"""Where an event lies in the broker's file, who has dealt with it, and what belongs to it. Off the event loop."""

from __future__ import annotations

import asyncio
import sqlite3
from collections.abc import Callable, Sequence
from typing import Any, Literal, TypeAlias, TypeVar

import msgspec

from tidewire.model import Address, DeadChannel, Found, InboxChannel, Message, Standing, Topic
from tidewire.transports.sqlite.shared import Shared

__all__ = ["SqliteFinder"]

T = TypeVar("T")
State: TypeAlias = Literal["settled", "waiting", "delayed", "dead"]
_COLUMNS = "m.id, s.name, m.key, m.headers, m.body"
_decode_headers = msgspec.json.Decoder(dict[str, str]).decode
_encode = msgspec.json.Encoder().encode


class SqliteFinder:
    """See `tidewire.protocols.Finder`. Reads on a thread with a connection of its own: a search may take seconds."""

    def __init__(self, shared: Shared) -> None:
        self._shared = shared

    async def find(self, event_id: str, *, limit: int = 100) -> Sequence[Found]:
        """Look the id up: in topics by the index that keeps ids single, in the small channels by reading them."""
        shared = self._shared
        shared.file.check_usable()
        now = shared.clock.now_us()
        return await self._reading(lambda connection: Search(connection, now, limit).by_id(event_id))

    async def related(self, correlation_id: str, *, limit: int = 1_000) -> Sequence[Found]:
        """Read all headers; what was published first comes first."""
        shared = self._shared
        shared.file.check_usable()
        now = shared.clock.now_us()
        return await self._reading(lambda connection: Search(connection, now, limit).by_correlation(correlation_id))

    async def _reading(self, run: Callable[[sqlite3.Connection], T]) -> T:
        file = self._shared.file

        def on_thread() -> T:
            connection = file.connect(read_only=True)
            try:
                with file.mapped:
                    return run(connection)
            finally:
                file.close_connection(connection)

        return await asyncio.to_thread(on_thread)


class Search:
    """One search on one connection: finds up to *limit* messages as things are at *now*."""

    def __init__(self, connection: sqlite3.Connection, now: int, limit: int) -> None:
        self._read = connection.execute
        self._now = now
        self._limit = limit
        connection.execute("BEGIN")  # one state for all the queries; ends with the connection
        self._topics: dict[int, str] = dict(self._read("SELECT id, name FROM topic").fetchall())
        rows = self._read("SELECT id, grp, topic FROM member_of ORDER BY grp").fetchall()
        self._groups: dict[int, list[tuple[int, str]]] = {}
        self._subs: dict[int, tuple[str, str]] = {}
        for sub, group, topic in rows:
            self._groups.setdefault(topic, []).append((sub, group))
            self._subs[sub] = (self._topics[topic], group)

    def by_id(self, event_id: str) -> list[Found]:
        """Return every message with the id; foreign messages without one are not looked for."""
        found: list[Found] = []
        if not event_id:
            return found
        for topic in self._topics:
            rows = self._read(  # log_once
                f"SELECT m.seq, m.lane, m.at, {_COLUMNS} FROM log m JOIN source s ON s.id = m.source "
                "WHERE m.topic = ? AND m.id = ? AND m.id != '' LIMIT ?",
                (topic, event_id, self._limit),
            )
            found += [self._in_topic(topic, row) for row in rows.fetchall()]
        rows = self._read(
            f"SELECT m.row, m.topic, {_COLUMNS} FROM delayed m JOIN source s ON s.id = m.source WHERE m.id = ? LIMIT ?",
            (event_id, self._limit),
        )
        found += [self._delayed(row) for row in rows.fetchall()]
        found += self._in_channels("inbox", "m.id = ?", event_id)
        found += self._in_channels("dead", "m.id = ?", event_id)
        return found[: self._limit]

    def by_correlation(self, correlation_id: str) -> list[Found]:
        """Return what has the id, or the correlation id, in topics and dead channels."""
        text = '"ce-correlationid":' + _encode(correlation_id).decode()
        rows = self._read(
            f"SELECT m.seq, m.lane, m.at, {_COLUMNS}, m.topic FROM log m JOIN source s ON s.id = m.source "
            "WHERE m.id = ?1 OR instr(m.headers, ?2) ORDER BY m.seq LIMIT ?3",
            (correlation_id, text, self._limit),
        )
        found = [self._in_topic(row[-1], row[:-1]) for row in rows.fetchall()]
        condition = "(m.id = ? OR instr(m.headers, ?))"
        found += self._in_channels("dead", condition, correlation_id, text)
        return sorted(found, key=lambda one: one.stored_at or 0)[: self._limit]

    def _in_topic(self, topic: int, row: tuple[Any, ...]) -> Found:
        seq, lane, at, *columns = row
        standings = [Standing(group, self._state(sub, lane, seq)) for sub, group in self._groups.get(topic, ())]
        return Found(_message(Topic(self._topics[topic]), columns), seq, at, standings)

    def _delayed(self, row: tuple[Any, ...]) -> Found:
        number, topic, *columns = row
        standings = [Standing(group, "delayed") for _, group in self._groups.get(topic, ())]
        return Found(_message(Topic(self._topics[topic]), columns), f"delayed-{number}", None, standings)

    def _in_channels(self, table: str, condition: str, *parameters: str) -> list[Found]:
        due = "m.due" if table == "inbox" else "0"
        rows = self._read(
            f"SELECT m.seq, m.sub, m.at, {due}, {_COLUMNS} FROM {table} m JOIN source s ON s.id = m.source "
            f"WHERE {condition} ORDER BY m.seq LIMIT ?",
            (*parameters, self._limit),
        )
        found: list[Found] = []
        for seq, sub, at, due_at, *columns in rows.fetchall():
            topic, group = self._subs[sub]
            address: Address = InboxChannel(topic, group) if table == "inbox" else DeadChannel(topic, group)
            waiting: State = "delayed" if due_at > self._now else "waiting"
            state: State = waiting if table == "inbox" else "dead"
            found.append(Found(_message(address, columns), seq, at, [Standing(group, state)]))
        return found

    def _state(self, sub: int, lane: int, seq: int) -> State:
        """How far a group is with one message of a topic."""
        cursor = self._read("SELECT pos FROM cursor WHERE sub = ? AND lane = ?", (sub, lane)).fetchone()
        if cursor is not None and seq <= cursor[0]:
            return "settled"
        above = self._read(  # the primary key
            "SELECT settled, due FROM above WHERE sub = ? AND lane = ? AND seq = ?", (sub, lane, seq)
        ).fetchone()
        if above is None:
            return "waiting"
        if above[0]:
            return "settled"
        return "delayed" if above[1] > self._now else "waiting"


def _message(address: Address, columns: Sequence[Any]) -> Message:
    event_id, source, key, headers, body = columns
    return Message(address, event_id, source, key, _decode_headers(headers), body)
