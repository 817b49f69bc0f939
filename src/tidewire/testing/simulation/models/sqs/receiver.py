"""A member's place in its group on an SQS-like broker: it receives, keeps hidden what it has, and deletes.

There are no lanes: a message group is the broker's own, and whoever receives of it has it. So each member has every
lane for itself, and a lane is lost when a message in it is: what else of it is here is shown again, since nothing of
its key may go on. Delays and returns that are nobody's failure are kept outside of the queue: see `topology`.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from datetime import timedelta
from typing import Protocol

import msgspec

from tidewire.errors import TransportClosed, TransportUnavailable
from tidewire.model import Delivery, LaneEvent, Message, Move, Release, Settlement, Subscription
from tidewire.testing.simulation.models.common import demand_no_delay
from tidewire.testing.simulation.models.intake import Bell, Crew, Intake
from tidewire.testing.simulation.models.links import Disconnected, Link
from tidewire.testing.simulation.models.queues import demand_provisioned, settle_moves
from tidewire.testing.simulation.models.sqs import topology
from tidewire.testing.simulation.models.sqs.sending import Copy, Sender, tens
from tidewire.testing.simulation.models.sqs.server import BATCH_MAX, Entry, Received, SqsServer

__all__ = ["SqsReceiver"]

AGAIN = 0.2
"""Seconds until a call that had no answer is made again."""
LOCK_SECONDS = 2.0
LOCKED_MAX = 100
MOVE_SECONDS = 5.0


class Place(Protocol):
    """What a receiver needs of its transport."""

    server: SqsServer
    link: Link
    sender: Sender
    fifo: bool

    def demand_open(self) -> None:
        """Raise if it is closed."""


class _Held:
    """A message that we have. *until*: when others may have it, counted from before it was asked for.

    *leaving*: the server was asked to delete it.
    """

    __slots__ = ("count", "delivery", "id", "leaving", "number", "queue", "receipt", "spare", "spent", "topic", "until")

    def __init__(self, topic: str, queue: str, one: Received, *, until: float) -> None:
        self.topic = topic
        self.queue = queue
        self.id = one.id
        self.number = one.number
        self.receipt = one.receipt
        self.count = one.count
        self.until = until
        self.leaving = False
        self.spare = 0
        self.spent = 0
        self.delivery: Delivery | None = None


class SqsReceiver:
    """A `Receiver`."""

    def __init__(self, place: Place, subscription: Subscription) -> None:
        self._place = place
        self._server = place.server
        self._link = place.link
        self._subscription = subscription
        self._lease = subscription.lease.total_seconds()
        self._crew = Crew()
        self._news = Bell()
        self._intake = Intake(self._crew, self._fetch, due=self._due)
        self._out: dict[str, _Held] = {}
        self._lanes: dict[str, int] = {}
        self._counts: dict[str, int] = {}
        self._paused: dict[str, list[Delivery]] = {}
        self._epoch = 0
        self._turn = 0
        self._fetching = 0
        self._failing = 0.0
        self._leaving = self._left = False

    # --- membership -------------------------------------------------------------------------------------------

    async def join(self) -> None:
        """Begin."""
        subscription, server = self._subscription, self._server

        def enter() -> tuple[dict[str, int], int]:
            counts = {
                topic: topology.ensure_group(
                    server, topic, subscription.group, start=subscription.start, fifo=self._place.fifo
                )
                for topic in subscription.topics
            }
            for topic in subscription.topics:
                server.watch(self._main(topic), self._intake.bell)
                server.watch(topology.waiting(topic, subscription.group), self._news)
            server.members += 1
            return counts, server.members * 1_000_000

        with demand_provisioned(subscription.group):
            self._counts, self._epoch = await self._link.call(enter)
        for topic, lanes in self._counts.items():
            for number in range(lanes):
                self._assign(f"{topic}/{number}")
        self._crew.add(self._tend())

    def _assign(self, lane: str) -> None:
        self._epoch += 1
        self._lanes[lane] = self._epoch
        self._intake.tell(LaneEvent("assigned", lane, self._epoch))

    def _main(self, topic: str) -> str:
        return topology.main(topic, self._subscription.group, fifo=self._place.fifo)

    async def _tend(self) -> None:
        """Until cancelled: keep hidden what we have, and move what has waited long enough."""
        while True:
            heard = self._news.rings
            await self._extend()
            for topic in self._subscription.topics:
                with suppress(Disconnected):
                    await self._move_due(topic)
            await self._news.wait(heard, self._lease / 3)

    async def _extend(self) -> None:
        loop = asyncio.get_running_loop()
        lost: list[_Held] = []
        by_queue: dict[str, list[_Held]] = {}
        for held in self._out.values():
            by_queue.setdefault(held.queue, []).append(held)
        for queue, all_held in by_queue.items():
            for batch in tens(all_held):
                until = loop.time() + self._lease
                try:
                    errors = await self._link.call(
                        self._server.change, queue, [held.receipt for held in batch], self._lease
                    )
                except Disconnected:
                    continue
                for held, error in zip(batch, errors, strict=True):
                    held.until = max(held.until, until) if not error else held.until
                    lost += [held] if error and not held.leaving else []  # or our own delete has come before
        lost += [held for held in self._out.values() if held.until <= loop.time() and held not in lost]
        await self._lose([held for held in lost if held.receipt in self._out])

    async def _lose(self, lost: Sequence[_Held]) -> None:
        """Somebody else has these, or may have: their lanes are lost, with all that is here of them."""
        lanes = dict.fromkeys(_delivery(held).lane for held in lost)
        gone: list[_Held] = []
        for lane in lanes:
            gone += [held for held in self._out.values() if _delivery(held).lane == lane]
            self._intake.drop(lane)
            self._paused.pop(lane, None)
            self._intake.tell(LaneEvent("lost", lane, self._lanes[lane]))
            self._assign(lane)
        for held in gone:
            del self._out[held.receipt]
        await self._show([held for held in gone if held not in lost])

    async def _show(self, batch: Sequence[_Held]) -> None:
        """Show messages again, the last one first: what is shown may be handed out at once."""
        by_queue: dict[str, list[_Held]] = {}
        for held in sorted(batch, key=_number_of, reverse=True):
            by_queue.setdefault(held.queue, []).append(held)
        for queue, all_held in by_queue.items():
            for some in tens(all_held):
                with suppress(Disconnected):
                    await self._link.call(self._server.change, queue, [held.receipt for held in some], 0.0)

    # --- delays -----------------------------------------------------------------------------------------------

    async def _move_due(self, topic: str) -> None:
        """Send what has waited long enough to the group, and the rest around once more."""
        queue = topology.waiting(topic, self._subscription.group)
        while batch := await self._link.call(self._server.receive, queue, BATCH_MAX, MOVE_SECONDS):
            moved = [one for one in batch if await self._moved_on(topic, one)]
            if moved:
                await self._link.call(self._server.delete, queue, [one.receipt for one in moved])

    async def _moved_on(self, topic: str, one: Received) -> bool:
        message, _ = topology.unpacked(one.body)
        if topology.due_in(message, self._server.clock.now_us()) > timedelta(0):
            return await self._put_off(topic, one.body, message)
        entry = Entry(body=one.body)
        if self._place.fifo:
            key = f"u-{one.id}" if message.key is None else topology.digest("key", message.key)
            # Whoever moves it, and how often: this name is recognised.
            entry = Entry(body=one.body, group=key, dedup=f"w-{one.id}")
        (sent,) = await self._link.call(self._server.send, self._main(topic), [entry])
        return not sent.code

    async def _put_off(self, topic: str, body: str, message: Message) -> bool:
        """Let a message wait, as long as one may at a time; False if that is not certain."""
        wait = topology.due_in(message, self._server.clock.now_us())
        delay = min(max(wait, timedelta(0)), self._server.delay_max).total_seconds()
        queue = topology.waiting(topic, self._subscription.group)
        (sent,) = await self._link.call(self._server.send, queue, [Entry(body=body, delay=delay)])
        return not sent.code

    # --- receiving --------------------------------------------------------------------------------------------

    async def receive(self, limit: int, wait: timedelta) -> Sequence[Delivery | LaneEvent]:
        """Receive.

        Raises:
            TransportUnavailable: there has been no answer for a lease.
            TransportClosed: the group was left.
        """
        self._check()
        await self._intake.top_up(limit)
        return await self._intake.take(limit, wait, check=self._check)

    def _check(self) -> None:
        self._place.demand_open()
        if self._left or self._leaving:
            raise TransportClosed(f"{self._subscription.group}: the group was left")
        if self._failing and asyncio.get_running_loop().time() - self._failing > self._lease:
            self._failing = 0.0
            raise TransportUnavailable("the broker has not answered for a lease")

    def _due(self) -> float | None:
        return AGAIN if self._failing else None

    async def _fetch(self, limit: int) -> Sequence[Delivery]:
        """Receive what there is, up to *limit*. It is kept here at once, in order."""
        self._fetching += 1
        try:
            topics = list(self._subscription.topics)
            self._turn += 1
            for topic in topics[self._turn % len(topics) :] + topics[: self._turn % len(topics)]:
                limit -= await self._fetch_from(topic, limit)
            self._failing = 0.0
        except Disconnected:
            self._failing = self._failing or asyncio.get_running_loop().time()
        finally:
            self._fetching -= 1
            self._news.ring() if self._leaving else None
        return ()

    async def _fetch_from(self, topic: str, limit: int) -> int:
        count = 0
        loop = asyncio.get_running_loop()
        while not self._leaving:
            room = min(limit - count, self._subscription.prefetch - len(self._out), BATCH_MAX)
            if room <= 0:
                break
            until = loop.time() + self._lease
            batch = await self._link.call(self._server.receive, self._main(topic), room, self._lease)
            notes = await self._notes(topic) if any(one.count > 1 for one in batch) else {}
            for one in batch:
                held = _Held(topic, self._main(topic), one, until=until)
                count += await self._take_in(held, one, notes.get(one.id, (0, 0)))
            if len(batch) < room:
                break
        return count

    async def _take_in(self, held: _Held, one: Received, note: tuple[int, int]) -> bool:
        """Keep one for the caller; False if it is none: it waits for its time, or took too long to come."""
        message, held.spent = topology.unpacked(one.body)
        if topology.due_in(message, self._server.clock.now_us()) > timedelta(0):
            if await self._put_off(held.topic, one.body, message):
                await self._link.call(self._server.delete, held.queue, [held.receipt])
            return False
        if held.until <= asyncio.get_running_loop().time():
            return False
        lane = f"{held.topic}/{topology.lane_of_message(message, self._counts[held.topic])}"
        held.spare, failures = note
        crashes = max(0, one.count - 1 - held.spare)
        held.delivery = delivery = Delivery(
            message, lane, self._lanes[lane], held.receipt, 1 + held.spent + failures + crashes, crashes > 0, None,
            one.sent_at,
        )  # fmt: skip
        self._out[held.receipt] = held
        if lane in self._paused:
            self._paused[lane].append(delivery)
        else:
            self._intake.kept.append(delivery)
        return True

    # --- the register -----------------------------------------------------------------------------------------

    async def _notes(self, topic: str, new: Mapping[str, tuple[int, int]] | None = None) -> dict[str, tuple[int, int]]:
        """Read what the members of the group have noted of messages, and note what is *new*: one at a time has it.

        Raises:
            Disconnected: no answer; nothing is known to be noted.
        """
        name = topology.register(topic, self._subscription.group)
        for _ in range(LOCKED_MAX):
            found = await self._link.call(self._server.receive, name, BATCH_MAX, LOCK_SECONDS)
            if found:
                break
            await asyncio.sleep(LOCK_SECONDS / 40)
        else:
            raise Disconnected("somebody has locked the register", sent=False)
        notes = {key: note for one in found for key, note in topology.register_in(one.body).notes.items()}
        receipts = [one.receipt for one in found]
        if new is None:
            await self._link.call(self._server.change, name, receipts, 0.0)
            return notes
        notes |= new
        entry = topology.register_entry(topology.Register(notes), self._place.sender.name())
        await self._link.call(self._server.send, name, [entry])
        await self._link.call(self._server.delete, name, receipts)
        return notes

    # --- settling ---------------------------------------------------------------------------------------------

    async def settle(
        self, *, ack: Sequence[Delivery] = (), release: Sequence[Release] = (), move: Sequence[Move] = ()
    ) -> Sequence[Settlement]:
        """Settle: acks, then releases, then moves.

        Raises:
            TransportUnavailable: there was no answer.
            ValueError: a `Release` with a delay under ordering by key.
        """
        self._place.demand_open() if not self._left else None
        demand_no_delay(self._subscription, release)
        settlements = await self._acked(ack)
        settlements += await self._released(release)
        settlements += await self._moved(move)
        self._intake.bell.ring()  # there may be room below the prefetch again
        self._news.ring() if self._leaving else None
        return settlements

    def _ours(self, delivery: Delivery) -> bool:
        """Whether a delivery's lane has not been lost since."""
        return not self._left and self._lanes.get(delivery.lane) == delivery.epoch

    def _held(self, delivery: Delivery) -> _Held | None:
        return self._out.get(str(delivery.position)) if self._ours(delivery) else None

    async def _acked(self, deliveries: Iterable[Delivery]) -> list[Settlement]:
        """Delete."""
        wanted = list(deliveries)
        now = asyncio.get_running_loop().time()
        found = {held.receipt: held for one in wanted if (held := self._held(one)) is not None}
        lost = [held for held in found.values() if held.until <= now]
        by_queue: dict[str, list[_Held]] = {}
        for held in found.values():
            if held not in lost:
                by_queue.setdefault(held.queue, []).append(held)
        ours = [self._ours(one) for one in wanted]
        for queue, all_held in by_queue.items():
            for batch in tens(all_held):
                for held in batch:
                    held.leaving = True
                errors = await self._link.call(self._server.delete, queue, [held.receipt for held in batch])
                for held, error in zip(batch, errors, strict=True):
                    lost += [held] if error else []
                    if not error:
                        self._out.pop(held.receipt, None)
        await self._lose([held for held in lost if held.receipt in self._out])
        gone = {held.receipt for held in lost}
        return [
            Settlement(one, "settled" if mine and str(one.position) not in gone else "lost")
            for one, mine in zip(wanted, ours, strict=True)
        ]

    async def _released(self, releases: Sequence[Release]) -> list[Settlement]:
        """Hand out again from here what is released; that it has failed is noted in the register."""
        settlements: list[Settlement] = []
        failed: dict[str, list[_Held]] = {}
        for one in releases:
            held = self._held(one.delivery)
            if held is None:
                settlements.append(Settlement(one.delivery, "settled" if self._ours(one.delivery) else "lost"))
                continue
            delivery = _delivery(held)
            if one.delay > timedelta(0):
                settlements += await self._released_later(held, one)
                continue
            if one.counted:
                failed.setdefault(held.topic, []).append(held)
                delivery = held.delivery = msgspec.structs.replace(delivery, attempt=delivery.attempt + 1)
            self._again(delivery)
            settlements.append(Settlement(one.delivery, "settled"))
        for topic, batch in failed.items():
            totals = {held.id: (held.spare, _failures(held)) for held in batch}
            await self._notes(topic, totals)
        return settlements

    async def _released_later(self, held: _Held, release: Release) -> list[Settlement]:
        delivery = _delivery(held)
        due = self._server.clock.now_us() + release.delay // timedelta(microseconds=1)
        later = msgspec.structs.replace(delivery.message, not_before=due)
        body = topology.packed(later, spent=delivery.attempt - 1 + release.counted)
        if await self._put_off(held.topic, body, later):
            return await self._acked([release.delivery])
        return [Settlement(release.delivery, "failed")]

    def _again(self, delivery: Delivery) -> None:
        """Keep a delivery that came back, at its place among those of its lane."""
        lane = delivery.lane
        if lane in self._paused:
            self._paused[lane] = sorted([*self._paused[lane], delivery], key=_place_of)
        else:
            self._intake.put_back(delivery, _place_of)

    async def _moved(self, moves: Sequence[Move]) -> list[Settlement]:
        """Send what is moved; when it is there, delete."""
        found: dict[int, Settlement] = {}
        wanted: dict[int, Move] = {}
        for place, one in enumerate(moves):
            if self._held(one.delivery) is None or one.delivery in [other.delivery for other in wanted.values()]:
                found[place] = Settlement(one.delivery, "settled" if self._ours(one.delivery) else "lost")
            else:
                wanted[place] = one
        copies = [
            # The event's own id would be recognised from its last retry, and this one dropped as success.
            Copy(message, f"r-{one.delivery.position}-{index}")
            for one in wanted.values()
            for index, message in enumerate(one.messages)
        ]
        receipts = await self._place.sender.send(copies)
        found |= zip(wanted, await settle_moves(wanted.values(), receipts, self._acked), strict=True)
        return [found[place] for place in range(len(moves))]

    async def steer(
        self, *, pause: Sequence[str] = (), resume: Sequence[str] = (), drained: Sequence[str] = ()
    ) -> None:
        """Pause or resume lanes; nothing is ever revoked."""
        self._place.demand_open()
        for lane in pause:
            if lane in self._lanes:
                self._paused[lane] = [*self._paused.get(lane, []), *self._intake.drop(lane)]
        for lane in resume:
            self._intake.kept.extendleft(reversed(self._paused.pop(lane, [])))
            self._intake.bell.ring()

    # --- leaving ----------------------------------------------------------------------------------------------

    async def drain(self) -> None:
        """Hand nothing more out and wait until all is settled, at most ``grace``."""
        self._leaving = True
        self._intake.bell.ring()
        loop = asyncio.get_running_loop()
        end = loop.time() + self._subscription.grace.total_seconds()
        while self._handed() and (rest := end - loop.time()) > 0:
            heard = self._news.rings
            await self._news.wait(heard, rest)

    def _handed(self) -> int:
        """How many are in the hands of the caller."""
        return len(self._out) - len(self._intake.kept) - sum(map(len, self._paused.values()))

    async def leave(self) -> None:
        """Show again what is unsettled, and note that this was nobody's failure."""
        self._leaving = True
        self._intake.bell.ring()
        while self._fetching:
            heard = self._news.rings
            await self._news.wait(heard, 1.0)
        await self._crew.close()
        self._left = True
        left = list(self._out.values())
        for topic in dict.fromkeys(held.topic for held in left):
            totals = {held.id: (held.spare + 1, _failures(held)) for held in left if held.topic == topic}
            with suppress(TransportUnavailable):
                await self._notes(topic, totals)
        await self._show(left)


def _delivery(held: _Held) -> Delivery:
    assert held.delivery is not None, "it was kept when it came"
    return held.delivery


def _failures(held: _Held) -> int:
    """How many failures of a message the broker does not know of."""
    crashes = max(0, held.count - 1 - held.spare)
    return _delivery(held).attempt - 1 - held.spent - crashes


def _number_of(held: _Held) -> int:
    return held.number


def _place_of(delivery: Delivery) -> int:
    return int(str(delivery.position).partition("-")[0])
