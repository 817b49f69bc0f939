"""Looking into the broker and acting on it, for operators. Everything here blocks."""

from __future__ import annotations

import os
from collections.abc import Sequence
from datetime import datetime
from pathlib import Path

from directory_broker.broker import Broker
from directory_broker.files import decode, entries, read
from directory_broker.lanes import Lane, save
from directory_broker.member import live_members
from tidewire.clock import microseconds
from tidewire.errors import TransportRefused
from tidewire.model import Address, Browsed, DeadChannel, GroupInfo, Stats, Topic, TopicInfo

__all__ = ["browse", "groups", "remove", "seek", "stats", "topics"]


def topics(broker: Broker) -> list[TopicInfo]:
    """Return every topic, by name."""
    found: list[TopicInfo] = []
    with broker.directory.turn():
        for name in sorted(os.listdir(broker.directory.root / "topics")):
            spec = broker.spec(name)
            if spec is None:
                continue
            there = entries(broker.directory.topic(name) / "messages")
            ends = (there[0], there[-1]) if there else (None, None)
            found.append(
                TopicInfo(
                    name=name,
                    lanes=spec.lanes,
                    messages=len(there),
                    size_bytes=broker.size(name),
                    retention=spec.retention,
                    first=ends[0] and ends[0].position,
                    last=ends[1] and ends[1].position,
                    oldest_at=ends[0] and ends[0].stored_at,
                    newest_at=ends[1] and ends[1].stored_at,
                )
            )
    return found


def groups(broker: Broker, topic: str | None) -> list[GroupInfo]:
    """Return every group, or those of one topic; a lane's owner is one that is alive."""
    names = sorted(os.listdir(broker.directory.root / "topics")) if topic is None else [topic]
    found: list[GroupInfo] = []
    for name in names:
        for group in broker.groups(name) if broker.spec(name) else ():
            counts = stats(broker, name, group)
            with broker.directory.turn():
                alive = live_members(broker, group)
                owners = {f"{name}/{lane.number}": lane.owner.member for lane in _lanes(broker, name, group)}
            living = {lane: owner for lane, owner in owners.items() if owner in alive}
            found.append(GroupInfo(topic=name, group=group, stats=counts, owners=living))
    return found


def stats(broker: Broker, topic: str, group: str) -> Stats:
    """Count what a group has before it."""
    _demand(broker, topic, group)
    with broker.directory.turn():
        now = broker.clock.now_us()
        folder = broker.directory.group(topic, group)
        broker.promote(topic, group, now)
        lanes = _lanes(broker, topic, group)
        floor = min(lane.cursor.floor for lane in lanes)
        ready: list[int] = []
        in_flight = delayed = 0
        for entry in broker.there(topic, group, after=floor):
            lane = lanes[entry.lane]
            if lane.unsettled(entry):
                if entry.position in lane.owner.handed:
                    in_flight += 1
                elif lane.due(entry) > now:
                    delayed += 1
                else:
                    ready.append(entry.stored_at)
        waiting = sum(len(os.listdir(one / "later")) for one in (folder, broker.directory.topic(topic)))
        return Stats(
            ready=len(ready),
            in_flight=in_flight,
            delayed=delayed + waiting,
            dead=len(os.listdir(folder / "dead")),
            oldest_ready=min(ready, default=None),
        )


def browse(broker: Broker, address: Address, after: int | str | None, limit: int) -> list[Browsed]:
    """Return messages behind a position, in order; what waits for its time is not shown before it arrives."""
    _demand(broker, *((address.name,) if isinstance(address, Topic) else (address.topic, address.group)))
    with broker.directory.turn():
        there = entries(broker.directory.folder(address), after=_position(after or 0))[:limit]
        return [
            Browsed(decode(read(Path(entry.path)) or b"", address), entry.position, entry.stored_at) for entry in there
        ]


def seek(broker: Broker, topic: str, group: str, to: int | str | datetime) -> None:
    """Let a group without members begin at a position, or at what was stored at or after a time."""
    _demand(broker, topic, group)
    with broker.directory.turn():
        if any(topic in one.topics for one in live_members(broker, group).values()):
            raise TransportRefused(f"{group} has members on {topic}", hint="stop them first")
        gone = broker.let_go(topic)
        if isinstance(to, datetime):
            when = microseconds(to)
            lost = when <= gone.stored_at
            there = entries(broker.directory.topic(topic) / "messages")
            position = next((one.position for one in there if one.stored_at >= when), broker.counter(topic) + 1)
        else:
            position = _position(to)
            lost = position <= gone.position
        if lost:
            raise TransportRefused(f"{topic} no longer has what was at {to}", hint="retention has let it go")
        lanes = _lanes(broker, topic, group)
        for lane in lanes:
            # What is known of the inbox channel's messages stays: their positions are not the topic's.
            lane.cursor.floor, lane.cursor.settled = position - 1, set()
            inbox = {entry.position for entry in entries(broker.directory.group(topic, group) / "inbox")}
            lane.cursor.counts = {place: count for place, count in lane.cursor.counts.items() if place in inbox}
            lane.cursor.due = {place: due for place, due in lane.cursor.due.items() if place in inbox}
        save(broker.directory, [(lane, ()) for lane in lanes])


def remove(broker: Broker, channel: Address, positions: Sequence[int | str]) -> int:
    """Remove dead letters."""
    if not isinstance(channel, DeadChannel):
        raise TransportRefused(f"{channel} is no dead channel")
    _demand(broker, channel.topic, channel.group)
    wanted = {_position(position) for position in positions}
    with broker.directory.turn():
        folder = broker.directory.folder(channel)
        gone = [entry for entry in entries(folder) if entry.position in wanted]
        for entry in gone:
            os.unlink(entry.path)
        broker.directory.sync(folder)
        return len(gone)


def _lanes(broker: Broker, topic: str, group: str) -> list[Lane]:
    spec = broker.spec(topic)
    return [] if spec is None else [broker.lane(topic, group, number) for number in range(spec.lanes)]


def _position(position: int | str) -> int:
    try:
        return int(position)
    except ValueError:
        raise TransportRefused(f"{position!r} is no position") from None


def _demand(broker: Broker, topic: str, group: str | None = None) -> None:
    if broker.spec(topic) is None:
        raise TransportRefused(f"there is no topic {topic}")
    if group is not None and not broker.has_group(topic, group):
        raise TransportRefused(f"no group {group} reads {topic}")
