"""Which lanes are ours: by the bucket, as long as our own entry in it lives."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import suppress
from datetime import timedelta

import msgspec

from tidewire.model import InboxChannel, LaneEvent, Subscription
from tidewire.testing.simulation.models.channels import name_of
from tidewire.testing.simulation.models.intake import Bell, Intake
from tidewire.testing.simulation.models.jetstream.buckets import Entry
from tidewire.testing.simulation.models.jetstream.lanes import Channel, Claim, Lane
from tidewire.testing.simulation.models.jetstream.server import JetStreamServer, Who
from tidewire.testing.simulation.models.links import Disconnected, Link, Refusal
from tidewire.transports.memory.balance import plan

__all__ = ["Ownership"]

_decode_claim = msgspec.json.Decoder(Claim).decode
_decode_topics = msgspec.json.Decoder(list[str]).decode


class Ownership:
    """The lanes of one member, and the tasks of owning them.

    A member lives as long as its entry, which it writes anew three times a lease. A lane is free when nobody who lives
    stands in its entry; whoever writes his name over the revision he has seen has it, and that write is its epoch.
    By our own clock we stop to be owners before anybody else may begin.
    """

    def __init__(self, server: JetStreamServer, link: Link, *, subscription: Subscription, intake: Intake) -> None:
        self.lanes: dict[str, Lane] = {}
        self.kick = Bell()
        self._server = server
        self._link = link
        self._subscription = subscription
        self._intake = intake
        self._valid_until = 0
        self._counts: Mapping[str, int] = {}

    def inbox(self, topic: str) -> InboxChannel:
        """Return the inbox channel of a topic."""
        return InboxChannel(topic, self._subscription.group)

    def inbox_stream(self, topic: str) -> str:
        """Return its stream."""
        return name_of(self.inbox(topic))

    def check_lease(self) -> None:
        """Lose everything if nobody has heard of us for a whole lease."""
        if self.lanes and self._server.clock.ticks() > self._valid_until:
            for lane in list(self.lanes.values()):
                self._drop(lane, lost=True)
            self.kick.ring()

    async def begin(self) -> None:
        """Join; `live` looks for lanes at once."""
        settings = await self._link.call(self._server.describe)
        self._counts = {topic: settings[topic].lanes for topic in self._subscription.topics}
        group, seconds = self._subscription.group, self._subscription.lease.total_seconds()
        self._server.members(group).ttl = int(seconds * 1e9)
        consumers = [
            (stream, consumer)
            for topic, count in self._counts.items()
            for stream in (topic, self.inbox_stream(topic))
            for consumer in (f"{group}.{number}" for number in range(count))
        ]
        await self._link.call(self._server.patience, consumers, seconds)

    async def live(self) -> None:
        """Renew, look, take and let go, until cancelled."""
        interval = self._subscription.lease.total_seconds() / 3
        while True:
            heard = self.kick.rings
            with suppress(Disconnected):
                await self._let_go()
                await self._tick()
            self.check_lease()
            await self.kick.wait(heard, min(interval, self._until_deadline()))

    async def end(self) -> None:
        """Give every lane back, and go."""
        self.check_lease()
        for lane in list(self.lanes.values()):
            await self._hand_back(lane)
        group = self._server.members(self._subscription.group)
        await self._link.call(group.delete, self._subscription.member)

    async def write(self, lane: Lane, *, owner: str | None = None) -> None:
        """Write a lane's entry over the revision we know; if there is another one, it may be our own, unheard."""
        claim = lane.claim(self._subscription.member if owner is None else owner)
        for last in (False, True):
            try:
                lane.revision = await self._link.call(
                    self._server.lanes.put, self._key(lane.topic, lane.subject), claim, over=lane.revision
                )
            except Refusal:
                if not last:
                    await self._look()
                if last or lane.name not in self.lanes:
                    break
            else:
                return
        if lane.name in self.lanes:
            self._drop(lane, lost=True)

    def take_back(self, lane: Lane) -> None:
        """Take back what was to be handed out next."""
        for delivery in self._intake.drop(lane.name):
            lane.of(delivery.message).keep(int(delivery.position))

    def _key(self, topic: str, subject: str) -> str:
        return f"{self._subscription.group}|{topic}|{subject}"

    # --- looking ----------------------------------------------------------------------------------------------

    async def _tick(self) -> None:
        sent_at = self._server.clock.ticks()
        subscription = self._subscription
        members = self._server.members(subscription.group)
        await self._link.call(members.put, subscription.member, msgspec.json.encode(list(subscription.topics)))
        there, entries = await self._look()
        self._valid_until = sent_at + int(subscription.lease.total_seconds() * 1e9)
        alive = frozenset(name for name, _ in there)
        mine = self._share(there, entries)
        for topic, count in self._counts.items():
            for number in range(count):
                lane = self.lanes.get(f"{topic}/{number}")
                if lane is None and (topic, number) in mine:
                    await self._take(topic, str(number), entries=entries, alive=alive)
                elif lane is not None and (topic, number) not in mine and lane.deadline is None:
                    self._revoke(lane)
        await self._keep()

    def _share(
        self, there: Sequence[tuple[str, list[str]]], entries: Mapping[str, Entry]
    ) -> frozenset[tuple[str, int]]:
        """Return the lanes that should be ours: everybody who sees the same comes to the same."""
        places = {name: place for place, (name, _) in enumerate(there)}
        lanes = [(topic, number) for topic, count in sorted(self._counts.items()) for number in range(count)]
        owners: list[int | None] = []
        for topic, number in lanes:
            entry = entries.get(self._key(topic, str(number)))
            owners.append(None if entry is None else places.get(_decode_claim(entry.value).owner))
        held = [(topic, owner) for (topic, _), owner in zip(lanes, owners, strict=True)]
        changes = plan(held, [topics for _, topics in there])
        me = places.get(self._subscription.member)
        return frozenset(lane for index, lane in enumerate(lanes) if changes.get(index, owners[index]) == me)

    async def _look(self) -> tuple[list[tuple[str, list[str]]], Mapping[str, Entry]]:
        """Read who is there and who has what; a lane that somebody else has by now is lost."""
        found, entries = await self._link.call(self._server.overview, self._subscription.group, self.kick)
        for lane in list(self.lanes.values()):
            entry = entries.get(self._key(lane.topic, lane.subject))
            if entry is None or _decode_claim(entry.value).owner != self._subscription.member:
                self._drop(lane, lost=True)
            else:
                lane.revision = entry.revision
        return [(name, _decode_topics(value)) for name, value in found], entries

    async def _take(self, topic: str, subject: str, *, entries: Mapping[str, Entry], alive: frozenset[str]) -> None:
        """Take a lane that nobody has."""
        key = self._key(topic, subject)
        entry = entries.get(key)
        claim = Claim("") if entry is None else _decode_claim(entry.value)
        if claim.owner in alive and claim.owner != self._subscription.member:
            return
        new = msgspec.json.encode(Claim(self._subscription.member, claim.tries))
        try:
            epoch = await self._link.call(self._server.lanes.put, key, new, over=0 if entry is None else entry.revision)
        except Refusal:
            return  # somebody was quicker, or our own earlier write was: the next look shows it
        group, bell = self._subscription.group, self._intake.bell
        inbox, public = (self.inbox_stream(topic), f"{group}.{subject}"), (topic, f"{group}.{subject}")
        lane = Lane(
            topic, subject, epoch=epoch, bell=bell,
            inbox=Channel(inbox, claim.tries[0], bell=bell), public=Channel(public, claim.tries[1], bell=bell),
        )  # fmt: skip
        self.lanes[lane.name] = lane
        self._intake.tell(LaneEvent("assigned", lane.name, epoch))

    async def _keep(self) -> None:
        """Say that we work on all that we have."""
        numbers: dict[Who, Sequence[int]] = {
            channel.who: channel.held for lane in self.lanes.values() for channel in lane.both if channel.held
        }
        if numbers:
            await self._link.call(self._server.progress, numbers)
        if self._subscription.ordering == "none":
            for lane in self.lanes.values():
                for channel in lane.both:
                    channel.ring.more = True  # what was put off may be due
            self._intake.bell.ring()

    # --- letting go -------------------------------------------------------------------------------------------

    def _revoke(self, lane: Lane) -> None:
        patience = min(self._subscription.grace, self._subscription.lease).total_seconds()
        lane.deadline = self._server.clock.ticks() + int(patience * 1e9)
        self.take_back(lane)
        self._intake.tell(LaneEvent("revoking", lane.name, lane.epoch, lane.deadline))

    async def _let_go(self) -> None:
        now = self._server.clock.ticks()
        for lane in list(self.lanes.values()):
            if lane.drained:
                await self._hand_back(lane)
            elif lane.deadline is not None and now >= lane.deadline:
                await self.write(lane, owner="")
                if lane.name in self.lanes:
                    self._drop(lane, lost=True)

    async def _hand_back(self, lane: Lane) -> None:
        """Write down at which attempt all is that we have, let it be handed out again, and free the lane."""
        for channel in lane.both:
            for number in channel.held:
                channel.next_try(number, counted=False)
        if any(channel.held for channel in lane.both):
            await self.write(lane)
            for channel in lane.both:
                if channel.held and lane.name in self.lanes:
                    await self._link.call(self._server.nak, channel.who, channel.held, delay=timedelta(0))
                    for number in channel.held:
                        channel.forget(number)
        if lane.name in self.lanes:
            await self.write(lane, owner="")
        if lane.name in self.lanes:
            self._drop(lane, lost=False)

    def _drop(self, lane: Lane, *, lost: bool) -> None:
        del self.lanes[lane.name]
        self._intake.drop(lane.name)
        if lost:
            self._intake.tell(LaneEvent("lost", lane.name, lane.epoch))
        self._intake.bell.ring()

    def _until_deadline(self) -> float:
        now = self._server.clock.ticks()
        deadlines = [lane.deadline for lane in self.lanes.values() if lane.deadline is not None]
        return max((min(deadlines) - now) / 1e9, 0.001) if deadlines else 3600.0
