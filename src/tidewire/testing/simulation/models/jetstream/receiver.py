"""A member of a group: it pulls for the lanes it has, keeps their order, and acks only what is still its own."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from contextlib import suppress
from datetime import timedelta
from typing import Literal

import msgspec

from tidewire.errors import TransportClosed
from tidewire.model import Delivery, LaneEvent, Move, Release, Settlement, Subscription
from tidewire.testing.simulation.models.channels import steer
from tidewire.testing.simulation.models.common import demand_no_delay, turned
from tidewire.testing.simulation.models.intake import Crew, Intake
from tidewire.testing.simulation.models.jetstream.lanes import Channel, Lane, wait_of
from tidewire.testing.simulation.models.jetstream.ownership import Ownership
from tidewire.testing.simulation.models.jetstream.publishing import Publisher
from tidewire.testing.simulation.models.jetstream.server import JetStreamServer, Post, Who
from tidewire.testing.simulation.models.jetstream.streams import Stored
from tidewire.testing.simulation.models.links import Disconnected, Link

__all__ = ["JetStreamReceiver"]


class JetStreamReceiver:
    """A `Receiver`. Made by `JetStreamClient.subscribe`."""

    def __init__(
        self,
        server: JetStreamServer,
        link: Link,
        *,
        subscription: Subscription,
        publisher: Publisher,
        check: Callable[[], None],
    ) -> None:
        self._server = server
        self._link = link
        self._subscription = subscription
        self._publisher = publisher
        self._check_client = check
        self._crew = Crew()
        self._intake = Intake(self._crew, self._hand_out, due=self._due, mine=self._is_mine)
        self._own = Ownership(server, link, subscription=subscription, intake=self._intake)
        self._turn = 0
        self._state: Literal["active", "leaving", "left"] = "active"

    # --- the seam ---------------------------------------------------------------------------------------------

    async def receive(self, limit: int, wait: timedelta) -> Sequence[Delivery | LaneEvent]:
        """Return lane events and up to *limit* deliveries."""
        return await self._intake.take(limit, wait, check=self._check)

    async def settle(
        self, *, ack: Sequence[Delivery] = (), release: Sequence[Release] = (), move: Sequence[Move] = ()
    ) -> Sequence[Settlement]:
        """Settle; the server is asked to confirm each ack.

        Raises:
            TransportUnavailable: there was no answer; what is unsettled comes back.
            ValueError: a `Release` with a delay under ordering by key.
        """
        self._check_client()
        demand_no_delay(self._subscription, release)
        self._own.check_lease()
        try:
            settlements = await self._acks(ack)
            settlements += await self._releases(release)
            moved = [await self._move(one) for one in move]
            acked = await self._acks([one.delivery for one in moved if one.status == "settled"])
        finally:
            self._intake.bell.ring()
        ends = iter(acked)
        for one in moved:
            done = next(ends) if one.status == "settled" else one
            settlements.append(Settlement(one.delivery, done.status, one.receipts))
        return settlements

    async def steer(
        self, *, pause: Sequence[str] = (), resume: Sequence[str] = (), drained: Sequence[str] = ()
    ) -> None:
        """Pause or resume lanes, or let go of revoked ones."""
        self._check()
        steer(self._own.lanes, pause, resume, drained=drained)
        self._intake.bell.ring()
        self._own.kick.ring()

    def _check(self) -> None:
        self._check_client()
        if self._state == "left":
            raise TransportClosed(f"{self._subscription.group}: the group was left")

    # --- settling ---------------------------------------------------------------------------------------------

    def _is_mine(self, delivery: Delivery) -> bool:
        return self._find(delivery) is not None

    def _find(self, delivery: Delivery) -> Lane | None:
        lane = self._own.lanes.get(delivery.lane)
        return lane if lane is not None and lane.epoch == delivery.epoch and self._state != "left" else None

    async def _acks(self, deliveries: Sequence[Delivery]) -> list[Settlement]:
        """Ack what is ours; the server would take any ack."""
        numbers: dict[Who, list[int]] = {}
        for delivery in deliveries:
            lane = self._find(delivery)
            if lane is not None and int(delivery.position) in lane.of(delivery.message).out:
                channel, number = lane.of(delivery.message), int(delivery.position)
                numbers.setdefault(channel.who, []).append(number)
                channel.leaving.add(number)
        if numbers:
            await self._link.call(self._server.ack, numbers)
            self._own.check_lease()  # the answer may have come late
        settlements: list[Settlement] = []
        for delivery in deliveries:
            lane = self._find(delivery)
            if lane is not None:
                lane.of(delivery.message).forget(int(delivery.position))
            settlements.append(Settlement(delivery, "lost" if lane is None else "settled"))
        return settlements

    async def _releases(self, releases: Sequence[Release]) -> list[Settlement]:
        """Write down which attempt comes next, then let the server hand them out again, in their order."""
        mine = [(one, lane) for one in releases if (lane := self._find(one.delivery)) is not None]
        touched: dict[str, Lane] = {}
        delays: dict[tuple[Who, timedelta], list[int]] = {}
        for one, lane in mine:
            channel, number = lane.of(one.delivery.message), int(one.delivery.position)
            if number in channel.out and number not in channel.tries:
                channel.next_try(number, counted=one.counted)
                touched[lane.name] = lane
                delays.setdefault((channel.who, one.delay), []).append(number)
        for lane in touched.values():
            await self._own.write(lane)
        for (who, delay), numbers in delays.items():
            await self._link.call(self._server.nak, who, sorted(numbers), delay=delay)
        self._own.check_lease()
        for one, lane in mine:
            channel = lane.of(one.delivery.message)
            channel.forget(int(one.delivery.position))
            channel.ring.more = True
        return [Settlement(one.delivery, "lost" if self._find(one.delivery) is None else "settled") for one in releases]

    async def _move(self, move: Move) -> Settlement:
        lane = self._find(move.delivery)
        if lane is None:
            return Settlement(move.delivery, "lost")
        if int(move.delivery.position) not in lane.of(move.delivery.message).out:
            return Settlement(move.delivery, "settled")
        receipts = await self._publisher.publish(move.messages)
        stored = all(receipt.ok for receipt in receipts)
        return Settlement(move.delivery, "settled" if stored else "failed", receipts)

    # --- handing out ------------------------------------------------------------------------------------------

    async def _hand_out(self, limit: int) -> Sequence[Delivery]:
        self._own.check_lease()
        if self._state != "active":
            return ()
        await self._put_aside()
        await self._fetch_due()
        await self._pull(min(limit, self._room))
        room = min(limit, self._room)
        lanes = [lane for lane in self._open() if not lane.gathering]
        self._turn += 1
        found: list[Delivery] = []
        for lane in turned(lanes, self._turn):
            for channel in lane.both:
                taken = channel.take(room - len(found))
                found += [lane.delivery(channel, stored) for stored in taken]
        return found

    @property
    def _room(self) -> int:
        return max(0, self._subscription.prefetch - self._in_flight) if self._state == "active" else 0

    @property
    def _in_flight(self) -> int:
        return sum(len(channel.out) for lane in self._own.lanes.values() for channel in lane.both)

    def _open(self) -> list[Lane]:
        return [lane for lane in self._own.lanes.values() if not lane.paused and lane.deadline is None]

    async def _pull(self, room: int) -> None:
        """Pull for lanes that may have more, in equal shares. Who lost an answer must find out what was in it."""
        lanes = self._open()
        for lane in lanes:
            if lane.gathering:
                await self._gather(lane)
        while room > 0:
            hungry = [
                (lane, channel)
                for lane in lanes
                for channel in lane.both
                if channel.ring.more and not lane.gathering and self._own.lanes.get(lane.name) is lane
            ]
            if not hungry:
                return
            self._turn += 1
            first = turned(hungry, self._turn)[:room]
            share = max(1, room // len(first))
            room -= await self._pull_for([(lane, channel, share) for lane, channel in first])

    async def _pull_for(self, wanted: Sequence[tuple[Lane, Channel, int]]) -> int:
        """Pull so many for each, and return how many came."""
        for _, channel, _ in wanted:
            channel.ring.more = False
        answered = False
        try:
            requests = [(channel.who, batch, channel.ring) for _, channel, batch in wanted]
            found = await self._link.call(self._server.pull, requests)
            answered = True
        finally:
            if not answered:
                for lane, channel, _ in wanted:
                    channel.ring.more = lane.gathering = True
        now = self._server.clock.now_us()
        for (_, channel, batch), given in zip(wanted, found, strict=True):
            channel.ring.more |= len(given) == batch
            channel.pulled(given, now)
        return sum(map(len, found))

    async def _gather(self, lane: Lane) -> None:
        """Pull until we have all that is out: something earlier may be with a dead owner, or in a lost answer."""
        if self._subscription.ordering == "none":
            lane.gathering = False
            return
        counts = await self._link.call(self._server.counts, [channel.who for channel in lane.both])
        missing = [
            (lane, channel, count)
            for channel, one in zip(lane.both, counts, strict=True)
            if (count := channel.missing(one.out + one.again))
        ]
        lane.gathering = bool(missing)
        if not missing:
            for channel in lane.both:
                channel.ring.more = True
            return
        await self._pull_for(missing)
        counts = await self._link.call(self._server.counts, [channel.who for channel in lane.both])
        lane.gathering = any(
            channel.missing(one.out + one.again) for channel, one in zip(lane.both, counts, strict=True)
        )

    def _due(self) -> float | None:
        """Return in how many seconds to look again."""
        lanes = self._open()
        dues = [lane.waiting[0][0] for lane in lanes if lane.waiting]
        seconds = [(min(dues) - self._server.clock.now_us()) / 1e6] if dues else []
        if any(lane.gathering or any(channel.early for channel in lane.both) for lane in lanes):
            seconds.append(self._subscription.lease.total_seconds() / 4)
        return min(seconds, default=None)

    # --- what must wait ---------------------------------------------------------------------------------------

    async def _put_aside(self) -> None:
        """Publish what came before its time into the lane's waiting room, then ack it."""
        for lane in self._open():
            for channel in lane.both:
                for number, stored in list(channel.early.items()):
                    post = self._to_wait(lane, channel, stored=stored)
                    outcomes, _ = await self._publisher.send([post])
                    if outcomes[0] is None or outcomes[0].status == "refused":
                        continue
                    channel.leaving.add(number)
                    await self._link.call(self._server.ack, {channel.who: [number]})
                    channel.forget(number)

    def _to_wait(self, lane: Lane, channel: Channel, *, stored: Stored) -> Post:
        message = msgspec.structs.replace(stored.message, to=self._own.inbox(lane.topic))
        name = f"early {channel.who[0]} {stored.number}"
        return Post(self._own.inbox_stream(lane.topic), wait_of(lane.subject), message, name, stored.size)

    async def _fetch_due(self) -> None:
        """Publish what is due to the lane itself, then delete it from the waiting room."""
        for lane in self._open():
            stream = self._own.inbox_stream(lane.topic)
            if lane.waits.more:
                found = await self._link.call(self._server.listen, stream, wait_of(lane.subject), lane.waits)
                lane.waits.more = False
                lane.waiting = sorted(
                    ((one.message.not_before or 0, one.number, one) for one in found), key=lambda item: item[:2]
                )
            now = self._server.clock.now_us()
            while lane.waiting and lane.waiting[0][0] <= now:
                _, number, stored = lane.waiting[0]
                post = Post(stream, lane.subject, stored.message, f"due {stream} {number}", stored.size)
                outcomes, _ = await self._publisher.send([post])
                if outcomes[0] is None or outcomes[0].status == "refused":
                    break
                await self._link.call(self._server.delete, stream, [number])
                lane.waiting.pop(0)

    # --- membership -------------------------------------------------------------------------------------------

    async def join(self) -> None:
        """Join, and keep what is ours from now on."""
        await self._own.begin()
        self._crew.add(self._own.live())

    async def drain(self) -> None:
        """Hand nothing more out and wait until all is settled, at most ``grace``."""
        if self._state == "left":
            return
        self._state = "leaving"
        for lane in self._own.lanes.values():
            self._own.take_back(lane)
        end = asyncio.get_running_loop().time() + self._subscription.grace.total_seconds()
        await self._intake.bell.until(lambda: not self._in_flight, end)

    async def leave(self) -> None:
        """Give back what is out, uncounted, and be gone."""
        if self._state == "left":
            return
        self._state = "leaving"
        try:
            await self._crew.close()
            with suppress(Disconnected):
                await self._own.end()
        finally:
            self._state = "left"
            self._own.lanes.clear()
            self._intake.bell.ring()
