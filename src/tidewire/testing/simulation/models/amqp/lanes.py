"""Which lanes a member of a group on an AMQP-like broker has, and by what right.

Who is there is seen from exclusive queues. From that each member computes which lanes are its own, and consumes their
tokens: the one who holds a token writes a greater one behind it, acks the old one, and has the lane under the new
epoch. A lane is given up by closing its channel, which gives all of it back in order; what of that is nobody's failure
is noted in the token before.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Sequence
from typing import Protocol

from tidewire.errors import TransportUnavailable
from tidewire.model import Delivery, LaneEvent, Subscription
from tidewire.testing.simulation.models.amqp import topology
from tidewire.testing.simulation.models.amqp.server import AmqpServer, Channel, Connection, Copy, Given
from tidewire.testing.simulation.models.amqp.topology import Token
from tidewire.testing.simulation.models.intake import Bell, Intake
from tidewire.testing.simulation.models.links import Link

__all__ = ["Lane", "Membership"]

TOKENS_MAX = 10
AGAIN = 0.1
"""Seconds until a member that is cut off tries again."""


class Place(Protocol):
    """What a membership needs of its transport."""

    server: AmqpServer
    link: Link

    def name(self) -> str:
        """Return a name that nothing else has."""
        ...


class Lane:
    """A lane that is ours, or for whose token we wait (*epoch* 0)."""

    def __init__(self, topic: str, number: int, channel: Channel) -> None:
        self.name = f"{topic}/{number}"
        self.topic = topic
        self.number = number
        self.channel = channel
        self.epoch = 0
        self.token_tags: list[int] = []
        self.notes: dict[str, tuple[int, int]] = {}
        self.out: dict[int, tuple[Delivery, Copy]] = {}
        self.stash: list[Delivery] = []
        self.paused = False
        self.deadline = 0.0
        self.closing = False

    @property
    def flows(self) -> bool:
        """Whether something may be handed out."""
        return bool(self.epoch) and not (self.paused or self.closing or self.deadline)


class Membership:
    """The connection of one member, and its lanes."""

    def __init__(self, place: Place, subscription: Subscription, intake: Intake) -> None:
        self.lanes: dict[str, Lane] = {}
        self.news = Bell()
        self.connection: Connection | None = None
        self.trouble: TransportUnavailable | None = None
        self.leaving = False
        self._place = place
        self._server = place.server
        self._link = place.link
        self._subscription = subscription
        self._intake = intake
        self._counts: dict[str, int] = {}
        self._old: Connection | None = None
        self._presence = ""
        # One at a time writes tokens: between the write and the ack of the old one there are two.
        self._writing = asyncio.Lock()

    async def connect(self) -> Connection:
        """Open a connection and show that we are there."""
        subscription, server = self._subscription, self._server
        # A new name each time: if the answer is lost, the old one is another connection's until that has ended.
        name = self._presence = topology.present(subscription.group, self._place.name())

        def enter() -> tuple[Connection, dict[str, int]]:
            for topic in subscription.topics:
                topology.declare_group(server, topic, subscription.group, start=subscription.start)
            heartbeat = subscription.lease.total_seconds()
            connection = server.connect(heartbeat, self._intake.bell, subscription.member, self._old)
            connection.control = self.news
            topology.join(server, connection, name, subscription.topics)
            return connection, {topic: topology.lanes_of(server, topic) for topic in subscription.topics}

        connection, self._counts = await self._link.call(enter)
        self.connection, self._old = connection, None
        return connection

    async def tend(self) -> None:
        """Until cancelled: keep the connection, and the lanes that are ours and no others."""
        while True:
            heard, connection = self.news.rings, self.connection
            try:
                if connection is None:
                    connection = await self._connect_again()
                await self._look_after()
            except TransportUnavailable:
                self.break_off(connection)
                await asyncio.sleep(AGAIN)
            await self.news.wait(heard, self._rest())

    async def _connect_again(self) -> Connection:
        try:
            return await self.connect()
        except TransportUnavailable as error:
            self.trouble = error
            self._intake.bell.ring()
            raise

    def _rest(self) -> float:
        now = asyncio.get_running_loop().time()
        ends = [lane.deadline - now for lane in self.lanes.values() if lane.deadline and not lane.closing]
        return min([self._subscription.lease.total_seconds() / 3, *ends])

    async def _look_after(self) -> None:
        connection = self.connection
        assert connection is not None, "it has just been opened"

        def beat() -> list[tuple[str, list[str]]]:
            connection.beat()
            return topology.members_of(self._server, self._subscription.group)

        wanted = self._wanted(await self._link.call(beat))
        self._revoke([lane for lane in self.lanes.values() if lane.epoch and lane.name not in wanted])
        now = asyncio.get_running_loop().time()
        await self.hand_over([lane for lane in self.lanes.values() if lane.closing])
        await self._drop([lane for lane in self.lanes.values() if lane.deadline and lane.deadline <= now])
        await self._drop([lane for lane in self.lanes.values() if not lane.epoch and lane.name not in wanted])
        await self._claim(connection, [place for name, place in wanted.items() if name not in self.lanes])
        await self._take_over([lane for lane in self.lanes.values() if not lane.epoch])

    def _wanted(self, members: Sequence[tuple[str, list[str]]]) -> dict[str, tuple[str, int]]:
        """Return the lanes that are to be ours: they are dealt to those who read their topic."""
        wanted: dict[str, tuple[str, int]] = {}
        for topic, lanes in self._counts.items():
            readers = [name for name, topics in members if topic in topics]
            for number in range(lanes):
                if readers and readers[number % len(readers)] == self._presence:
                    wanted[f"{topic}/{number}"] = (topic, number)
        return wanted

    def _revoke(self, lanes: Iterable[Lane]) -> None:
        subscription = self._subscription
        patience = min(subscription.grace, subscription.lease).total_seconds()
        for lane in lanes:
            if self.leaving:
                lane.closing = lane.closing or not self.handed(lane)
            elif not lane.deadline and not lane.closing:
                lane.deadline = asyncio.get_running_loop().time() + patience
                deadline = self._server.clock.ticks() + round(patience * 1e9)
                self._intake.drop(lane.name)
                self._intake.tell(LaneEvent("revoking", lane.name, lane.epoch, deadline))

    async def _claim(self, connection: Connection, places: Sequence[tuple[str, int]]) -> None:
        """Line up for the tokens of lanes."""
        if not places or self.leaving:
            return
        group = self._subscription.group

        def line_up() -> list[Channel]:
            channels = [connection.channel() for _ in places]
            for channel, (topic, number) in zip(channels, places, strict=True):
                channel.consume(topology.token(topic, group, number), bell=self.news)
            return channels

        channels = await self._link.call(line_up)
        self._demand(connection)
        for channel, (topic, number) in zip(channels, places, strict=True):
            lane = Lane(topic, number, channel)
            self.lanes[lane.name] = lane

    async def _take_over(self, lanes: Sequence[Lane]) -> None:
        """Take the tokens that there are for us, replace them by greater ones, and have their lanes."""
        if not lanes or self.leaving:
            return
        found = await self._link.call(lambda: [self._tokens(lane) for lane in lanes])
        ours = [(lane, tokens) for lane, tokens in zip(lanes, found, strict=True) if tokens]
        if not ours:
            return
        for lane, tokens in ours:
            newest = max((one.body for one in tokens), key=_epoch_of)
            lane.notes = {name: note for one in tokens for name, note in one.body.notes.items()} | newest.notes
            lane.token_tags = [one.tag for one in tokens]
        epochs = {lane.name: max(one.body.epoch for one in tokens) + 1 for lane, tokens in ours}
        await self.write([lane for lane, _ in ours], epochs)
        group = self._subscription.group

        def consume() -> None:
            for lane, _ in ours:
                for queue in (topology.inbox, topology.lane):
                    lane.channel.consume(queue(lane.topic, group, lane.number))

        await self._link.call(consume)
        self._demand(ours[0][0].channel.connection)
        for lane, _ in ours:
            lane.epoch = epochs[lane.name]
            self._intake.tell(LaneEvent("assigned", lane.name, lane.epoch))

    def _demand(self, connection: Connection) -> None:
        if self.connection is not connection:
            raise TransportUnavailable("the connection had ended before the answer came")

    def _tokens(self, lane: Lane) -> list[Given]:
        """At the server: what there is of a lane's token for us."""
        return lane.channel.pull(topology.token(lane.topic, self._subscription.group, lane.number), TOKENS_MAX)

    async def write(self, lanes: Sequence[Lane], epochs: dict[str, int]) -> None:
        """Write new tokens and, when they are confirmed, ack the old ones."""
        connection, group = self.connection, self._subscription.group
        if connection is None:
            raise TransportUnavailable("the connection is gone")
        made = [(lane, Token(epochs.get(lane.name, lane.epoch), dict(lane.notes))) for lane in lanes]

        def put() -> None:
            connection.beat()
            for lane, token in made:
                self._server.put(topology.token(lane.topic, group, lane.number), token)

        def swap() -> list[list[int]]:
            for lane in lanes:
                lane.channel.ack(lane.token_tags)
            return [[one.tag for one in self._tokens(lane)] for lane in lanes]

        async with self._writing:
            await self._link.call(put)
            for lane, tags in zip(lanes, await self._link.call(swap), strict=True):
                lane.token_tags = tags

    async def hand_over(self, lanes: Sequence[Lane]) -> None:
        """Give lanes up; that what is out comes back is nobody's failure."""
        for lane in lanes:
            lane.closing = True
            self._intake.drop(lane.name)
            for _, copy in lane.out.values():
                forgiven, failures = lane.notes.get(copy.name, (0, 0))
                lane.notes[copy.name] = (forgiven + 1, failures)
        if noting := [lane for lane in lanes if lane.out]:
            await self.write(noting, {})
        await self._close(lanes)

    async def _drop(self, lanes: Sequence[Lane]) -> None:
        """Give lanes up as they are; those that were ours are lost."""
        for lane in lanes:
            if lane.epoch and not lane.closing:
                self._lost(lane)
        await self._close(lanes)

    async def _close(self, lanes: Sequence[Lane]) -> None:
        if lanes:
            for lane in lanes:
                self.lanes.pop(lane.name, None)
            await self._link.call(_close_all, lanes)

    def _lost(self, lane: Lane) -> None:
        lane.closing = True
        self._intake.drop(lane.name)
        self._intake.tell(LaneEvent("lost", lane.name, lane.epoch))

    def break_off(self, connection: Connection | None) -> None:
        """*connection* is gone, or nobody knows whether it is: if it is the one we have, everything on it is lost."""
        if connection is None or connection is not self.connection:
            return
        self._old, self.connection = connection, None
        lanes, self.lanes = list(self.lanes.values()), {}
        for lane in lanes:
            if lane.epoch and not lane.closing:
                self._lost(lane)
        self.news.ring()

    def handed(self, lane: Lane) -> int:
        """How many of a lane are in the hands of the caller."""
        kept = sum(one.lane == lane.name for one in self._intake.kept)
        return len(lane.out) - kept - len(lane.stash)

    async def depart(self) -> None:
        """Be there no more for the others, who take over what is free."""
        await self._link.call(self._server.delete, self._presence)


def _close_all(lanes: Sequence[Lane]) -> None:
    for lane in lanes:
        lane.channel.close()


def _epoch_of(token: Token) -> int:
    return token.epoch
