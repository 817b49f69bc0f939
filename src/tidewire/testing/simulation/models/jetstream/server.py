"""The broker: streams with their consumers, and buckets, behind one door."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import timedelta
from itertools import count
from typing import Literal, TypeAlias

import msgspec

from tidewire.model import Message
from tidewire.protocols import Clock
from tidewire.testing.simulation.models.intake import Bell
from tidewire.testing.simulation.models.jetstream.buckets import Bucket, Entry
from tidewire.testing.simulation.models.jetstream.streams import Consumer, Counts, Given, Settings, Stored, Stream
from tidewire.testing.simulation.models.links import Refusal, Server

__all__ = ["JetStreamServer", "Post", "PubAck", "Who"]

_WINDOW = timedelta(minutes=2)
_WINDOW_SMALL = timedelta(seconds=3)
_OUT_MAX = 1_000
_OUT_MAX_SMALL = 12
_SECOND = 1_000_000_000

Who: TypeAlias = tuple[str, str]
"""A stream and a consumer of it."""


class Post(msgspec.Struct, frozen=True):
    """What a client publishes: *name* is the id by which the server knows it again, or empty."""

    stream: str
    subject: str
    message: Message
    name: str
    size: int


class PubAck(msgspec.Struct, frozen=True):
    """What the server says of a post: stored, known already, or refused and why."""

    status: Literal["stored", "duplicate", "refused"]
    reason: str = ""


class JetStreamServer(Server):
    """What the servers of a cluster store and decide."""

    def __init__(self, clock: Clock) -> None:
        super().__init__(clock)
        self.window = _WINDOW
        self.clients = count(1)
        self.streams: dict[str, Stream] = {}
        self.lanes = Bucket(clock)
        self._members: dict[str, Bucket] = {}
        self._out_max = _OUT_MAX

    def cramp(self) -> None:
        """Forget ids soon, and let little be out."""
        self.window = _WINDOW_SMALL
        self._out_max = _OUT_MAX_SMALL

    def repeat(self, draw: float) -> bool:
        """Lose an ack that was given, as a server that fails over may."""
        acked = [
            (consumer, number)
            for name, stream in sorted(self.streams.items())
            if "|" not in name
            for _, consumer in sorted(stream.consumers.items())
            for number, stored in stream.messages.items()
            if stored.subject == consumer.subject and number < consumer.next
        ]
        if not acked:
            return False
        consumer, number = acked[int(draw * len(acked))]
        return consumer.remember(number)

    # --- streams ----------------------------------------------------------------------------------------------

    def create(self, name: str, settings: Settings) -> bool:
        """Create a stream; False if there is one of this name."""
        if name in self.streams:
            return False
        self.streams[name] = Stream(self.clock, settings)
        return True

    def describe(self) -> Mapping[str, Settings]:
        """Return how every stream was made."""
        return {name: stream.settings for name, stream in self.streams.items()}

    def consumers(self) -> Mapping[str, frozenset[str]]:
        """Return the names of every stream's consumers."""
        return {name: frozenset(stream.consumers) for name, stream in self.streams.items()}

    def publish(self, posts: Sequence[Post]) -> list[PubAck]:
        """Store posts that came one behind another on one connection; each is answered for itself."""
        return [self._store(post) for post in posts]

    def _store(self, post: Post) -> PubAck:
        stream = self.streams.get(post.stream)
        if stream is None:
            return PubAck("refused", "unknown_topic")
        if self.refuse is not None and self.refuse(post.message) is not None:
            return PubAck("refused", "invalid")
        most = stream.settings.size_max
        if most is not None and stream.size + post.size > most:
            return PubAck("refused", "full")
        if post.name and stream.known(post.name, self.window):
            return PubAck("duplicate")
        stream.append(post.subject, post.message, post.size)
        return PubAck("stored")

    def look(self, name: str, *, subject: str = "") -> list[Stored]:
        """Return the messages of a stream, or of one subject of it, by their numbers."""
        return [one for one in self._stream(name).messages.values() if subject in ("", one.subject)]

    def listen(self, name: str, subject: str, bell: Bell) -> list[Stored]:
        """Return the messages of a subject; *bell* rings with the next one."""
        self._stream(name).listeners.setdefault(subject, {})[bell] = None
        return self.look(name, subject=subject)

    def delete(self, name: str, numbers: Sequence[int]) -> int:
        """Delete messages of a stream and return how many there were."""
        stream = self._stream(name)
        return sum(stream.delete(number) for number in numbers)

    def purge(self, name: str, numbers: Sequence[int]) -> None:
        """Delete messages of a stream for good: what lay there cannot be read again."""
        stream = self._stream(name)
        for number in numbers:
            if number in stream.messages:
                stream.purged_stamp = max(stream.purged_stamp, stream.messages[number].stamp)
                stream.purged = max(stream.purged, number)
                stream.delete(number)

    def ends(self, name: str) -> tuple[int, int, int]:
        """Return the last number of a stream, the highest one that was purged, and when that was stored."""
        stream = self._stream(name)
        return stream.last, stream.purged, stream.purged_stamp

    def _stream(self, name: str) -> Stream:
        if name not in self.streams:
            raise Refusal("NO_STREAM", name)
        return self.streams[name]

    # --- consumers --------------------------------------------------------------------------------------------

    def ensure(self, name: str, subjects: Mapping[str, str], *, latest: bool) -> None:
        """Make durable consumers of subjects of a stream, by their names; those that are there stay as they are."""
        stream = self._stream(name)
        start = stream.last + 1 if latest else 1
        for consumer, subject in subjects.items():
            if consumer not in stream.consumers:
                made = Consumer(self.clock, stream, subject=subject, start=start, out_max=self._out_max)
                stream.consumers[consumer] = made

    def patience(self, whose: Sequence[Who], seconds: float) -> None:
        """Set the ack wait of consumers."""
        for who in whose:
            self._consumer(who).ack_wait = int(seconds * _SECOND)

    def pull(self, wanted: Sequence[tuple[Who, int, Bell]]) -> list[list[Given]]:
        """Answer several pulls that came one behind another."""
        return [self._consumer(who).pull(batch, bell) for who, batch, bell in wanted]

    def ack(self, numbers: Mapping[Who, Sequence[int]]) -> None:
        """Take acks, from whoever they come."""
        for who, several in numbers.items():
            consumer, stream = self._consumer(who), self._stream(who[0])
            for number in several:
                consumer.ack(number)
                if stream.settings.work:
                    stream.delete(number)

    def nak(self, who: Who, numbers: Sequence[int], *, delay: timedelta) -> None:
        """Hand messages out again, in this order."""
        for number in numbers:
            self._consumer(who).nak(number, delay)

    def progress(self, numbers: Mapping[Who, Sequence[int]]) -> None:
        """Hear that messages are worked on."""
        for who, several in numbers.items():
            self._consumer(who).progress(several)

    def counts(self, whose: Sequence[Who]) -> list[Counts]:
        """Return the counts of consumers."""
        return [self._consumer(who).counts() for who in whose]

    def undone(self, who: Who) -> list[int]:
        """Return what a consumer has not acked."""
        return self._consumer(who).undone()

    def restart_at(self, numbers: Mapping[Who, int]) -> None:
        """Let consumers go on from these numbers."""
        for who, number in numbers.items():
            self._consumer(who).restart(number)

    def _consumer(self, who: Who) -> Consumer:
        stream = self._stream(who[0])
        if who[1] not in stream.consumers:
            raise Refusal("NO_CONSUMER", who[1])
        return stream.consumers[who[1]]

    def overview(self, group: str, bell: Bell) -> tuple[list[tuple[str, bytes]], dict[str, Entry]]:
        """Return who is in a group, and who has which lane; *bell* rings when that changes."""
        members = self.members(group).entries(bell)
        lanes = self.lanes.entries(bell)
        return [(name, members[name].value) for name in sorted(members)], dict(lanes)

    # --- buckets ----------------------------------------------------------------------------------------------

    def members(self, group: str) -> Bucket:
        """Return the bucket of a group's members, whose entries live as long as the bucket says."""
        if group not in self._members:
            self._members[group] = Bucket(self.clock, ttl=30 * _SECOND)
        return self._members[group]
