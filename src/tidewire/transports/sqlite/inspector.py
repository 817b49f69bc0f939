"""Looking into the broker, moving cursors, and removing dead letters."""

from __future__ import annotations

import sqlite3
from collections.abc import Sequence
from datetime import datetime, timedelta
from typing import Any

import msgspec

from tidewire.clock import microseconds
from tidewire.errors import TransportRefused
from tidewire.model import Address, Browsed, DeadChannel, GroupInfo, InboxChannel, Message, Stats, Topic, TopicInfo
from tidewire.transports.sqlite.log import TopicRow
from tidewire.transports.sqlite.shared import Shared

__all__ = ["SqliteInspector"]

_decode_headers = msgspec.json.Decoder(dict[str, str]).decode


class SqliteInspector:
    """See `tidewire.protocols.Inspector`."""

    def __init__(self, shared: Shared) -> None:
        self._shared = shared

    async def topics(self) -> Sequence[TopicInfo]:
        """Count each topic's rows by index."""
        read = self._shared.read
        rows = read("SELECT id, name, lanes, retention, size, size_max FROM topic ORDER BY name").fetchall()
        found: list[TopicInfo] = []
        for number, name, lanes, retention, size, size_max in rows:
            count, first, last = read(  # log_topic
                "SELECT count(*), min(seq), max(seq) FROM log WHERE topic = ?", (number,)
            ).fetchone()
            found.append(
                TopicInfo(
                    name=name,
                    lanes=lanes,
                    messages=count,
                    size_bytes=None if size_max is None else size,
                    retention=None if retention is None else timedelta(microseconds=retention),
                    first=first,
                    last=last,
                    oldest_at=self._stored_at(first),
                    newest_at=self._stored_at(last),
                )
            )
        return found

    async def groups(self, topic: str | None = None) -> Sequence[GroupInfo]:
        """Count for every group, and name the members that have live leases."""
        shared = self._shared
        rows = shared.read(
            "SELECT m.id, t.name, m.grp FROM member_of m JOIN topic t ON t.id = m.topic "
            "WHERE ?1 IS NULL OR t.name = ?1 ORDER BY t.name, m.grp",
            (topic,),
        ).fetchall()
        found: list[GroupInfo] = []
        for sub, name, group in rows:
            owners = shared.read(
                "SELECT lane, owner FROM cursor WHERE sub = ? AND owner != '' AND boot = ? AND until > ? ORDER BY lane",
                (sub, shared.boot, shared.clock.ticks()),
            ).fetchall()
            named = {f"{name}/{lane}": owner for lane, owner in owners}
            found.append(GroupInfo(topic=name, group=group, stats=await self.stats(name, group), owners=named))
        return found

    def _stored_at(self, seq: int | None) -> int | None:
        row = None if seq is None else self._shared.read("SELECT at FROM log WHERE seq = ?", (seq,)).fetchone()
        return None if row is None else int(row[0])

    async def stats(self, topic: str, group: str) -> Stats:
        """Count rows by index. *in_flight* is None while a member of another process has lanes: only it knows."""
        found, sub = self._names(topic, group)
        read, now = self._shared.read, self._shared.clock.now_us()
        unsettled, oldest = 0, None
        for lane, pos in read("SELECT lane, pos FROM cursor WHERE sub = ?", (sub,)).fetchall():
            count = read(  # log_topic
                "SELECT count(*) FROM log WHERE topic = ? AND seq > ? AND lane = ?", (found.id, pos, lane)
            ).fetchone()[0]
            done = read(
                "SELECT count(*) FROM above WHERE sub = ? AND lane = ? AND seq > ? AND settled", (sub, lane, pos)
            ).fetchone()[0]
            unsettled += count - done
            if count - done:
                at = self._oldest(found.id, sub, lane, pos)
                oldest = at if oldest is None else min(oldest, at or oldest)
        waiting = read("SELECT count(*) FROM above WHERE sub = ? AND NOT settled AND due > ?", (sub, now)).fetchone()[0]
        private = read("SELECT count(*) FROM inbox WHERE sub = ? AND due <= ?", (sub, now)).fetchone()[0]
        later = read("SELECT count(*) FROM inbox WHERE sub = ? AND due > ?", (sub, now)).fetchone()[0]
        delayed = read("SELECT count(*) FROM delayed WHERE topic = ?", (found.id,)).fetchone()[0]
        dead = read("SELECT count(*) FROM dead WHERE sub = ?", (sub,)).fetchone()[0]
        in_flight = self._in_flight(sub) if unsettled + private else 0
        ready = max(0, unsettled - waiting + private - (in_flight or 0))
        return Stats(
            ready=ready, in_flight=in_flight, delayed=waiting + later + delayed, dead=dead, oldest_ready=oldest
        )

    async def browse(self, address: Address, *, after: int | str | None = None, limit: int = 100) -> Sequence[Browsed]:
        """Read without consuming."""
        start = int(after) if after is not None else 0
        table, column, number = self._place(address)
        rows = self._shared.read(
            f"SELECT seq, at, id, source, key, headers, body FROM {table} WHERE {column} = ? AND seq > ? "
            "ORDER BY seq LIMIT ?",
            (number, start, limit),
        ).fetchall()
        return [
            Browsed(
                Message(address, row[2], self._shared.names.source(row[3]), row[4], _decode_headers(row[5]), row[6]),
                row[0],
                row[1],
            )
            for row in rows
        ]

    async def seek(self, topic: str, group: str, *, to: int | str | datetime) -> None:
        """Move the cursors of an inactive group."""
        found, sub = self._names(topic, group)
        shared = self._shared

        def move(connection: sqlite3.Connection) -> None:
            active = connection.execute(
                "SELECT owner FROM cursor WHERE sub = ? AND owner != '' AND boot = ? AND until > ? LIMIT 1",
                (sub, shared.boot, shared.clock.ticks()),
            ).fetchone()
            if active is not None:
                raise TransportRefused(
                    f"group {group!r} is active on {topic!r} (member {active[0]})", hint="stop its service first"
                )
            pos = _position(connection, found, to)
            connection.execute(
                "UPDATE cursor SET pos = ?, owner = '', epoch = max(epoch + 1, ?) WHERE sub = ?",
                (pos, shared.clock.now_us(), sub),
            )
            connection.execute("DELETE FROM above WHERE sub = ?", (sub,))

        await shared.writer.submit(move)

    async def remove(self, channel: Address, positions: Sequence[int | str]) -> int:
        """Remove dead letters."""
        if not isinstance(channel, DeadChannel):
            raise TransportRefused("only dead letters can be removed", hint="messages of a topic go by its retention")
        _, sub = self._names(channel.topic, channel.group)
        wanted = [(sub, int(position)) for position in positions]

        def delete(connection: sqlite3.Connection) -> int:
            return max(0, connection.executemany("DELETE FROM dead WHERE sub = ? AND seq = ?", wanted).rowcount)

        return await self._shared.writer.submit(delete) if wanted else 0

    def _oldest(self, topic: int, sub: int, lane: int, pos: int) -> int | None:
        """When the first row of a lane was stored that is neither settled nor out in this process."""
        out = {
            seq
            for receiver in self._shared.receivers
            for one in receiver.lanes.values()
            for seq in one.out
            if (one.sub, one.number) == (sub, lane)
        }
        rows = self._shared.read(
            "SELECT l.seq, l.at FROM log l WHERE l.topic = ?1 AND l.seq > ?2 AND l.lane = ?3 AND NOT EXISTS "
            "(SELECT 1 FROM above a WHERE a.sub = ?4 AND a.lane = ?3 AND a.seq = l.seq AND a.settled) "
            "ORDER BY l.seq LIMIT ?5",
            (topic, pos, lane, sub, len(out) + 1),
        ).fetchall()
        return next((at for seq, at in rows if seq not in out), None)

    def _in_flight(self, sub: int) -> int | None:
        """What is out in this process, or None if another process has lanes of the group."""
        shared = self._shared
        here = {receiver.subscription.member for receiver in shared.receivers}
        owners = shared.read(
            "SELECT DISTINCT owner FROM cursor WHERE sub = ? AND owner != '' AND boot = ? AND until > ?",
            (sub, shared.boot, shared.clock.ticks()),
        ).fetchall()
        if any(row[0] not in here for row in owners):
            return None
        lanes = [lane for receiver in shared.receivers for lane in receiver.lanes.values() if lane.sub == sub]
        return sum(lane.unsettled for lane in lanes)

    def _names(self, topic: str, group: str) -> tuple[TopicRow, int]:
        found, sub = self._shared.names.topic(topic), self._shared.names.sub(group, topic)
        if found is None or sub is None:
            raise TransportRefused(f"there is no group {group!r} on topic {topic!r}", hint="provision it first")
        return found, sub

    def _place(self, address: Address) -> tuple[str, str, Any]:
        if isinstance(address, Topic):
            topic = self._shared.names.topic(address.name)
            if topic is None:
                raise TransportRefused(f"there is no topic {address.name!r}")
            return "log", "topic", topic.id
        table = "inbox" if isinstance(address, InboxChannel) else "dead"
        return table, "sub", self._names(address.topic, address.group)[1]


