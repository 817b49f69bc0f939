"""Groups: their lanes, their members, and who owns what."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import partial
from typing import Literal

from tidewire.model import Delivery, InboxChannel, LaneEvent, Message, Subscription
from tidewire.transports.memory.balance import plan
from tidewire.transports.memory.log import Entry, Feed
from tidewire.transports.memory.timeline import Timeline, Waiter

__all__ = ["Group", "Lane", "Member", "Share"]


class Lane:
    """What a group has of one lane of a topic, and who owns it. The inbox channel shares the topic's lanes."""

    __slots__ = ("epoch", "heir", "inbox", "index", "name", "owner", "paused", "revoking", "topic", "topic_name")

    def __init__(self, topic_name: str, index: int, topic: Feed, inbox: Feed) -> None:
        self.name = f"{topic_name}/{index}"
        self.topic_name = topic_name
        self.index = index
        self.topic = topic
        self.inbox = inbox
        self.owner: Member | None = None
        self.heir: Member | None = None  # who gets it when the owner has drained it
        self.epoch = 0
        self.paused = False
        self.revoking = False

    @property
    def in_flight(self) -> int:
        """How many are handed out."""
        return len(self.topic.in_flight) + len(self.inbox.in_flight)

    def feed(self, message: Message) -> Feed:
        """Return the feed that *message* came from."""
        return self.inbox if isinstance(message.to, InboxChannel) else self.topic

    def offer(self) -> None:
        """Let the owner know that there may be something to hand out."""
        if self.owner is not None and not self.paused and not self.revoking:
            self.owner.ready[self] = None
            self.owner.waiter.wake()

    def take(self, limit: int) -> list[Delivery]:
        """Hand out up to *limit*, what waits in the inbox channel first: it is older."""
        found = self._deliveries(self.inbox, limit)
        if len(found) < limit:
            found += self._deliveries(self.topic, limit - len(found))
        return found

    def _deliveries(self, feed: Feed, limit: int) -> list[Delivery]:
        if not feed.ready:
            return []
        name, epoch, attempts, suspects = self.name, self.epoch, feed.attempts, feed.suspects
        return [
            Delivery(
                entry.message,
                name,
                epoch,
                entry.position,
                attempts.get(entry.position, 1),
                entry.position in suspects,
                None,
                entry.stored_at,
            )
            for entry in feed.take(limit)
        ]


class Share:
    """A group's share of one topic: its lanes, what waits for its inbox channel, its dead letters."""

    __slots__ = ("dead", "lanes", "next_dead", "next_inbox", "start", "waiting")

    def __init__(self, lanes: Sequence[Lane], start: Literal["earliest", "latest"]) -> None:
        self.lanes = lanes
        self.start = start
        self.waiting: dict[int, Entry] = {}
        self.dead: dict[int, Entry] = {}
        self.next_inbox = 1
        self.next_dead = 1


