"""Looking into the broker without consuming: stats, browse, seek, and removing dead letters."""

from __future__ import annotations

import heapq
from bisect import bisect_left, bisect_right
from collections.abc import Container, Iterable, Sequence
from datetime import datetime

from tidewire.clock import microseconds
from tidewire.errors import TransportRefused
from tidewire.kit.specs import check_address
from tidewire.model import (
    Address,
    Browsed,
    DeadChannel,
    GroupInfo,
    InboxChannel,
    Stats,
    Topic,
    TopicInfo,
)
from tidewire.transports.memory.broker import MemoryBroker, TopicLog
from tidewire.transports.memory.groups import Lane, Share
from tidewire.transports.memory.log import Cursor, Entry, LaneLog

__all__ = ["browse", "groups", "lag", "remove", "seek", "stats", "topics"]


def topics(broker: MemoryBroker) -> list[TopicInfo]:
    """Return every topic, by name; what waits for its time is not in it yet."""
    return [_topic_info(name, log, broker.clock.now_us()) for name, log in sorted(broker.topics.items())]


def _topic_info(name: str, log: TopicLog, now: int) -> TopicInfo:
    log.trim(now)
    kept = [entry for lane in log.lanes for entry in (lane.entries[:1] + lane.entries[-1:])]
    first, last = min(kept, key=_by_position, default=None), max(kept, key=_by_position, default=None)
    return TopicInfo(
        name=name,
        lanes=log.spec.lanes,
        messages=sum(len(lane.entries) for lane in log.lanes),
        size_bytes=None if log.spec.size_bytes_max is None else log.size,
        retention=log.spec.retention,
        first=None if first is None else first.position,
        last=None if last is None else last.position,
        oldest_at=None if first is None else first.stored_at,
        newest_at=None if last is None else last.stored_at,
        size_bytes_max=log.spec.size_bytes_max,
    )


def groups(broker: MemoryBroker, topic: str | None) -> list[GroupInfo]:
    """Return every group on every topic, or on one, with who has which lane."""
    found: list[GroupInfo] = []
    for name, log in sorted(broker.topics.items()):
        for group, share in sorted(log.shares.items()) if topic in (None, name) else ():
            owners = {lane.name: lane.owner.subscription.member for lane in share.lanes if lane.owner is not None}
            found.append(GroupInfo(topic=name, group=group, stats=stats(broker, name, group), owners=owners))
    return found


def stats(broker: MemoryBroker, topic: str, group: str) -> Stats:
    """Return exact counts of (topic, group)."""
    log, share = _share(broker, topic, group)
    feeds = [feed for lane in share.lanes for feed in (lane.topic, lane.inbox)]
    oldest = [feed.oldest_ready() for feed in feeds]
    return Stats(
        ready=sum(feed.ready for feed in feeds),
        in_flight=sum(len(feed.in_flight) for feed in feeds),
        delayed=len(log.waiting) + len(share.waiting) + sum(len(feed.waiting) for feed in feeds),
        dead=len(share.dead),
        oldest_ready=min((stamp for stamp in oldest if stamp is not None), default=None),
    )


def lag(broker: MemoryBroker, group: str, lanes: Container[str]) -> int:
    """Return how many messages of *lanes* wait to be handed out to a member of *group*."""
    own = [lane for log in broker.topics.values() if group in log.shares for lane in log.shares[group].lanes]
    return sum(
        lane.topic.ready + lane.inbox.ready for lane in own if lane.name in lanes and not (lane.paused or lane.revoking)
    )