def _position(connection: sqlite3.Connection, topic: TopicRow, to: int | str | datetime) -> int:
    """Return the position after which reading begins.

    Raises:
        TransportRefused: what is asked for is older than what is retained.
    """
    first = connection.execute("SELECT min(seq) FROM log WHERE topic = ?", (topic.id,)).fetchone()[0]
    trimmed, trimmed_at = connection.execute(
        "SELECT trimmed, trimmed_at FROM topic WHERE id = ?", (topic.id,)
    ).fetchone()
    if isinstance(to, datetime):
        if microseconds(to) <= trimmed_at:
            raise TransportRefused(
                f"what {topic.name!r} held at {to} is not retained any more", hint=f"position {first} is the first"
            )
        row = connection.execute(
            "SELECT min(seq) FROM log WHERE topic = ? AND at >= ?", (topic.id, microseconds(to))
        ).fetchone()
        if row[0] is not None:
            return int(row[0]) - 1
        last = connection.execute("SELECT max(seq) FROM log WHERE topic = ?", (topic.id,)).fetchone()[0]
        return int(last or 0)
    position = int(to)
    if position <= trimmed:
        raise TransportRefused(
            f"position {position} of {topic.name!r} is not retained any more", hint=f"the first one is {first}"
        )
    return max(0, position - 1)
