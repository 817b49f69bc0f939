"""Looking into the broker, moving cursors, and removing dead letters."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from functools import partial

from tidewire.clock import microseconds
from tidewire.errors import TransportRefused
from tidewire.kit.specs import check_address
from tidewire.kit.sqllog.counting import Here, Place, describe_topics, list_places, live_owners, measure, noted, waiting
from tidewire.kit.sqllog.home import Connection
from tidewire.kit.sqllog.names import TopicRow
from tidewire.kit.sqllog.reading import MESSAGE_COLUMNS, message_of
from tidewire.kit.sqllog.shared import Shared
from tidewire.model import Address, Browsed, DeadChannel, GroupInfo, InboxChannel, Stats, Topic, TopicInfo

__all__ = ["LogInspector"]


class LogInspector:
    """See `tidewire.protocols.Inspector`."""

    def __init__(self, shared: Shared) -> None:
        self._shared = shared

    async def topics(self) -> Sequence[TopicInfo]:
        """Count each topic's messages by index; what waits for its time is none yet."""
        return await self._shared.home.beside(describe_topics)

    async def groups(self, topic: str | None = None) -> Sequence[GroupInfo]:
        """Count for every group, and name the members that have live leases."""
        beside = self._shared.home.beside
        found: list[GroupInfo] = []
        for place in await beside(lambda connection: list_places(connection, topic)):
            found.append(await beside(partial(_describe, place=place, here=self._here())))
        return found

    async def stats(self, topic: str, group: str) -> Stats:
        """Count by index. *in_flight* is None while a member of another process has lanes: only it knows."""
        found, sub = await self._names(topic, group)
        place, here = Place(sub, found.id, topic, group), self._here()
        return await self._shared.home.beside(lambda connection: measure(connection, place, here))

    async def lag(self, group: str, lanes: Sequence[str]) -> int:
        """Count by index what lies behind the last row that was handed out of each lane, and what is due in inboxes."""
        now = self._shared.clock.now_us()
        own = [
            noted(lane, now)
            for receiver in self._shared.receivers
            if receiver.subscription.group == group
            for lane in receiver.lanes.values()
            if lane.name in lanes and not (lane.paused or lane.revoking)
        ]
        return await self._shared.home.beside(lambda connection: sum(waiting(connection, one) for one in own))

    async def browse(self, address: Address, *, after: int | str | None = None, limit: int = 100) -> Sequence[Browsed]:
        """Read without consuming. What a topic keeps until its time is not in its log yet, so it is not seen here."""
        check_address(address)
        start = 0 if after is None else _number(after)
        table, column, number = await self._place(address)
        where = f"WHERE m.{column} = ? AND m.seq > ? ORDER BY m.seq LIMIT ?"
        sql = f"SELECT m.seq, m.at, {MESSAGE_COLUMNS} FROM {table} m {where}"

        def look(connection: Connection) -> list[Browsed]:
            rows = connection.execute(sql, (number, start, limit))
            return [Browsed(message_of(address, columns), seq, at) for seq, at, *columns in rows]

        return await self._shared.home.beside(look)

    async def seek(self, topic: str, group: str, *, to: int | str | datetime) -> None:
        """Move the cursors of an inactive group."""
        found, sub = await self._names(topic, group)
        shared = self._shared

        def move(connection: Connection) -> None:
            active = connection.execute(
                "SELECT owner FROM cursor WHERE sub = ? AND owner != '' AND boot = ? AND until > ? LIMIT 1",
                (sub, shared.home.boot, shared.clock.ticks()),
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
        _, sub = await self._names(channel.topic, channel.group)
        wanted = [(sub, _number(position)) for position in positions]

        def delete(connection: Connection) -> int:
            return max(0, connection.executemany("DELETE FROM dead WHERE sub = ? AND seq = ?", wanted).rowcount)

        return await self._shared.writer.submit(delete) if wanted else 0

    def _here(self) -> Here:
        """Note what only this process knows."""
        shared = self._shared
        out: dict[tuple[int, int], frozenset[int]] = {}
        unsettled: dict[int, int] = {}
        for receiver in shared.receivers:
            for lane in receiver.lanes.values():
                out[lane.sub, lane.number] = frozenset(lane.out)
                unsettled[lane.sub] = unsettled.get(lane.sub, 0) + lane.unsettled
        members = frozenset(receiver.subscription.member for receiver in shared.receivers)
        return Here(members, out, unsettled, shared.home.boot, shared.clock.ticks(), shared.clock.now_us())

    async def _names(self, topic: str, group: str) -> tuple[TopicRow, int]:
        found, sub = await self._shared.names.find_topic(topic), await self._shared.names.find_sub(group, topic)
        if found is None or sub is None:
            raise TransportRefused(f"there is no group {group!r} on topic {topic!r}", hint="provision it first")
        return found, sub

    async def _place(self, address: Address) -> tuple[str, str, int]:
        if isinstance(address, Topic):
            topic = await self._shared.names.find_topic(address.name)
            if topic is None:
                raise TransportRefused(f"there is no topic {address.name!r}", hint="provision it first")
            return "log", "topic", topic.id
        table = "inbox" if isinstance(address, InboxChannel) else "dead"
        return table, "sub", (await self._names(address.topic, address.group))[1]


def _describe(connection: Connection, *, place: Place, here: Here) -> GroupInfo:
    return GroupInfo(
        topic=place.name,
        group=place.group,
        stats=measure(connection, place, here),
        owners=live_owners(connection, place, here),
    )


def _number(position: int | str) -> int:
    try:
        return int(position)
    except ValueError:
        raise TransportRefused(f"{position!r} is no position of this broker") from None


def _position(connection: Connection, topic: TopicRow, to: int | str | datetime) -> int:
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
    position = _number(to)
    if position <= trimmed:
        raise TransportRefused(
            f"position {position} of {topic.name!r} is not retained any more", hint=f"the first one is {first}"
        )
    return max(0, position - 1)
