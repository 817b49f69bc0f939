"""The broker that lives in memory: topics, groups, and what may be stored. Everything in here happens at once."""

from __future__ import annotations

import difflib
import zlib
from collections.abc import Callable, Sequence
from datetime import timedelta
from functools import partial
from itertools import count
from typing import Literal

from tidewire.clock import SystemClock
from tidewire.errors import ConfigurationError
from tidewire.model import (
    Act,
    Address,
    Change,
    DeadChannel,
    GroupSpec,
    InboxChannel,
    Message,
    Receipt,
    Subscription,
    Topic,
    TopicSpec,
)
from tidewire.protocols import Clock
from tidewire.transports.memory.groups import Group, Lane, Member, Share
from tidewire.transports.memory.log import Cursor, Entry, Feed, LaneLog, Queue
from tidewire.transports.memory.timeline import Timeline, Waiter

__all__ = ["MemoryBroker", "TopicLog", "size_of"]

TRIM_EVERY = 64
"""A topic looks for what its retention lets go after so many messages."""


class TopicLog:
    """A topic: its lanes, the messages that wait for their time, the groups that read it."""

    __slots__ = ("appended", "lanes", "next_lane", "next_position", "seen", "shares", "size", "spec", "waiting")

    def __init__(self, spec: TopicSpec) -> None:
        self.spec = spec
        self.lanes = [LaneLog() for _ in range(spec.lanes)]
        self.shares: dict[str, Share] = {}
        self.waiting: dict[int, Entry] = {}
        self.seen: dict[tuple[str, str], int] = {}  # (source, id) → when; oldest first
        self.size = 0
        self.next_position = 1
        self.next_lane = 0
        self.appended = 0

    def position(self) -> int:
        """Return the next position of the topic."""
        self.next_position += 1
        return self.next_position - 1

    def lane_of(self, key: str | None) -> int:
        """Return the lane of *key*; messages without one take turns."""
        if key is None:
            self.next_lane = (self.next_lane + 1) % self.spec.lanes
            return self.next_lane
        return zlib.crc32(key.encode(errors="surrogatepass")) % self.spec.lanes

    def trim(self, now: int, *, early: bool = False) -> None:
        """Remove what every group has settled and retention lets go; *early*: whatever its age."""
        retention = self.spec.retention
        if retention is None and not early:
            return
        limit = now if early or retention is None else now - retention // timedelta(microseconds=1)
        for index, log in enumerate(self.lanes):
            if not log.entries or log.entries[0].stored_at > limit:
                continue
            oldest = [share.lanes[index].topic.oldest() for share in self.shares.values()]
            keep = min((position for position in oldest if position is not None), default=self.next_position)
            number = 0
            for entry in log.entries:
                if entry.position >= keep or entry.stored_at > limit:
                    break
                number += 1
            gone = log.trim(number)
            if self.spec.size_bytes_max is not None:
                self.size -= sum(size_of(entry.message) for entry in gone)

    def holders(self) -> list[str]:
        """Return the groups that have not settled everything."""
        return [
            name for name, share in self.shares.items() if any(lane.topic.oldest() is not None for lane in share.lanes)
        ]


