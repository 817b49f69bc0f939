"""The memory transport: what a service holds. The broker behind it does everything at once; only waiting waits."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncGenerator, Sequence
from contextlib import asynccontextmanager
from datetime import datetime, timedelta
from functools import partial

from tidewire.errors import ConfigurationError, TransportClosed, TransportUnavailable
from tidewire.model import (
    Act,
    Address,
    Browsed,
    Capabilities,
    Change,
    Delivery,
    Found,
    GroupInfo,
    GroupSpec,
    LaneEvent,
    Message,
    Move,
    Receipt,
    Release,
    Settlement,
    Stats,
    Subscription,
    TopicInfo,
    TopicSpec,
)
from tidewire.protocols import Clock
from tidewire.transports.memory import finder, inspector
from tidewire.transports.memory.broker import MemoryBroker
from tidewire.transports.memory.groups import Group, Lane, Member
from tidewire.transports.memory.log import Feed

__all__ = ["MemoryReceiver", "MemoryTransport", "open_memory_transport"]


@asynccontextmanager
async def open_memory_transport(
    broker: MemoryBroker | None = None, *, clock: Clock | None = None
) -> AsyncGenerator[MemoryTransport]:
    """Open a transport on *broker*, or on a new one that nobody else can reach.

    Closing leaves every group at once and gives back, uncounted, what is unsettled. What is stored stays with
    the broker. *clock* is for a new broker; a given one has its own.

    Raises:
        ConfigurationError: a broker and a clock are given.
    """
    if broker is not None and clock is not None:
        raise ConfigurationError("a broker has its own clock", hint="give the clock to MemoryBroker")
    transport = MemoryTransport(MemoryBroker(clock=clock) if broker is None else broker)
    try:
        yield transport
    finally:
        transport.close()


class MemoryTransport:
    """A `Transport`, `Inspector`, `Finder` and `Ledger` over a `MemoryBroker`. Made by `open_memory_transport`."""

    def __init__(self, broker: MemoryBroker) -> None:
        self.broker = broker
        self._process = os.getpid()
        self._closed = False
        self._receivers: list[MemoryReceiver] = []

    @property
    def capabilities(self) -> Capabilities:
        """Everything but durability."""
        return Capabilities(
            order=True,
            fencing=True,
            atomic=True,
            dedup=self.broker.dedup,
            native_attempts=True,
            replay=True,
            delay_max=None,
            lease=True,
            batch_max=None,
            durability="none",
            message_bytes_max=self.broker.message_bytes_max,
            settle_window=None,
        )

    async def provision(
        self, topics: Sequence[TopicSpec], groups: Sequence[GroupSpec], *, dry_run: bool = False
    ) -> Sequence[Change]:
        """Create what is missing; one change per topic and per group, in order."""
        return self._ready().provision(topics, groups, dry_run=dry_run)

    async def publish(self, messages: Sequence[Message]) -> Sequence[Receipt]:
        """Store *messages*, in order, and say what became of each. Cancelled, they are stored all the same.

        Raises:
            TransportUnavailable: the broker's *down* switch is on.
            TransportClosed: the transport is closed.
        """
        receipts = self._ready().publish(messages)
        await asyncio.sleep(0)  # or a publisher in a loop would never let a consumer run
        return receipts

    @asynccontextmanager
    async def subscribe(self, subscription: Subscription) -> AsyncGenerator[MemoryReceiver]:
        """Join the group; leaving waits up to ``grace`` for settles and gives the rest back, uncounted.

        Raises (on entering):
            ConfigurationError: a topic is unknown, or the prefetch is not above zero.
        """
        broker = self._ready()
        receiver = MemoryReceiver(self, *broker.join(subscription))
        self._receivers.append(receiver)
        try:
            yield receiver
            await receiver.drain()  # who was cut off by an error or a cancel settles nothing more
        finally:
            receiver.leave()
            self._receivers.remove(receiver)

    async def topics(self) -> Sequence[TopicInfo]:
        """Return every topic, by name."""
        return inspector.topics(self._ready())

    async def groups(self, topic: str | None = None) -> Sequence[GroupInfo]:
        """Return every group on every topic, or on *topic*."""
        return inspector.groups(self._ready(), topic)

    async def find(self, event_id: str, *, limit: int = 100) -> Sequence[Found]:
        """Return every place where a message with this id lies, oldest first; nothing has the empty id."""
        return finder.find(self._ready(), event_id, limit)

    async def related(self, correlation_id: str, *, limit: int = 1_000) -> Sequence[Found]:
        """Return the messages in topics and dead channels with this id or correlation id, oldest first."""
        return finder.related(self._ready(), correlation_id, limit)

    async def note(self, act: Act) -> None:
        """Keep *act* as long as the broker lives."""
        self._ready().acts.append(act)

    async def acts(self, *, after: int = 0, limit: int = 100) -> Sequence[tuple[int, Act]]:
        """Return acts with their numbers, from 1."""
        acts = self._ready().acts
        return [(number + 1, acts[number]) for number in range(after, min(after + limit, len(acts)))]

    async def stats(self, topic: str, group: str) -> Stats:
        """Return the exact counts of (topic, group)."""
        return inspector.stats(self._ready(), topic, group)

    async def lag(self, group: str, lanes: Sequence[str]) -> int:
        """See `tidewire.protocols.Lagging`."""
        return inspector.lag(self._ready(), group, frozenset(lanes))

    async def browse(self, address: Address, *, after: int | str | None = None, limit: int = 100) -> Sequence[Browsed]:
        """Return up to *limit* messages behind a position; one that waits for its time moves when it is due."""
        return inspector.browse(self._ready(), address, after=after, limit=limit)

    async def seek(self, topic: str, group: str, *, to: int | str | datetime) -> None:
        """Move an inactive group; its inbox channel stays as it is.

        Raises:
            TransportRefused: a member is active, or what is asked for is no longer retained.
        """
        inspector.seek(self._ready(), topic, group, to)

    async def remove(self, channel: Address, positions: Sequence[int | str]) -> int:
        """Remove dead letters and return how many there were."""
        return inspector.remove(self._ready(), channel, positions)

    def close(self) -> None:
        """Leave every group now. `open_memory_transport` calls it; twice is harmless."""
        self._closed = True
        if os.getpid() == self._process:
            for receiver in self._receivers:
                receiver.leave()

    def _ready(self) -> MemoryBroker:
        """Return the broker, with everything done that was due.

        Raises:
            TransportClosed, TransportUnavailable: it cannot be used now.
        """
        self.check_process()
        if self._closed:
            raise TransportClosed("the memory transport is closed")
        if self.broker.down:
            raise TransportUnavailable("the memory broker is down")
        self.broker.timeline.advance()
        return self.broker

    def check_process(self) -> None:
        """Raise `TransportClosed` in a forked child: it has a copy of the broker, which nobody else sees."""
        if os.getpid() != self._process:
            raise TransportClosed("the memory transport belongs to the process that was forked")


class MemoryReceiver:
    """A `Receiver`. A receiver that is open is alive, whatever its owner does: leases need no help.

    `silence` makes it a member whose process has died or stands still; `wake` lets it go on.
    """

    def __init__(self, transport: MemoryTransport, group: Group, member: Member) -> None:
        self._transport = transport
        self._broker = transport.broker
        self._group = group
        self._member = member

    async def receive(self, limit: int, wait: timedelta) -> Sequence[Delivery | LaneEvent]:
        """Return lane events and up to *limit* deliveries as soon as there is one; empty only after *wait*.

        Raises:
            TransportUnavailable: the broker's *down* switch is on.
            TransportClosed: the group was left.
        """
        self._check()
        await asyncio.sleep(0)  # or a consumer of a long backlog would never let others run
        loop = asyncio.get_running_loop()
        end = loop.time() + wait.total_seconds()
        while True:
            self._check()
            found = self._member.take(limit)
            rest = end - loop.time()
            if found or rest <= 0:
                return found
            await self._member.waiter.wait(rest)

    async def settle(
        self,
        *,
        ack: Sequence[Delivery] = (),
        release: Sequence[Release] = (),
        move: Sequence[Move] = (),
    ) -> Sequence[Settlement]:
        """Settle all at once. After the group was left, everything is ``lost``.

        Raises:
            TransportUnavailable: the broker's *down* switch is on; nothing was settled.
            ValueError: a `Release` with a delay under ordering by key; nothing was settled.
        """
        self._transport.check_process()
        if self._member.subscription.ordering == "key" and any(one.delay > timedelta(0) for one in release):
            raise ValueError("under ordering by key a release has no delay: hold the key, or move the delivery")
        if self._broker.down:
            raise TransportUnavailable("the memory broker is down")
        self._broker.timeline.advance()
        settlements = [self._ack(delivery) for delivery in ack]
        settlements += [self._release(one) for one in release]
        settlements += [self._move(one) for one in move]
        self._member.waiter.wake()  # there may be room below the prefetch again
        return settlements

    async def steer(
        self, *, pause: Sequence[str] = (), resume: Sequence[str] = (), drained: Sequence[str] = ()
    ) -> None:
        """Pause, resume or give up lanes; names of lanes that are not ours (any more) are ignored.

        What is in flight of a drained lane is given back uncounted.
        """
        self._check()
        lanes = self._member.lanes
        for lane in (lanes[name] for name in pause if name in lanes):
            lane.paused = True
            self._member.ready.pop(lane, None)
        for lane in (lanes[name] for name in resume if name in lanes):
            lane.paused = False
            lane.offer()
        for lane in [lanes[name] for name in drained if name in lanes]:
            self._group.drained(lane)

    def silence(self) -> None:
        """Stop as ``kill -9`` or SIGSTOP would: hear nothing, never leave; after its lease others take over."""
        member = self._member
        member.silent = True
        member.life += 1
        lease = int(member.subscription.lease.total_seconds() * 1e9)
        end = self._broker.clock.ticks() + lease
        self._broker.timeline.at_ticks(end, partial(self._group.expire, member, member.life))

    def wake(self) -> None:
        """Go on after `silence`, as after SIGCONT; a member whose lease has ended hears so and joins again."""
        self._broker.timeline.advance()
        member = self._member
        member.silent = False
        if member.state == "active" and member not in self._group.members:
            self._group.join(member)
        member.waiter.wake()

    async def drain(self) -> None:
        """Hand nothing more out and wait until all is settled, at most ``grace``."""
        member = self._member
        if member.silent or member.state != "active":
            return
        self._group.begin_leave(member)
        loop = asyncio.get_running_loop()
        end = loop.time() + member.subscription.grace.total_seconds()
        while member.in_flight and (rest := end - loop.time()) > 0:
            await member.waiter.wait(rest)
            self._broker.timeline.advance()

    def leave(self) -> None:
        """Leave the group now. A silent member cannot say goodbye: it goes when its lease ends."""
        member = self._member
        if member.state == "left":
            return
        member.state = "left"
        if not member.silent:
            self._group.leave(member)
        member.waiter.wake()

    def _check(self) -> None:
        self._transport.check_process()
        if self._member.state == "left":
            raise TransportClosed(f"{self._group.name}: the group was left")
        if self._broker.down:
            raise TransportUnavailable("the memory broker is down")
        self._broker.timeline.advance()

    def _find(self, delivery: Delivery) -> Lane | None:
        lane = self._member.lanes.get(delivery.lane)
        return lane if lane is not None and lane.epoch == delivery.epoch else None

    def _settled(self, feed: Feed, delivery: Delivery) -> Settlement:
        if feed.settle(delivery.position):
            self._member.in_flight -= 1
        return Settlement(delivery, "settled")

    def _ack(self, delivery: Delivery) -> Settlement:
        lane = self._find(delivery)
        return Settlement(delivery, "lost") if lane is None else self._settled(lane.feed(delivery.message), delivery)

    def _release(self, release: Release) -> Settlement:
        delivery = release.delivery
        lane = self._find(delivery)
        if lane is None:
            return Settlement(delivery, "lost")
        feed = lane.feed(delivery.message)
        entry = feed.in_flight.get(delivery.position)
        if entry is None:
            return Settlement(delivery, "settled")
        self._member.in_flight -= 1
        if release.delay > timedelta(0):
            if release.counted:
                feed.count(entry)
            due = self._broker.clock.now_us() + release.delay // timedelta(microseconds=1)
            feed.defer(entry, due)
            self._broker.timeline.at_time(due, partial(_rejoin, lane, feed, entry.position, due))
        else:
            feed.give_back(entry, counted=release.counted)
            lane.offer()
        return Settlement(delivery, "settled")

    def _move(self, move: Move) -> Settlement:
        lane = self._find(move.delivery)
        if lane is None:
            return Settlement(move.delivery, "lost")
        feed = lane.feed(move.delivery.message)
        if move.delivery.position not in feed.in_flight:
            return Settlement(move.delivery, "settled")
        receipts = self._broker.publish_all_or_none(move.messages)
        if not all(receipt.ok for receipt in receipts):
            return Settlement(move.delivery, "failed", receipts)
        self._settled(feed, move.delivery)
        return Settlement(move.delivery, "settled", receipts)


def _rejoin(lane: Lane, feed: Feed, position: int, due: int) -> None:
    if feed.rejoin(position, due):
        lane.offer()
