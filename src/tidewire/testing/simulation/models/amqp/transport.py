"""The adapter to an AMQP-like broker: what it pays so that a publish, a move and a look keep their promises."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Callable, Sequence
from contextlib import asynccontextmanager, suppress
from datetime import datetime, timedelta
from typing import TypeVar

import msgspec

from tidewire.errors import TransportRefused, TransportUnavailable
from tidewire.model import (
    Act,
    Address,
    Browsed,
    Capabilities,
    Change,
    DeadChannel,
    GroupInfo,
    GroupSpec,
    InboxChannel,
    Message,
    Receipt,
    Stats,
    Subscription,
    Topic,
    TopicInfo,
    TopicSpec,
)
from tidewire.rules.letters import topic_of
from tidewire.testing.simulation.models.amqp import topology
from tidewire.testing.simulation.models.amqp.receiver import AmqpReceiver
from tidewire.testing.simulation.models.amqp.server import AmqpServer, ChannelClosed, Confirm, Connection, Copy, Given
from tidewire.testing.simulation.models.common import Lifetime, joined, lane_of, unfit
from tidewire.testing.simulation.models.intake import Bell
from tidewire.testing.simulation.models.links import Client, Disconnected, Link
from tidewire.testing.simulation.models.queues import (
    browse_letters,
    demand_prefetch,
    remove_letters,
    send_by_key,
    topic_info,
)

__all__ = ["Amqp"]

T = TypeVar("T")
HEARTBEAT = 60.0
LOOK_HEARTBEAT = 5.0
"""A connection that looks at dead letters has them all for a moment: if it dies then, they are back soon."""
LOOKS_MAX = 100


class Amqp(AmqpServer):
    """The server, with its adapter."""

    def client(self, link: Link) -> Client:
        """Return the adapter for one client."""
        self.names += 1
        return AmqpTransport(self, link, place=self.names)


class AmqpTransport:
    """A `Transport`, `Inspector` and `Ledger` over one link."""

    def __init__(self, server: AmqpServer, link: Link, *, place: int) -> None:
        self.server = server
        self.link = link
        self._lifetime = Lifetime()
        self._publisher: Connection | None = None
        self._lanes: dict[str, int] = {}
        self._tiers: set[Address] = set()
        self._turn = 0
        self._place = place
        self._copies = 0

    @property
    def capabilities(self) -> Capabilities:
        """Order and fencing by tokens; no atomic settle, nothing recognised, nothing replayed."""
        return Capabilities(
            order=True,
            fencing=True,
            atomic=False,
            dedup=None,
            native_attempts=True,
            replay=False,
            delay_max=None,
            lease=True,
            batch_max=None,
            durability="replicated",
            message_bytes_max=self.server.message_bytes_max,
            settle_window=timedelta(minutes=30),
        )

    async def provision(
        self, topics: Sequence[TopicSpec], groups: Sequence[GroupSpec], *, dry_run: bool = False
    ) -> Sequence[Change]:
        """Declare what is missing."""
        self.demand_open()
        return await self.link.call(topology.provision, self.server, topics, groups, dry_run=dry_run)

    @asynccontextmanager
    async def subscribe(self, subscription: Subscription) -> AsyncGenerator[AmqpReceiver]:
        """Join the group."""
        self.demand_open()
        demand_prefetch(subscription)
        async with joined(AmqpReceiver(self, subscription)) as receiver:
            yield receiver

    async def close(self) -> None:
        """Refuse every call from now on."""
        self._lifetime.end()
        if self._publisher is not None:
            with suppress(TransportUnavailable):
                await self.link.call(self._publisher.close)

    # --- publishing -------------------------------------------------------------------------------------------

    async def publish(self, messages: Sequence[Message]) -> Sequence[Receipt]:
        """Publish, mandatory, and wait for the confirms."""
        self.demand_open()
        return await self.send([Copy(self.name(), message) for message in messages])

    def name(self) -> str:
        """Return a new name for a copy; of one client's, a later one is greater."""
        self._copies += 1
        return f"{self._place:06d}.{self._copies:08d}"

    async def send(self, copies: Sequence[Copy]) -> list[Receipt]:
        """Publish *copies*, of each key one at a time: behind one that is not confirmed nothing of its key may go.

        Raises:
            TransportUnavailable: nothing was handed over.
        """
        for to in dict.fromkeys(copy.message.to for copy in copies):
            await self.lanes(topic_of(to))
        return await send_by_key(copies, self._send)

    async def _send(self, batch: Sequence[Copy], some: bool) -> list[Receipt]:
        """Publish one of each key; *some*: others have been published before."""
        refusals = [self._refusal(copy.message) for copy in batch]
        good = [copy for copy, refusal in zip(batch, refusals, strict=True) if refusal is None]
        try:
            confirmed = await self._confirmed(good)
        except TransportUnavailable:
            if not some:
                raise
            confirmed = [Receipt(copy.message.id, "unknown", detail="no connection") for copy in good]
        coming = iter(confirmed)
        return [next(coming) if refusal is None else refusal for refusal in refusals]

    def _refusal(self, message: Message) -> Receipt | None:
        """Return why a message cannot be published at all."""
        if topic_of(message.to) not in self._lanes:
            return Receipt(message.id, "rejected", "unknown_topic", f"there is no {message.to}")
        return unfit(message, (), self.server.message_bytes_max)

    async def lanes(self, topic: str) -> int:
        """Return how many lanes a topic has; 0 if there is none. To publish to an exchange that is not there would
        end the channel, and with it what waits for its confirm."""
        if topic not in self._lanes:
            found = await self.link.call(topology.lanes_of, self.server, topic)
            if not found:
                return 0
            self._lanes[topic] = found
        return self._lanes[topic]

    async def _confirmed(self, copies: Sequence[Copy]) -> list[Receipt]:
        if not copies:
            return []
        routed = [await self._routed(copy) for copy in copies]
        connection = await self._publishing()
        try:
            confirms = await self.link.call(connection.publish, routed)
        except ChannelClosed:  # it had ended before anything came
            self._publisher = None
            raise
        except Disconnected as error:
            self._publisher = None
            if not error.sent:
                raise
            return [Receipt(copy.message.id, "unknown", detail="no confirm came") for copy in copies]
        return [await self._receipt(copy.message, confirm) for copy, confirm in zip(copies, confirms, strict=True)]

    async def _publishing(self) -> Connection:
        if self._publisher is None or not self._publisher.open:
            old, self._publisher = self._publisher, None
            self._publisher = await self.link.call(self.server.connect, HEARTBEAT, Bell(), instead=old)
        return self._publisher

    async def _routed(self, copy: Copy) -> tuple[str, str, Copy]:
        """Return where to publish a copy: exchange and key."""
        message = copy.message
        to = message.to
        if isinstance(to, DeadChannel):
            return "", topology.dead(to.topic, to.group), copy
        number = self._lane_of(message, self._lanes[topic_of(to)])
        wait = timedelta(0)
        if message.not_before is not None:
            wait = timedelta(microseconds=message.not_before - self.now_us())
        if wait > timedelta(0):
            return await self.delayed(copy, to, number, wait=wait)
        if isinstance(to, Topic):
            return topology.exchange(to.name), str(number), copy
        return "", topology.inbox(to.topic, to.group, number), copy

    async def delayed(
        self, copy: Copy, to: Topic | InboxChannel, number: int, *, wait: timedelta
    ) -> tuple[str, str, Copy]:
        """Return where to publish a copy that is to come to a lane in *wait*."""
        if to not in self._tiers:
            if not await self.link.call(topology.declare_delay, self.server, to):
                return "", "nowhere", copy  # which is returned
            self._tiers.add(to)
        tier, words, more = topology.tiers_for(wait)
        target = f"{to.name}/" if isinstance(to, Topic) else f"{to.topic}/{to.group}"
        return topology.delayed(target, tier), f"{words}.{number}", msgspec.structs.replace(copy, more=more)

    def _lane_of(self, message: Message, lanes: int) -> int:
        if message.key is not None:
            return lane_of(message.key, lanes)
        self._turn += 1
        return self._turn % lanes

    def now_us(self) -> int:
        """Return what time this client believes it is."""
        return self.server.clock.now_us()

    async def _receipt(self, message: Message, confirm: Confirm) -> Receipt:
        if confirm == "ack":
            return Receipt(message.id, "stored")
        if confirm == "returned":
            return Receipt(message.id, "rejected", "unknown_topic", f"no queue for {message.to}")
        if not isinstance(message.to, Topic):  # one queue, which has refused it
            return Receipt(message.id, "rejected", "full", "the queue refused it")
        try:
            groups = await self.link.call(topology.groups_on, self.server, message.to.name)
        except Disconnected:
            groups = []
        if len(groups) != 1:  # it may be in some of their queues
            return Receipt(message.id, "unknown", detail="the broker refused it for some group")
        return Receipt(message.id, "rejected", "full", f"held back by {', '.join(groups)}")

    # --- looking ----------------------------------------------------------------------------------------------

    async def topics(self) -> Sequence[TopicInfo]:
        """Return every topic; the broker cannot tell what was published to it."""
        return await self._asked(self._topics)

    def _topics(self) -> list[TopicInfo]:
        exchanges = sorted(self.server.exchanges.items())
        return [topic_info(name[2:], one.arguments) for name, one in exchanges if name.startswith("t/")]

    async def groups(self, topic: str | None = None) -> Sequence[GroupInfo]:
        """Return every group on every topic, or on *topic*."""
        return await self._asked(lambda: self._groups(topic))

    def _groups(self, topic: str | None) -> list[GroupInfo]:
        server = self.server
        names = [name[2:] for name in sorted(server.exchanges) if name.startswith("t/") and topic in (None, name[2:])]
        return [
            GroupInfo(
                topic=name,
                group=group,
                stats=topology.stats_of(server, name, group),
                owners=topology.owners_of(server, name, group),
            )
            for name in names
            for group in topology.groups_on(server, name)
        ]

    async def stats(self, topic: str, group: str) -> Stats:
        """Return the counts of (topic, group)."""
        return await self._asked(lambda: topology.stats_of(self.server, topic, group))

    async def browse(self, address: Address, *, after: int | str | None = None, limit: int = 100) -> Sequence[Browsed]:
        """Return dead letters: all are taken for a moment and given back. Nothing else can be looked at.

        Raises:
            TransportRefused: it is no dead channel, or there is none.
        """
        self.demand_open()
        return await browse_letters(self._letters, address, after=after, limit=limit)

    async def remove(self, channel: Address, positions: Sequence[int | str]) -> int:
        """Remove dead letters and return how many there were."""
        self.demand_open()
        return await remove_letters(self._letters, channel, positions)

    async def seek(self, topic: str, group: str, *, to: int | str | datetime) -> None:
        """There is no way back.

        Raises:
            TransportRefused: always.
        """
        self.demand_open()
        raise TransportRefused("this broker keeps nothing that is settled")

    async def _letters(self, channel: DeadChannel, remove: Sequence[str]) -> list[Browsed]:
        """Take all dead letters, ack those to *remove*, give back the rest, and return them all in order."""
        name = topology.dead(channel.topic, channel.group)
        for _ in range(LOOKS_MAX):
            connection = await self.link.call(self.server.connect, LOOK_HEARTBEAT, Bell())
            try:
                taken = await self.link.call(_take_all, connection, name)
            except (Disconnected, ChannelClosed):
                raise
            except TransportUnavailable:  # somebody else is looking
                await self.link.call(connection.close)
                await asyncio.sleep(0.1)
                continue
            found = [_browsed(one, channel) for one in taken]
            tags = [one.tag for one, seen in zip(taken, found, strict=True) if seen.position in remove]
            if tags:
                await self.link.call(connection.channels[0].ack, tags)
            await self.link.call(connection.close)
            return sorted(found, key=_by_position)
        raise TransportUnavailable(f"somebody else has been looking at {name} for too long")

    async def note(self, act: Act) -> None:
        """Append to a stream, which is the one thing here that can be read again."""
        await self._asked(lambda: self.server.stream.append(act))

    async def acts(self, *, after: int = 0, limit: int = 100) -> Sequence[tuple[int, Act]]:
        """Read the stream."""
        stream = self.server.stream
        return await self._asked(lambda: list(enumerate(stream[after : after + limit], after + 1)))

    async def _asked(self, ask: Callable[[], T]) -> T:
        self.demand_open()
        return await self.link.call(ask)

    # --- state ------------------------------------------------------------------------------------------------

    def demand_open(self) -> None:
        """Raise `TransportClosed` when it is closed, or belongs to the process that was forked."""
        self._lifetime.check()


def _take_all(connection: Connection, name: str) -> list[Given]:
    if name not in connection.server.queues:
        raise TransportRefused(f"there is no {name}", hint="provision the group first")
    channel = connection.channel()
    channel.consume(name, exclusive=True)
    return channel.pull(name, 1 << 30)


def _browsed(one: Given, channel: DeadChannel) -> Browsed:
    copy: Copy = one.body
    message = msgspec.structs.replace(copy.message, to=channel)
    return Browsed(message, f"{one.stored_at:020d}.{copy.name}", one.stored_at)


def _by_position(one: Browsed) -> str:
    return str(one.position)
