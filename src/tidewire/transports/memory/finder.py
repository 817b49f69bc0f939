"""Where an event lies in the broker, how far each group is with it, and what belongs to it."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import Literal, TypeAlias

from tidewire.model import Found, Message, Standing
from tidewire.transports.memory.broker import MemoryBroker, TopicLog
from tidewire.transports.memory.groups import Share
from tidewire.transports.memory.log import Cursor, Entry, Feed

__all__ = ["find", "related"]

State: TypeAlias = Literal["settled", "waiting", "delayed", "dead"]
Accept: TypeAlias = Callable[[Message], bool]


def find(broker: MemoryBroker, event_id: str, limit: int) -> list[Found]:
    """Return every place where a message with this id lies, oldest first; nothing has the empty id.

    It looks at every message: an index would cost each publish, and a million of them are looked at in a fraction of
    a second.
    """

    def accept(message: Message) -> bool:
        return message.id == event_id

    found: list[Found] = []
    for log in broker.topics.values() if event_id else ():
        found += _in_topic(log, accept)
        for group, share in log.shares.items():
            found += _in_inbox(share, group, accept)
            found += _in_dead(share, group, accept)
    return _oldest(found, limit)


def related(broker: MemoryBroker, correlation_id: str, limit: int) -> list[Found]:
    """Return what has this id or correlation id in topics and dead channels, oldest first."""

    def accept(message: Message) -> bool:
        return message.id == correlation_id or message.headers.get("ce-correlationid") == correlation_id

    found: list[Found] = []
    for log in broker.topics.values() if correlation_id else ():
        found += _in_topic(log, accept)
        for group, share in log.shares.items():
            found += _in_dead(share, group, accept)
    return _oldest(found, limit)


def _oldest(found: Iterable[Found], limit: int) -> list[Found]:
    return sorted(found, key=lambda one: one.stored_at or 0)[: max(0, limit)]


def _in_topic(log: TopicLog, accept: Accept) -> Iterator[Found]:
    shares = sorted(log.shares.items())
    for number, lane in enumerate(log.lanes):
        for index, entry in enumerate(lane.entries, lane.base):
            if accept(entry.message):
                states = [Standing(group, _state(share.lanes[number].topic, entry, index)) for group, share in shares]
                yield _found(entry, states)
    for entry in log.waiting.values():
        if accept(entry.message):
            yield _found(entry, [Standing(group, "delayed") for group, _ in shares])


def _in_inbox(share: Share, group: str, accept: Accept) -> Iterator[Found]:
    yield from _channel(share.waiting.values(), group, "delayed", accept)
    for lane in share.lanes:
        feed = lane.inbox
        yield from _channel((entry for _, entry in feed.waiting.values()), group, "delayed", accept)
        yield from _channel(feed.in_flight.values(), group, "waiting", accept)
        yield from _channel((entry for _, entry in feed.returned), group, "waiting", accept)
        yield from _channel(feed.source.rest(), group, "waiting", accept)


def _in_dead(share: Share, group: str, accept: Accept) -> Iterator[Found]:
    yield from _channel(share.dead.values(), group, "dead", accept)


def _channel(entries: Iterable[Entry], group: str, state: State, accept: Accept) -> Iterator[Found]:
    return (_found(entry, [Standing(group, state)]) for entry in entries if accept(entry.message))


def _found(entry: Entry, standings: list[Standing]) -> Found:
    return Found(entry.message, entry.position, entry.stored_at, standings)


def _state(feed: Feed, entry: Entry, index: int) -> State:
    """How far a group is with the entry at *index* of a lane: behind its place, what is not outstanding is settled."""
    assert isinstance(feed.source, Cursor), "a lane of a topic is read with a cursor"
    if entry.position in feed.waiting:
        return "delayed"
    outstanding = entry.position in feed.in_flight or any(entry.position == place for place, _ in feed.returned)
    return "waiting" if index >= feed.source.index or outstanding else "settled"
