"""A member of a consumer group: it keeps its session, shares out its partitions, and commits before it hands out."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress
from datetime import timedelta
from typing import Literal

import msgspec

from tidewire.clock import microseconds
from tidewire.errors import TransportClosed, TransportUnavailable
from tidewire.model import (
    Address,
    Delivery,
    InboxChannel,
    LaneEvent,
    Message,
    Move,
    Receipt,
    Release,
    Settlement,
    Subscription,
)
from tidewire.testing.simulation.models.channels import name_of, steer
from tidewire.testing.simulation.models.common import demand_no_delay, turned
from tidewire.testing.simulation.models.intake import Arrivals, Bell, Crew, Intake
from tidewire.testing.simulation.models.kafka.groups import Committed, Place
from tidewire.testing.simulation.models.kafka.lanes import Lane, handed_out
from tidewire.testing.simulation.models.kafka.logs import Record
from tidewire.testing.simulation.models.kafka.marks import Marks
from tidewire.testing.simulation.models.kafka.server import KafkaServer
from tidewire.testing.simulation.models.links import Disconnected, Link, Refusal

__all__ = ["KafkaReceiver", "Publish"]

Publish = Callable[[Sequence[Message], int], Awaitable[Sequence[Receipt]]]
"""Stores messages, with the attempt that the adapter is to hand them out at."""
_FETCH_MAX = 64


class KafkaReceiver:
    """A `Receiver`. Made by `KafkaClient.subscribe`."""

    def __init__(
        self,
        server: KafkaServer,
        link: Link,
        *,
        subscription: Subscription,
        publish: Publish,
        check: Callable[[], None],
    ) -> None:
        self._server = server
        self._coordinator = server.coordinator
        self._link = link
        self._subscription = subscription
        self._publish = publish
        self._check_client = check
        self._crew = Crew()
        self._intake = Intake(self._crew, self._hand_out, due=self._due, mine=self._is_mine)
        self._lock = asyncio.Lock()  # one request to the coordinator at a time, so that each knows the epoch
        self._lanes: dict[str, Lane] = {}
        self._epoch = 0
        self._joined = False
        self._heard_at = 0
        self._told: list[Place] = []
        self._kick = Bell()
        self._turn = 0
        self._state: Literal["active", "leaving", "left"] = "active"

    # --- the seam ---------------------------------------------------------------------------------------------

    async def receive(self, limit: int, wait: timedelta) -> Sequence[Delivery | LaneEvent]:
        """Return lane events and up to *limit* deliveries."""
        return await self._intake.take(limit, wait, check=self._check)

    async def settle(
        self, *, ack: Sequence[Delivery] = (), release: Sequence[Release] = (), move: Sequence[Move] = ()
    ) -> Sequence[Settlement]:
        """Settle in memory, then commit, once for all.

        Raises:
            TransportUnavailable: the commit had no answer.
            ValueError: a `Release` with a delay under ordering by key.
        """
        self._check_client()
        demand_no_delay(self._subscription, release)
        settlements = [self._ack(one) for one in ack]
        for one in release:
            settlements.append(await self._release(one))
        for moved in move:
            settlements.append(await self._move(moved))
        touched = [self._find(one.delivery) for one in settlements if one.status == "settled"]
        lanes = list(dict.fromkeys(lane for lane in touched if lane is not None))
        try:
            # What a commit has asked for that is on its way is not certain: to settle is to have an answer.
            kept = await self._commit([marks for lane in lanes for marks in lane.both if marks.changed or marks.unsure])
        finally:
            self._intake.bell.ring()
        if kept:
            return [one if self._still(one) else Settlement(one.delivery, "lost") for one in settlements]
        return [Settlement(one.delivery, "lost") if one.status == "settled" else one for one in settlements]

    async def steer(
        self, *, pause: Sequence[str] = (), resume: Sequence[str] = (), drained: Sequence[str] = ()
    ) -> None:
        """Pause or resume lanes, or let go of revoked ones."""
        self._check()
        steer(self._lanes, pause, resume, drained=drained)
        self._intake.bell.ring()
        self._kick.ring()

    def _check(self) -> None:
        self._check_client()
        if self._state == "left":
            raise TransportClosed(f"{self._subscription.group}: the group was left")

    # --- settling ---------------------------------------------------------------------------------------------

    def _is_mine(self, delivery: Delivery) -> bool:
        return self._find(delivery) is not None

    def _find(self, delivery: Delivery) -> Lane | None:
        lane = self._lanes.get(delivery.lane)
        return lane if lane is not None and lane.epoch == delivery.epoch and self._state != "left" else None

    def _still(self, one: Settlement) -> bool:
        return one.status != "settled" or self._find(one.delivery) is not None

    def _ack(self, delivery: Delivery) -> Settlement:
        lane = self._find(delivery)
        if lane is None:
            return Settlement(delivery, "lost")
        marks, offset = lane.of(delivery.message), int(delivery.position)
        if offset in marks.out:
            marks.settle(offset)
        return Settlement(delivery, "settled")

    async def _release(self, release: Release) -> Settlement:
        delivery = release.delivery
        lane = self._find(delivery)
        if lane is None:
            return Settlement(delivery, "lost")
        marks, offset = lane.of(delivery.message), int(delivery.position)
        if offset not in marks.out:
            return Settlement(delivery, "settled")
        if release.delay <= timedelta(0):
            marks.give_back(offset, counted=release.counted)
            return Settlement(delivery, "settled")
        # A log cannot wait: what is to wait goes to the inbox channel, with the attempt it is at.
        due = microseconds(self._server.clock.now() + release.delay)
        later = msgspec.structs.replace(delivery.message, to=self._inbox(lane), not_before=due)
        receipts = await self._publish([later], marks.attempts.get(offset, 1) + release.counted)
        if not receipts[0].ok:
            raise TransportUnavailable(f"{delivery.message.id} could not be put off: {receipts[0].status}")
        return self._ack(delivery)

    async def _move(self, move: Move) -> Settlement:
        lane = self._find(move.delivery)
        if lane is None:
            return Settlement(move.delivery, "lost")
        if int(move.delivery.position) not in lane.of(move.delivery.message).out:
            return Settlement(move.delivery, "settled")
        receipts = await self._publish(move.messages, 1)
        if not all(receipt.ok for receipt in receipts):
            return Settlement(move.delivery, "failed", receipts)
        return Settlement(move.delivery, self._ack(move.delivery).status, receipts)

    def _inbox(self, lane: Lane) -> Address:
        return InboxChannel(lane.place[0], self._subscription.group)

    async def _commit(self, changed: Sequence[Marks]) -> bool:
        """Commit; False if we are out of the group, and with it out of every lane.

        Raises:
            Disconnected: there was no answer.
        """
        if not changed:
            return True
        group, member = self._subscription.group, self._subscription.member
        async with self._lock:
            for last in (False, True):
                # Nobody at the broker asks whose a partition is: what is not ours any more must not be sent.
                mine = frozenset(self._all_marks)
                changed = [marks for marks in changed if marks in mine]
                offsets = {marks.place: marks.committed() for marks in changed}
                for marks in changed:
                    marks.changed = False
                stored = False
                try:
                    await self._link.call(self._coordinator.commit, group, member, self._epoch, offsets=offsets)
                    stored = True
                except Refusal as refusal:
                    if refusal.code == "OFFSET_METADATA_TOO_LARGE":
                        raise  # a defect: marks keep within their window
                finally:
                    for marks in changed:
                        marks.changed |= not stored
                if stored:
                    for marks in changed:
                        marks.confirmed(offsets[marks.place])
                    return not self._overdue()  # the answer may have come late
                # An answer of the coordinator may have been lost, and with it an epoch.
                if last or not await self._beat():
                    break
            self._fence()
        return False

    # --- handing out ------------------------------------------------------------------------------------------

    async def _hand_out(self, limit: int) -> Sequence[Delivery]:
        """Mark what is handed out, commit that, and only then hand it out: nobody else could know of it."""
        room = min(limit, self._subscription.prefetch - self._in_flight)
        if room <= 0 or self._state != "active":
            return ()
        await self._fetch(room)
        room = min(room, self._subscription.prefetch - self._in_flight)
        taken = self._taken(room)
        if not taken:
            return ()
        changed = list(dict.fromkeys(marks for _, marks, _ in taken))
        known = False
        try:
            kept = known = await self._commit(changed)
        finally:
            if not known:
                self._put_back(taken)
        if not kept:
            return ()
        late = [one for one in taken if one[0].deadline is not None or self._state != "active"]
        self._put_back(late)
        return [handed_out(*one) for one in taken if one not in late and self._lanes.get(one[0].name) is one[0]]

    @property
    def _all_marks(self) -> list[Marks]:
        return [marks for lane in self._lanes.values() for marks in lane.both]

    @property
    def _in_flight(self) -> int:
        return sum(marks.unsettled for marks in self._all_marks)

    def _open(self) -> list[Lane]:
        return [lane for lane in self._lanes.values() if not lane.paused and lane.deadline is None]

    async def _fetch(self, room: int) -> None:
        """Ask for more of the partitions that have nothing left to hand out."""
        now = self._server.clock.now_us()
        for lane in self._open():
            for marks in lane.both:
                if (record := marks.stuck()) is not None:
                    await self._make_room(lane, marks, record=record)
        hungry = {
            marks.place: marks
            for lane in self._open()
            for marks in lane.both
            if marks.hungry and ((due := marks.due()) is None or due > now)
        }
        wanted = [(place, marks.next, marks.arrivals) for place, marks in hungry.items() if marks.arrivals.more]
        if not wanted:
            return
        for _, _, arrivals in wanted:
            arrivals.more = False
        limit = min(room, _FETCH_MAX)
        answered = False
        try:
            found = await self._link.call(self._server.fetch, wanted, limit=limit)
            answered = True
        finally:
            if not answered:
                for _, _, arrivals in wanted:
                    arrivals.more = True
        for place, records in found:
            marks = hungry[place]
            marks.arrivals.more |= len(records) == limit or marks.room < len(records)
            marks.fetched(records)

    async def _make_room(self, lane: Lane, marks: Marks, *, record: Record) -> None:
        """Send what waits for its time to the end of the inbox channel: the text beside the offset is full."""
        message = record.draft.message
        assert message is not None, "only messages wait"
        attempt = marks.attempts.get(record.offset, record.draft.attempt)
        receipts = await self._publish([msgspec.structs.replace(message, to=self._inbox(lane))], attempt)
        if receipts[0].ok:
            marks.settle(record.offset)
        else:
            marks.wait(record)

    def _taken(self, room: int) -> list[tuple[Lane, Marks, Record]]:
        """Take in equal shares from the lanes, each time beginning with another one."""
        now = self._server.clock.now_us()
        lanes = self._open()
        self._turn += 1
        taken: list[tuple[Lane, Marks, Record]] = []
        while lanes and len(taken) < room:
            share = max(1, (room - len(taken)) // len(lanes))
            before = len(taken)
            for lane in turned(lanes, self._turn):
                for marks in lane.both:
                    left = min(share, room - len(taken))
                    taken += [(lane, marks, record) for record in marks.take(left, now)]
            if len(taken) == before:
                break
        return taken

    def _put_back(self, taken: Sequence[tuple[Lane, Marks, Record]]) -> None:
        for _, marks, record in taken:
            if record.offset in marks.out:
                marks.give_back(record.offset, counted=False)

    def _due(self) -> float | None:
        """Return in how many seconds something that waits is due."""
        dues = [due for lane in self._open() for marks in lane.both if (due := marks.due()) is not None]
        return (min(dues) - self._server.clock.now_us()) / 1e6 if dues else None

    # --- membership -------------------------------------------------------------------------------------------

    async def join(self) -> None:
        """Join, and keep the session from now on."""
        await self._begin()
        self._crew.add(self._live())

    async def drain(self) -> None:
        """Hand nothing more out and wait until all is settled, at most ``grace``."""
        if self._state == "left":
            return
        self._state = "leaving"
        for lane in self._lanes.values():
            self._put_back_kept(lane)
        end = asyncio.get_running_loop().time() + self._subscription.grace.total_seconds()
        await self._intake.bell.until(lambda: not self._in_flight, end)

    async def leave(self) -> None:
        """Give back what is out, uncounted, say goodbye, and be gone."""
        if self._state == "left":
            return
        self._state = "leaving"
        try:
            await self._crew.close()
            if self._joined:
                await self._say_goodbye()
        finally:
            self._state = "left"
            self._lanes.clear()
            self._intake.bell.ring()

    async def _say_goodbye(self) -> None:
        changed = [marks for marks in self._all_marks if marks.out or marks.changed]
        for marks in changed:
            marks.give_all_back()
        with suppress(Disconnected):
            if await self._commit(changed):
                await self._link.call(self._coordinator.leave, self._subscription.group, self._subscription.member)

    async def _begin(self) -> None:
        """Join anew: what we had is somebody else's."""
        subscription = self._subscription
        topics = [name for topic in subscription.topics for name in (topic, self._inbox_name(topic))]
        async with self._lock:
            self._heard_at = self._server.clock.ticks()
            await self._link.call(
                self._coordinator.join, subscription.group, subscription.member, topics, session=self._session
            )
            self._epoch, self._joined = 0, True

    @property
    def _session(self) -> int:
        return int(self._subscription.lease.total_seconds() * 1e9)

    def _inbox_name(self, topic: str) -> str:
        return name_of(InboxChannel(topic, self._subscription.group))

    async def _live(self) -> None:
        """Send heartbeats, until cancelled."""
        interval = self._subscription.lease.total_seconds() / 3
        while True:
            heard = self._kick.rings
            with suppress(Disconnected):
                if not self._joined:
                    await self._begin()
                await self._let_go()
                await self._commit([marks for marks in self._all_marks if marks.unsure])
                async with self._lock:
                    if not await self._beat():
                        self._fence()
                        continue
                await self._take_over()
            self._overdue()
            await self._kick.wait(heard, min(interval, self._until_deadline()))

    async def _beat(self) -> bool:
        """Say what we have, hear what we should have; False if we are out. The lock is held."""
        places = [place for lane in self._lanes.values() for place in (lane.topic.place, lane.inbox.place)]
        asked_at = self._server.clock.ticks()
        subscription = self._subscription
        try:
            self._epoch, told = await self._link.call(
                self._coordinator.heartbeat, subscription.group, subscription.member, self._epoch, held=places
            )
        except Refusal:
            return False
        self._heard_at = asked_at
        self._told = told
        return True

    def _overdue(self) -> bool:
        """Whether nobody has heard of us for a whole session; then we are out."""
        late = self._joined and self._server.clock.ticks() - self._heard_at > self._session
        if late:
            self._fence()
        return late

    def _fence(self) -> None:
        """We are out: every lane is lost."""
        for lane in list(self._lanes.values()):
            self._drop(lane, lost=True)
        self._joined = False
        self._kick.ring()

    def _drop(self, lane: Lane, *, lost: bool) -> None:
        del self._lanes[lane.name]
        self._intake.drop(lane.name)
        if lost:
            self._intake.tell(LaneEvent("lost", lane.name, lane.epoch))
        self._intake.bell.ring()

    async def _let_go(self) -> None:
        """Commit and drop what is drained; drop what should have been."""
        now = self._server.clock.ticks()
        for lane in list(self._lanes.values()):
            if lane.drained:
                for marks in lane.both:
                    marks.give_all_back()
                if await self._commit([marks for marks in lane.both if marks.changed]) and lane.name in self._lanes:
                    self._drop(lane, lost=False)
            elif lane.deadline is not None and now >= lane.deadline:
                self._drop(lane, lost=True)

    async def _take_over(self) -> None:
        """Hear what was told: what is not ours any more is revoked, what is new is read and taken over."""
        told, subscription = set(self._told), self._subscription
        for lane in self._lanes.values():
            if lane.topic.place not in told and lane.deadline is None:
                patience = min(subscription.grace, subscription.lease).total_seconds()
                lane.deadline = self._server.clock.ticks() + int(patience * 1e9)
                self._put_back_kept(lane)
                self._intake.tell(LaneEvent("revoking", lane.name, lane.epoch, lane.deadline))
        new = [
            place
            for place in self._told
            if place[0] in subscription.topics and f"{place[0]}/{place[1]}" not in self._lanes
        ]
        pairs = [(place, (self._inbox_name(place[0]), place[1])) for place in new]
        if not pairs:
            return
        epoch = self._epoch
        places = [place for pair in pairs for place in pair]
        found = await self._link.call(self._coordinator.committed, subscription.group, places)
        committed = dict(zip(places, found, strict=True))
        if epoch != self._epoch or not self._joined:
            return  # it was said anew meanwhile
        for place, inbox in pairs:
            one, other = committed[place] or (0, ""), committed[inbox] or (0, "")
            lane = Lane(place, epoch, topic=self._marks(place, one), inbox=self._marks(inbox, other))
            self._lanes[lane.name] = lane
            self._intake.tell(LaneEvent("assigned", lane.name, epoch))

    def _marks(self, place: Place, committed: Committed) -> Marks:
        return Marks(place, committed, text_max=self._coordinator.text_max, arrivals=Arrivals(self._intake.bell))

    def _put_back_kept(self, lane: Lane) -> None:
        """Take back what was to be handed out next: a revoked lane hands nothing out."""
        for delivery in self._intake.drop(lane.name):
            lane.of(delivery.message).give_back(int(delivery.position), counted=False)

    def _until_deadline(self) -> float:
        now = self._server.clock.ticks()
        deadlines = [lane.deadline for lane in self._lanes.values() if lane.deadline is not None]
        return max((min(deadlines) - now) / 1e9, 0.001) if deadlines else 3600.0