def browse(broker: MemoryBroker, address: Address, *, after: int | str | None, limit: int) -> list[Browsed]:
    """Return what is at *address* behind the position *after*, what waits for its time included."""
    check_address(address)
    place = 0 if after is None else _position(after)
    found: Iterable[Entry]
    match address:
        case Topic(name=name):
            log = _topic(broker, name)
            log.trim(broker.clock.now_us())
            found = heapq.merge(
                *(_behind(lane, place, limit) for lane in log.lanes),
                sorted(log.waiting.values(), key=_by_position),
                key=_by_position,
            )
        case InboxChannel(topic=name, group=group):
            found = sorted(_in_inbox(_share(broker, name, group)[1]), key=_by_position)
        case DeadChannel(topic=name, group=group):
            found = _share(broker, name, group)[1].dead.values()
    return _browsed(found, place, limit)


def _browsed(entries: Iterable[Entry], place: int, limit: int) -> list[Browsed]:
    found: list[Browsed] = []
    for entry in entries:
        if len(found) >= limit:
            break
        if entry.position > place:
            found.append(Browsed(entry.message, entry.position, entry.stored_at))
    return found


def _behind(log: LaneLog, place: int, limit: int) -> list[Entry]:
    start = bisect_right(log.entries, place, key=_by_position)
    return log.entries[start : start + limit]


def _in_inbox(share: Share) -> Iterable[Entry]:
    yield from share.waiting.values()
    for lane in share.lanes:
        yield from lane.inbox.outstanding()
        yield from lane.inbox.source.rest()


def seek(broker: MemoryBroker, topic: str, group: str, to: int | str | datetime) -> None:
    """Move an inactive group to a position, or to the first message stored at or after a time.

    The inbox channel stays as it is: what waits there has been decided about.

    Raises:
        TransportRefused: a member is active, or what is asked for is no longer retained.
    """
    log, share = _share(broker, topic, group)
    if any(topic in member.topics for member in broker.groups[group].members):
        raise TransportRefused(f"{group}: members are active on {topic}", hint="stop them, then seek")
    log.trim(broker.clock.now_us())
    starts = [_start(lane, to) for lane in log.lanes]
    if any(start is None for start in starts):
        raise TransportRefused(
            f"{topic}: not everything from {to} on is retained", hint="seek to a later place, or restore from elsewhere"
        )
    for lane, start in zip(share.lanes, starts, strict=True):
        _restart(lane, log, start or 0)


def _restart(lane: Lane, log: TopicLog, index: int) -> None:
    lane.topic.restart(Cursor(log.lanes[lane.index], index))


def _start(log: LaneLog, to: int | str | datetime) -> int | None:
    """Return the index to go on from, or None if messages from there on are gone."""
    if isinstance(to, datetime):
        when = microseconds(to)
        if log.trimmed is not None and log.trimmed.stored_at >= when:
            return None
        return log.base + bisect_left(log.entries, when, key=lambda entry: entry.stored_at)
    place = _position(to)
    if log.trimmed is not None and log.trimmed.position >= place:
        return None
    return log.base + bisect_left(log.entries, place, key=_by_position)


def remove(broker: MemoryBroker, channel: Address, positions: Sequence[int | str]) -> int:
    """Remove dead letters and return how many there were."""
    if not isinstance(channel, DeadChannel):
        raise TransportRefused(f"{channel} is no dead channel: nothing can be removed from it")
    dead = _share(broker, channel.topic, channel.group)[1].dead
    return sum(dead.pop(_position(position), None) is not None for position in positions)


def _topic(broker: MemoryBroker, name: str) -> TopicLog:
    if name not in broker.topics:
        raise TransportRefused(f"there is no topic {name}", hint="provision it first")
    return broker.topics[name]


def _share(broker: MemoryBroker, topic: str, group: str) -> tuple[TopicLog, Share]:
    log = _topic(broker, topic)
    if group not in log.shares:
        raise TransportRefused(f"{topic}: there is no group {group}", hint="provision it first")
    return log, log.shares[group]


def _position(text: int | str) -> int:
    try:
        return int(text)
    except ValueError:
        raise TransportRefused(f"{text!r} is no position of this broker") from None


def _by_position(entry: Entry) -> int:
    return entry.position