class Member:
    """One member's place in a group."""

    __slots__ = ("events", "in_flight", "lanes", "life", "ready", "silent", "state", "subscription", "topics", "waiter")

    def __init__(self, subscription: Subscription, waiter: Waiter) -> None:
        self.subscription = subscription
        self.topics = frozenset(subscription.topics)
        self.waiter = waiter
        self.lanes: dict[str, Lane] = {}
        self.ready: dict[Lane, None] = {}  # an ordered set
        self.events: list[LaneEvent] = []
        self.in_flight = 0
        self.state: Literal["active", "leaving", "left"] = "active"
        self.silent = False
        self.life = 0  # grows with every silence, so that an old lease's end is recognised

    def take(self, limit: int) -> list[Delivery | LaneEvent]:
        """Hand out the lane events and, in equal shares of the lanes, up to *limit* deliveries."""
        if self.silent or self.state != "active":
            return []
        found: list[Delivery | LaneEvent] = []
        found += self.events
        self.events.clear()
        room = min(limit, self.subscription.prefetch - self.in_flight)
        while room > 0 and self.ready:
            portion = max(1, room // len(self.ready))
            for lane in list(self.ready):
                handed = lane.take(min(portion, room))
                del self.ready[lane]
                if lane.topic.ready or lane.inbox.ready:
                    self.ready[lane] = None  # behind the others
                found += handed
                self.in_flight += len(handed)
                room -= len(handed)
                if room <= 0:
                    break
        return found


class Group:
    """A group: the members share the lanes of its topics."""

    def __init__(self, name: str, timeline: Timeline, epochs: Iterator[int]) -> None:
        self.name = name
        self.shares: dict[str, Share] = {}
        self.members: list[Member] = []
        self._timeline = timeline
        self._epochs = epochs

    def join(self, member: Member) -> None:
        """Let *member* take part."""
        self.members.append(member)
        self.rebalance()

    def begin_leave(self, member: Member) -> None:
        """Hand nothing more out to *member*; what it has nothing in flight of goes to others now."""
        member.state = "leaving"
        for lane in [lane for lane in member.lanes.values() if not lane.in_flight]:
            self._detach(lane, clean=True)
        self.rebalance()

    def leave(self, member: Member) -> None:
        """Give back all that *member* has, uncounted, and let others take over."""
        self._part(member, clean=True)

    def expire(self, member: Member, life: int) -> None:
        """End the lease of a member that has been silent for all of it."""
        if member.silent and member.life == life and member in self.members:
            self._part(member, clean=False)

    def _part(self, member: Member, *, clean: bool) -> None:
        for lane in list(member.lanes.values()):
            self._detach(lane, clean=clean)
        if member in self.members:
            self.members.remove(member)
        for lane in self._all_lanes():
            if lane.heir is member:
                lane.heir = None
        self.rebalance()

    def drained(self, lane: Lane) -> None:
        """Let a lane that is being revoked go to its heir; what is still in flight comes back uncounted."""
        if lane.revoking:
            self._hand_over(lane, clean=True)

    def _overdue(self, lane: Lane, epoch: int) -> None:
        if lane.revoking and lane.epoch == epoch:
            self._hand_over(lane, clean=False)

    def _hand_over(self, lane: Lane, *, clean: bool) -> None:
        heir = lane.heir
        self._detach(lane, clean=clean)
        if heir is None or heir.state != "active":
            self.rebalance()
        else:
            self._assign(lane, heir)

    def rebalance(self) -> None:
        """Spread the lanes evenly over the members that read them, moving as few as possible."""
        members = [member for member in self.members if member.state == "active"]
        places = {id(member): place for place, member in enumerate(members)}
        lanes = list(self._all_lanes())
        owners = [lane.heir if lane.revoking else lane.owner for lane in lanes]
        held = [
            (lane.topic_name, None if owner is None else places.get(id(owner)))
            for lane, owner in zip(lanes, owners, strict=True)
        ]
        for index, place in plan(held, [member.topics for member in members]).items():
            lane, member = lanes[index], members[place]
            if lane.owner is None:
                self._assign(lane, member)
            elif lane.owner.state == "active":
                self._revoke(lane, member)

    def _all_lanes(self) -> Iterator[Lane]:
        for share in self.shares.values():
            yield from share.lanes

    def _assign(self, lane: Lane, member: Member) -> None:
        lane.owner, lane.epoch, lane.paused = member, next(self._epochs), False
        member.lanes[lane.name] = lane
        member.events.append(LaneEvent("assigned", lane.name, lane.epoch))
        member.waiter.wake()
        lane.offer()

    def _revoke(self, lane: Lane, heir: Member) -> None:
        lane.heir = heir
        owner = lane.owner
        if lane.revoking or owner is None:
            return
        lane.revoking = True
        owner.ready.pop(lane, None)
        deadline = self._timeline.clock.ticks() + _patience(owner.subscription)
        owner.events.append(LaneEvent("revoking", lane.name, lane.epoch, deadline))
        owner.waiter.wake()
        self._timeline.at_ticks(deadline, partial(self._overdue, lane, lane.epoch))

    def _detach(self, lane: Lane, *, clean: bool) -> None:
        owner = lane.owner
        assert owner is not None, "only an owned lane can be taken away"
        owner.in_flight -= lane.topic.give_back_all(clean=clean) + lane.inbox.give_back_all(clean=clean)
        if not clean:
            owner.events.append(LaneEvent("lost", lane.name, lane.epoch))
        owner.ready.pop(lane, None)
        del owner.lanes[lane.name]
        owner.waiter.wake()
        lane.owner = lane.heir = None
        lane.revoking = lane.paused = False


def _patience(subscription: Subscription) -> int:
    """Return the nanoseconds a member may take to drain a lane: its grace, and no longer than its lease."""
    return int(min(subscription.grace, subscription.lease).total_seconds() * 1e9)
