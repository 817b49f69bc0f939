"""A member's place in its group on an AMQP-like broker: receiving, and settling what tags stand for.

Deliveries are never given back while the lane is kept, since a broker puts them where it likes: what is released is
handed out again from here.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from contextlib import suppress
from datetime import timedelta
from typing import Any, Protocol

import msgspec

from tidewire.errors import TransportClosed, TransportUnavailable
from tidewire.model import Delivery, InboxChannel, LaneEvent, Move, Receipt, Release, Settlement, Subscription, Topic
from tidewire.testing.simulation.models.amqp import topology
from tidewire.testing.simulation.models.amqp.lanes import Lane, Membership
from tidewire.testing.simulation.models.amqp.server import AmqpServer, ChannelClosed, Copy, Given
from tidewire.testing.simulation.models.common import demand_no_delay
from tidewire.testing.simulation.models.intake import Crew, Intake
from tidewire.testing.simulation.models.links import Disconnected, Link
from tidewire.testing.simulation.models.queues import demand_provisioned, settle_moves

__all__ = ["AmqpReceiver"]


class Client(Protocol):
    """What a receiver needs of its transport."""

    server: AmqpServer
    link: Link

    def demand_open(self) -> None:
        """Raise if it is closed."""

    def name(self) -> str:
        """Return a name for a copy."""
        ...

    async def send(self, copies: Sequence[Copy]) -> list[Receipt]:
        """Publish copies."""
        ...

    async def delayed(
        self, copy: Copy, to: Topic | InboxChannel, number: int, *, wait: timedelta
    ) -> tuple[str, str, Copy]:
        """Return where to publish a copy that is to wait."""
        ...


class AmqpReceiver:
    """A `Receiver`."""

    def __init__(self, client: Client, subscription: Subscription) -> None:
        self._client = client
        self._server = client.server
        self._link = client.link
        self._subscription = subscription
        self._crew = Crew()
        self._intake = Intake(self._crew, self._fetch)
        self._member = Membership(client, subscription, self._intake)
        self._fetching = 0
        self._turn = 0
        self._left = False

    async def join(self) -> None:
        """Become a member."""
        with demand_provisioned(self._subscription.group):
            await self._member.connect()
        self._crew.add(self._member.tend())

    # --- receiving --------------------------------------------------------------------------------------------

    async def receive(self, limit: int, wait: timedelta) -> Sequence[Delivery | LaneEvent]:
        """Receive.

        Raises:
            TransportUnavailable: the connection is gone, and there is no new one yet.
            TransportClosed: the group was left.
        """
        self._check()
        await self._intake.top_up(limit)
        return await self._intake.take(limit, wait, check=self._check)

    def _check(self) -> None:
        self._client.demand_open()
        if self._left or self._member.leaving:
            raise TransportClosed(f"{self._subscription.group}: the group was left")
        trouble, self._member.trouble = self._member.trouble, None
        if trouble is not None:
            raise TransportUnavailable(trouble.message)

    async def _fetch(self, limit: int) -> Sequence[Delivery]:
        """Have pushed what there is credit for. It is kept here at once, in order."""
        self._fetching += 1
        connection = self._member.connection
        try:
            room = min(limit, self._subscription.prefetch - sum(len(lane.out) for lane in self._member.lanes.values()))
            lanes = [lane for lane in self._member.lanes.values() if lane.flows]
            if room > 0 and lanes and not self._member.leaving:
                self._turn += 1
                lanes = lanes[self._turn % len(lanes) :] + lanes[: self._turn % len(lanes)]
                for lane, given in await self._link.call(self._pushed, lanes, room):
                    await self._take_in(lane, given)
        except TransportUnavailable:
            self._member.break_off(connection)
        finally:
            self._fetching -= 1
            self._member.news.ring() if self._member.leaving else None
        return ()

    def _pushed(self, lanes: Sequence[Lane], credit: int) -> list[tuple[Lane, Given]]:
        """At the server: what is pushed for so much credit, in equal shares of the lanes."""
        found: list[tuple[Lane, Given]] = []
        group = self._subscription.group
        open_lanes = list(lanes)
        while credit > len(found) and open_lanes:
            share = max(1, (credit - len(found)) // len(open_lanes))
            for lane in list(open_lanes):
                portion = min(share, credit - len(found))
                pushed = lane.channel.pull(topology.inbox(lane.topic, group, lane.number), portion)
                pushed += lane.channel.pull(topology.lane(lane.topic, group, lane.number), portion - len(pushed))
                found += [(lane, one) for one in pushed]
                if len(pushed) < portion or not portion:
                    open_lanes.remove(lane)
        return found

    async def _take_in(self, lane: Lane, given: Given) -> None:
        copy: Copy = given.body
        if copy.more:
            await self._wait_on(lane, given)
            return
        forgiven, failures = lane.notes.get(copy.name, (0, 0))
        crashes = max(0, given.count - forgiven)
        delivery = Delivery(
            copy.message, lane.name, lane.epoch, given.tag, 1 + copy.spent + failures + crashes, crashes > 0, None,
            given.stored_at,
        )  # fmt: skip
        if self._member.lanes.get(lane.name) is not lane or lane.closing:
            return  # it went meanwhile; closing its channel gives this back
        lane.out[given.tag] = (delivery, copy)
        if lane.paused:
            lane.stash.append(delivery)
        elif not lane.deadline:
            self._intake.kept.append(delivery)

    async def _wait_on(self, lane: Lane, given: Given) -> None:
        """Send a copy, whose delay is longer than the tiers, through them once more."""
        copy: Copy = given.body
        due = copy.message.not_before or 0
        wait = max(timedelta(microseconds=due - self._server.clock.now_us()), timedelta(0))
        if await self._delay(msgspec.structs.replace(copy, more=False), lane, wait):
            await self._link.call(lane.channel.ack, [given.tag])

    async def _delay(self, copy: Copy, lane: Lane, wait: timedelta) -> bool:
        """Publish a copy that comes back to its lane in *wait*; False if it is not certain."""
        connection = self._member.connection
        if connection is None:
            return False
        to = InboxChannel(lane.topic, self._subscription.group)
        fresh = msgspec.structs.replace(copy, name=self._client.name())
        routed = await self._client.delayed(fresh, to, lane.number, wait=wait)
        return await self._link.call(connection.publish, [routed]) == ["ack"]

    # --- settling ---------------------------------------------------------------------------------------------

    async def settle(
        self, *, ack: Sequence[Delivery] = (), release: Sequence[Release] = (), move: Sequence[Move] = ()
    ) -> Sequence[Settlement]:
        """Settle: acks, then releases, then moves.

        Raises:
            TransportUnavailable: there was no answer.
            ValueError: a `Release` with a delay under ordering by key.
        """
        self._client.demand_open() if not self._left else None
        demand_no_delay(self._subscription, release)
        connection = self._member.connection
        try:
            settlements = await self._acked(ack)
            settlements += await self._released(release)
            settlements += await self._moved(move)
        except Disconnected:
            self._member.break_off(connection)
            raise
        self._intake.bell.ring()  # there may be room below the prefetch again
        self._member.news.ring() if self._member.leaving else None
        return settlements

    def _ours(self, delivery: Delivery) -> Lane | None:
        lane = self._member.lanes.get(delivery.lane)
        return lane if lane is not None and lane.epoch == delivery.epoch and not lane.closing else None

    async def _acked(self, deliveries: Sequence[Delivery]) -> list[Settlement]:
        """Ack; an answer on the same channel says that the acks before it have come."""
        lanes = [self._ours(delivery) for delivery in deliveries]
        tags: dict[str, dict[int | str, None]] = {}
        for lane, delivery in zip(lanes, deliveries, strict=True):
            if lane is not None and delivery.position in lane.out:
                tags.setdefault(lane.name, {})[delivery.position] = None
        gone = False
        if tags:
            batch: list[tuple[Lane, list[Any]]] = [
                (self._member.lanes[name], list(found)) for name, found in tags.items()
            ]
            connection = batch[0][0].channel.connection
            try:
                await self._link.call(_ack_all, batch)
            except ChannelClosed:
                self._member.break_off(connection)
                gone = True
            if not gone and any(self._member.lanes.get(lane.name) is not lane for lane, _ in batch):
                raise TransportUnavailable("the connection had ended before the answer came")
            for lane, found in batch if not gone else ():
                for tag in found:
                    _, copy = lane.out.pop(tag)
                    lane.notes.pop(copy.name, None)
        return [
            Settlement(delivery, "lost" if lane is None or gone else "settled")
            for lane, delivery in zip(lanes, deliveries, strict=True)
        ]

    async def _released(self, releases: Sequence[Release]) -> list[Settlement]:
        """Hand out again from here what is released; that it has failed is written into the token."""
        settlements: list[Settlement] = []
        noting: dict[str, Lane] = {}
        for one in releases:
            delivery = one.delivery
            lane = self._ours(delivery)
            if lane is None or delivery.position not in lane.out:
                settlements.append(Settlement(delivery, "lost" if lane is None else "settled"))
                continue
            tag = int(delivery.position)
            held, copy = lane.out[tag]
            if one.delay > timedelta(0):
                spent = msgspec.structs.replace(copy, spent=held.attempt - 1 + one.counted)
                if await self._delay(spent, lane, one.delay):
                    settlements += await self._acked([delivery])
                else:
                    settlements.append(Settlement(delivery, "failed"))
                continue
            if one.counted:
                forgiven, failures = lane.notes.get(copy.name, (0, 0))
                lane.notes[copy.name] = (forgiven, failures + 1)
                noting[lane.name] = lane
                held = msgspec.structs.replace(held, attempt=held.attempt + 1)
            lane.out[tag] = (held, copy)
            self._again(lane, held)
            settlements.append(Settlement(delivery, "settled"))
        if noting:
            try:
                await self._member.write(list(noting.values()), {})
            except ChannelClosed:
                self._member.break_off(self._member.connection)
        return settlements

    def _again(self, lane: Lane, delivery: Delivery) -> None:
        """Keep a delivery that came back, at its place among those of its lane."""
        if lane.paused:
            lane.stash = sorted([*lane.stash, delivery], key=_tag_of)
        elif not lane.deadline:
            self._intake.put_back(delivery, _tag_of)

    async def _moved(self, moves: Sequence[Move]) -> list[Settlement]:
        """Publish what is moved; when it is confirmed, ack."""
        found: dict[int, Settlement] = {}
        wanted: dict[int, Move] = {}
        seen: set[tuple[str, int | str]] = set()
        for place, one in enumerate(moves):
            lane, name = self._ours(one.delivery), (one.delivery.lane, one.delivery.position)
            if lane is None:
                found[place] = Settlement(one.delivery, "lost")
            elif one.delivery.position not in lane.out or name in seen:
                found[place] = Settlement(one.delivery, "settled")
            else:
                wanted[place] = one
                seen.add(name)
        copies = [Copy(self._client.name(), message) for one in wanted.values() for message in one.messages]
        receipts = await self._client.send(copies)
        found |= zip(wanted, await settle_moves(wanted.values(), receipts, self._acked), strict=True)
        return [found[place] for place in range(len(moves))]

    async def steer(
        self, *, pause: Sequence[str] = (), resume: Sequence[str] = (), drained: Sequence[str] = ()
    ) -> None:
        """Pause, resume or give up lanes; names of lanes that are not ours (any more) are ignored."""
        self._client.demand_open()
        lanes = self._member.lanes
        for lane in (lanes[name] for name in pause if name in lanes):
            lane.paused = True
            lane.stash += self._intake.drop(lane.name)
        for lane in (lanes[name] for name in resume if name in lanes):
            lane.paused = False
            self._intake.kept.extendleft(reversed(lane.stash))
            lane.stash = []
            self._intake.bell.ring()
        for lane in (lanes[name] for name in drained if name in lanes):
            if lane.deadline:
                lane.closing = True
                self._member.news.ring()

    # --- leaving ----------------------------------------------------------------------------------------------

    async def drain(self) -> None:
        """Hand nothing more out and wait until all is settled, at most ``grace``."""
        self._member.leaving = True
        self._intake.bell.ring()
        subscription = self._subscription
        loop = asyncio.get_running_loop()
        end = loop.time() + subscription.grace.total_seconds()
        with suppress(TransportUnavailable):
            await self._member.depart()
        while (
            any(self._member.handed(lane) for lane in self._member.lanes.values()) and (rest := end - loop.time()) > 0
        ):
            heard = self._member.news.rings
            await self._member.news.wait(heard, rest)

    async def leave(self) -> None:
        """Leave the group: give back, uncounted, what is unsettled."""
        self._member.leaving = True
        self._intake.bell.ring()
        while self._fetching:
            heard = self._member.news.rings
            await self._member.news.wait(heard, 1.0)
        await self._crew.close()
        self._left = True
        with suppress(TransportUnavailable):
            if self._member.connection is not None:
                await self._member.hand_over(
                    [lane for lane in self._member.lanes.values() if lane.epoch and not lane.closing]
                )
                await self._link.call(self._member.connection.close)


def _ack_all(batch: Sequence[tuple[Lane, Sequence[int]]]) -> None:
    for lane, tags in batch:
        lane.channel.ack(tags)


def _tag_of(delivery: Delivery) -> int:
    return int(delivery.position)