class MemoryBroker:
    """A broker in the memory of one process and one event loop. Nothing outlives it; durability is "none".

    Several transports may be opened on one broker, as several processes would be on a real one. *clock* judges
    its delays and leases; *dedup* is how long an id is recognised.

    Two switches let tests say what a real broker does on a bad day. While *down* is true every call raises
    `TransportUnavailable`. *refuse* sees each message that is to be stored and returns the reason why it is not.
    """

    def __init__(
        self,
        *,
        clock: Clock | None = None,
        dedup: timedelta = timedelta(minutes=10),
        message_bytes_max: int = 1 << 20,
    ) -> None:
        self.clock: Clock = SystemClock() if clock is None else clock
        self.dedup = dedup
        self.message_bytes_max = message_bytes_max
        self.down = False
        self.refuse: Callable[[Message], str | None] | None = None
        self.timeline = Timeline(self.clock)
        self.topics: dict[str, TopicLog] = {}
        self.acts: list[Act] = []
        self.groups: dict[str, Group] = {}
        # Stores remember the highest epoch of a lane, also over a restart in which this broker forgets everything.
        self._epochs = count(self.clock.now_us())
        self._tickets = count()

    # --- publishing -------------------------------------------------------------------------------------------

    def publish(self, messages: Sequence[Message]) -> list[Receipt]:
        """Store *messages*, in order, and say what became of each."""
        now = self.clock.now_us()
        failed: set[tuple[Address, str]] = set()
        receipts: list[Receipt] = []
        for message in messages:
            if failed and message.key is not None and (message.to, message.key) in failed:
                receipts.append(Receipt(message.id, "rejected", "after_failure"))
                continue
            receipt = self._refusal(message, now) or self._store(message, now)
            if not receipt.ok and message.key is not None:
                failed.add((message.to, message.key))
            receipts.append(receipt)
        return receipts

    def publish_all_or_none(self, messages: Sequence[Message]) -> list[Receipt]:
        """Store all of *messages*, or none of them if one is refused."""
        now = self.clock.now_us()
        refusals = [self._refusal(message, now) for message in messages]
        if any(refusals):
            other = partial(Receipt, status="rejected", reason="after_failure", detail="all or none")
            return [refusal or other(message.id) for message, refusal in zip(messages, refusals, strict=True)]
        return [self._store(message, now) for message in messages]

    def _refusal(self, message: Message, now: int) -> Receipt | None:
        reason = None if self.refuse is None else self.refuse(message)
        if reason is not None:
            return Receipt(message.id, "rejected", reason, "refused by the broker's test switch")
        to = message.to
        topic = self.topics.get(to.name if isinstance(to, Topic) else to.topic)
        if topic is None or (not isinstance(to, Topic) and to.group not in topic.shares):
            return Receipt(message.id, "rejected", "unknown_topic", f"there is no {to}")
        # A character has at most four bytes; counting them is left to those that come near.
        letters = len(message.body) + sum(map(len, message.headers)) + sum(map(len, message.headers.values()))
        if letters * 4 > self.message_bytes_max and (size := size_of(message)) > self.message_bytes_max:
            detail = f"{size} bytes with headers; at most {self.message_bytes_max}"
            return Receipt(message.id, "rejected", "too_large", detail)
        if topic.spec.size_bytes_max is not None and isinstance(to, Topic):
            return self._over_cap(message, topic, topic.spec.size_bytes_max, now)
        return None

    def _over_cap(self, message: Message, topic: TopicLog, cap: int, now: int) -> Receipt | None:
        size = size_of(message)
        if topic.size + size > cap:
            topic.trim(now, early=True)
        if topic.size + size <= cap or (message.source, message.id) in topic.seen:
            return None
        held = ", ".join(topic.holders()) or "nobody"
        return Receipt(message.id, "rejected", "full", f"{topic.spec.name} is at its {cap} bytes, held back by {held}")

    def _store(self, message: Message, now: int) -> Receipt:
        match message.to:
            case Topic(name=name):
                return self._store_in_topic(self.topics[name], message, now)
            case InboxChannel(topic=name, group=group):
                self._store_in_inbox(self.topics[name], group, message, now)
            case DeadChannel(topic=name, group=group):
                share = self.topics[name].shares[group]
                share.dead[share.next_dead] = Entry(share.next_dead, message, now)
                share.next_dead += 1
        return Receipt(message.id, "stored")

    def _store_in_topic(self, topic: TopicLog, message: Message, now: int) -> Receipt:
        if message.id:
            known = (message.source, message.id)
            self._forget_ids(topic, now)
            if known in topic.seen:
                return Receipt(message.id, "duplicate")
            topic.seen[known] = now
        topic.size += 0 if topic.spec.size_bytes_max is None else size_of(message)
        if message.not_before is not None and message.not_before > now:
            ticket = next(self._tickets)
            topic.waiting[ticket] = Entry(topic.position(), message, now)
            self.timeline.at_time(message.not_before, partial(self._due_in_topic, topic, ticket))
        else:
            self._append(topic, message, now)
        return Receipt(message.id, "stored")

    def _forget_ids(self, topic: TopicLog, now: int) -> None:
        limit = now - self.dedup // timedelta(microseconds=1)
        while topic.seen:
            oldest = next(iter(topic.seen))
            if topic.seen[oldest] > limit:
                return
            del topic.seen[oldest]

    def _append(self, topic: TopicLog, message: Message, now: int) -> None:
        lane = topic.lane_of(message.key)
        topic.lanes[lane].entries.append(Entry(topic.position(), message, now))
        for share in topic.shares.values():
            share.lanes[lane].offer()
        topic.appended += 1
        if topic.appended % TRIM_EVERY == 0:
            topic.trim(now)

    def _due_in_topic(self, topic: TopicLog, ticket: int) -> None:
        self._append(topic, topic.waiting.pop(ticket).message, self.clock.now_us())

    def _store_in_inbox(self, topic: TopicLog, group: str, message: Message, now: int) -> None:
        share = topic.shares[group]
        entry = Entry(share.next_inbox, message, now)
        share.next_inbox += 1
        if message.not_before is not None and message.not_before > now:
            share.waiting[entry.position] = entry
            self.timeline.at_time(message.not_before, partial(self._due_in_inbox, topic, share, entry.position))
        else:
            self._enqueue(topic, share, entry)

    def _due_in_inbox(self, topic: TopicLog, share: Share, position: int) -> None:
        entry = Entry(share.next_inbox, share.waiting.pop(position).message, self.clock.now_us())
        share.next_inbox += 1
        self._enqueue(topic, share, entry)

    def _enqueue(self, topic: TopicLog, share: Share, entry: Entry) -> None:
        lane = share.lanes[topic.lane_of(entry.message.key)]
        queue = lane.inbox.source
        assert isinstance(queue, Queue), "an inbox channel is read from a queue"
        queue.entries.append(entry)
        lane.offer()

    # --- topology ---------------------------------------------------------------------------------------------

    def provision(self, topics: Sequence[TopicSpec], groups: Sequence[GroupSpec], *, dry_run: bool) -> list[Change]:
        """Create what is missing and say, for each, what was done."""
        changes = [self._provision_topic(spec, dry_run) for spec in topics]
        known = self.topics.keys() | {spec.name for spec in topics}
        return changes + [self._provision_group(spec, known, dry_run) for spec in groups]

    def _provision_topic(self, spec: TopicSpec, dry_run: bool) -> Change:
        what = f"topic {spec.name}"
        if (topic := self.topics.get(spec.name)) is not None:
            fields = ("lanes", "retention", "size_bytes_max")
            differ = [
                f"{name} is {getattr(topic.spec, name)}, not {getattr(spec, name)}"
                for name in fields
                if getattr(topic.spec, name) != getattr(spec, name)
            ]
            return Change("conflict", what, "; ".join(differ)) if differ else Change("unchanged", what)
        if spec.lanes < 1:
            return Change("conflict", what, "a topic needs at least one lane")
        if not dry_run:
            self.topics[spec.name] = TopicLog(spec)
        return Change("create", what)

    def _provision_group(self, spec: GroupSpec, known: set[str], dry_run: bool) -> Change:
        what = f"group {spec.name}"
        if missing := [topic for topic in spec.topics if topic not in known]:
            return Change("conflict", what, f"there is no topic {', '.join(missing)}")
        group = self.groups.get(spec.name)
        shares = {} if group is None else group.shares
        if other := [name for name in spec.topics if name in shares and shares[name].start != spec.start]:
            return Change("conflict", what, f"it began at {shares[other[0]].start} of {', '.join(other)}")
        new = [topic for topic in spec.topics if topic not in shares]
        if group is not None and not new:
            return Change("unchanged", what)
        if not dry_run:
            self.ensure_group(spec.name, new, spec.start)
        return Change("create", what, f"reads {', '.join(new)}")

    def ensure_group(self, name: str, topics: Sequence[str], start: Literal["earliest", "latest"]) -> Group:
        """Return the group; on *topics* that it did not read before, it begins at *start*."""
        group = self.groups.get(name)
        if group is None:
            group = self.groups[name] = Group(name, self.timeline, self._epochs)
        for topic in topics:
            if topic not in group.shares:
                log = self.topics[topic]
                lanes = [
                    Lane(
                        topic, index, Feed(Cursor(lane, lane.base if start == "earliest" else lane.end)), Feed(Queue())
                    )
                    for index, lane in enumerate(log.lanes)
                ]
                group.shares[topic] = log.shares[name] = Share(lanes, start)
        return group

    def join(self, subscription: Subscription) -> tuple[Group, Member]:
        """Let a member into its group.

        Raises:
            ConfigurationError: a topic is unknown, or the prefetch is not above zero.
        """
        if subscription.prefetch < 1:
            raise ConfigurationError(f"{subscription.group}: prefetch is {subscription.prefetch}, at least 1 is needed")
        for name in subscription.topics:
            if name not in self.topics:
                near = difflib.get_close_matches(name, self.topics, n=1)
                hint = f"did you mean {near[0]}?" if near else "provision it first"
                raise ConfigurationError(f"{subscription.group}: there is no topic {name}", hint=hint)
        group = self.ensure_group(subscription.group, subscription.topics, subscription.start)
        member = Member(subscription, Waiter(self.timeline))
        group.join(member)
        return group, member


def size_of(message: Message) -> int:
    """Return the bytes of the body and of the headers' names and values."""
    return len(message.body) + sum(
        len(name.encode(errors="surrogatepass")) + len(value.encode(errors="surrogatepass"))
        for name, value in message.headers.items()
    )
