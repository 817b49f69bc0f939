"""A member's place in its group, as whoever receives sees it: what it has in hand, and how it settles it.

Deliveries are never given back while a lane is kept, since a broker puts them where it likes: what is released is
handed out again from here.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Awaitable, Callable, Collection, Sequence
from contextlib import suppress
from datetime import timedelta

import msgspec

from tidewire.errors import TransportClosed, TransportUnavailable
from tidewire.kit.waits import happens
from tidewire.model import (
    ZERO,
    Delivery,
    InboxChannel,
    LaneEvent,
    Message,
    Move,
    Receipt,
    Release,
    Settlement,
    Subscription,
    Topic,
)
from tidewire.protocols import Clock
from tidewire.transports.rabbitmq.gossip import Count
from tidewire.transports.rabbitmq.lanes import Held, Lane
from tidewire.transports.rabbitmq.line import Silent
from tidewire.transports.rabbitmq.member import Member
from tidewire.transports.rabbitmq.publishing import Copy

__all__ = ["RabbitReceiver"]

_POLL = 0.25
_HAND_OVER = 0.7
"""Seconds that giving lanes up may take beyond the grace."""


class RabbitReceiver:
    """See `tidewire.protocols.Receiver`."""

    def __init__(
        self,
        subscription: Subscription,
        *,
        clock: Clock,
        publish: Callable[[Sequence[Copy]], Awaitable[Sequence[Receipt]]],
    ) -> None:
        self.subscription = subscription
        self._clock = clock
        self._publish = publish
        self._process = os.getpid()
        self._loop = asyncio.get_running_loop()
        self._woken = asyncio.Event()
        self._calm = asyncio.Event()
        self._left = False
        self._end = 0.0  # of the grace, once it has begun
        self._turn = 0
        self._lease = subscription.lease // timedelta(microseconds=1) * 1_000
        self._awake_at = clock.ticks()
        self._member: Member | None = None

    # --- the protocol ---------------------------------------------------------------------------------------------

    async def receive(self, limit: int, wait: timedelta) -> Sequence[Delivery | LaneEvent]:
        """Hand out lane events and up to *limit* deliveries; nothing is awaited between taking and returning them."""
        self._check()
        await asyncio.sleep(0)  # or a consumer of what is buffered would never let others run
        member = self.member
        deadline = self._loop.time() + wait.total_seconds()
        while True:
            self._check()
            if member.failure is not None:
                raise member.failure
            if member.trouble is not None:
                trouble, member.trouble = member.trouble, None
                raise TransportUnavailable(trouble.message, hint=trouble.hint)
            self._woken.clear()
            self._see_whether_we_slept()
            found: list[Delivery | LaneEvent] = list(member.events)
            member.events.clear()
            if limit > 0 and member.certain and not member.leaving:
                self._hand_out(found, limit)
            rest = deadline - self._loop.time()
            if found or rest <= 0:
                return found
            if any(lane.far for lane in member.lanes.values()):
                await self._send_on()
                continue
            await happens(self._woken, min(rest, self._pause()))

    async def settle(
        self, *, ack: Sequence[Delivery] = (), release: Sequence[Release] = (), move: Sequence[Move] = ()
    ) -> Sequence[Settlement]:
        """Settle: acks, then releases, then moves.

        Acks are not confirmed by this broker: an answer to a question that was asked behind them says that they came.
        """
        if os.getpid() != self._process:
            raise TransportClosed("this membership belongs to the process that was forked")
        if self.subscription.ordering == "key" and any(one.delay > ZERO for one in release):
            raise ValueError("under ordering by key a release has no delay: hold the key, or move the delivery")
        settlements = await self._acked(ack)
        if release:
            settlements += await self._released(release)
        if move:
            settlements += await self._moved(move)
        self._woken.set()  # there may be room below the prefetch again
        self._calm.set()
        if self.member.leaving:
            self.member.news.set()
        return settlements

    async def steer(
        self, *, pause: Sequence[str] = (), resume: Sequence[str] = (), drained: Sequence[str] = ()
    ) -> None:
        """Pause, resume or give up lanes; names of lanes that are not ours (any more) are ignored."""
        self._check()
        lanes = self.member.lanes
        for lane in (lanes[name] for name in pause if name in lanes):
            lane.paused = True
        for lane in (lanes[name] for name in resume if name in lanes):
            lane.paused = False
        for lane in (lanes[name] for name in drained if name in lanes):
            if lane.deadline:
                lane.drained = True
                self.member.news.set()
        self._woken.set()

    # --- life -----------------------------------------------------------------------------------------------------

    @property
    def member(self) -> Member:
        """The place in the group."""
        assert self._member is not None, "it was started"
        return self._member

    def start(self, member: Member) -> None:
        """Receive what *member* is given."""
        self._member = member

    def hear(self) -> None:
        """There is something new."""
        self._woken.set()

    def counts(self, now: int) -> list[Count]:
        """Return what is here of each lane."""
        return [lane.count(now) for lane in self.member.lanes.values() if lane.epoch]

    def flowing(self, names: Collection[str]) -> list[Lane]:
        """Return those lanes of *names* from which something may be handed out now."""
        return [lane for lane in self.member.lanes.values() if lane.flows and lane.name in names]

    async def drain(self) -> None:
        """Hand nothing more out and wait until all is settled, at most ``grace``."""
        member = self.member
        member.leaving = True
        self._woken.set()
        end = self._end = self._loop.time() + self.subscription.grace.total_seconds()
        with suppress(TransportUnavailable, TimeoutError):  # then they learn it from the end of our queue
            async with asyncio.timeout(max(0.05, self.subscription.grace.total_seconds())):
                await member.depart()
        while any(lane.out for lane in member.lanes.values()) and (rest := end - self._loop.time()) > 0:
            self._calm.clear()
            await happens(self._calm, rest)

    async def leave(self) -> None:
        """Give everything back uncounted, and leave the group."""
        self._left = True
        self._woken.set()
        await self.member.end(max(_HAND_OVER, self._end + _HAND_OVER - self._loop.time()))

    def _check(self) -> None:
        if os.getpid() != self._process:
            raise TransportClosed("this membership belongs to the process that was forked")
        if self._left or self.member.leaving:
            raise TransportClosed(f"{self.subscription.group}: the group was left")

    def _see_whether_we_slept(self) -> None:
        """Who has stood still for longer than its lease asks whether its connection is there, before it goes on."""
        now, before = self._clock.ticks(), self._awake_at
        self._awake_at = now
        if now - before > self._lease and self.member.lanes:
            self.member.certain = False
            self.member.news.set()

    # --- handing out ----------------------------------------------------------------------------------------------

    def _hand_out(self, found: list[Delivery | LaneEvent], limit: int) -> None:
        """Take from the lanes in turn."""
        now = self._clock.now_us()
        lanes = list(self.member.lanes.values())
        credit = min(limit, self.subscription.prefetch - sum(lane.out for lane in lanes))
        flowing = [lane for lane in lanes if lane.flows]
        while credit > 0 and flowing:
            self._turn += 1
            lane = flowing[self._turn % len(flowing)]
            delivery = lane.next(now)
            if delivery is None:
                flowing.remove(lane)
                continue
            credit -= 1
            found.append(delivery)

    def _pause(self) -> float:
        """Return how long to wait at most: until the next one is due."""
        now = self._clock.now_us()
        due = [lane.waiting[0][0] for lane in self.member.lanes.values() if lane.waiting]
        return min([_POLL, *(max(0.0005, (one - now) / 1e6 + 0.0005) for one in due)])

    async def _send_on(self) -> None:
        """What waits for a time that is far away goes through another tier of the delays: cut off, it is twice."""
        for lane in list(self.member.lanes.values()):
            helds = [lane.unacked[tag] for tag in lane.far if tag in lane.unacked]
            stored = await self._put_off(lane, [(held, held.read.message.not_before or 0, False) for held in helds])
            if self._mine(lane):
                lane.sent_on([held.tag for held, ok in zip(helds, stored, strict=True) if not ok])
                await self._ack({lane: {held.tag for held, ok in zip(helds, stored, strict=True) if ok}})

    async def _put_off(self, lane: Lane, batch: Sequence[tuple[Held, int, bool]]) -> list[bool]:
        """Publish copies that come back to *lane* when they are due."""
        copies: list[Copy] = []
        inbox = InboxChannel(lane.topic, self.subscription.group)
        for held, due, counted in batch:
            message = held.read.message
            delivery = held.delivery
            spent = held.read.spent if delivery is None else delivery.attempt - 1 + counted
            onward = msgspec.structs.replace(message, to=inbox, not_before=due)
            copies.append(Copy(onward, lane.number, spent, isinstance(message.to, Topic)))
        return [receipt.ok for receipt in await self._publish(copies)]

    # --- settling -------------------------------------------------------------------------------------------------

    def _mine(self, lane: Lane) -> bool:
        return self.member.lanes.get(lane.name) is lane and not lane.closing

    def _lane(self, delivery: Delivery) -> Lane | None:
        lane = self.member.lanes.get(delivery.lane)
        return lane if lane is not None and lane.epoch == delivery.epoch and not lane.closing else None

    async def _acked(self, deliveries: Sequence[Delivery]) -> list[Settlement]:
        wanted: dict[Lane, set[int]] = {}
        lanes: list[Lane | None] = []
        for delivery in deliveries:
            lane = self._lane(delivery)
            lanes.append(lane)
            if lane is not None and (held := lane.holds(delivery)) is not None:
                wanted.setdefault(lane, set()).add(held.tag)
        gone = await self._ack(wanted)
        return [
            Settlement(delivery, "lost" if lane is None or lane in gone else "settled")
            for delivery, lane in zip(deliveries, lanes, strict=True)
        ]

    async def _ack(self, wanted: dict[Lane, set[int]]) -> set[Lane]:
        """Ack tags, ask something behind that, and return the lanes that are gone instead.

        Raises:
            TransportUnavailable: there is no answer.
        """
        line = self.member.line
        questions: list[Lane] = []
        for lane, tags in wanted.items():
            if tags and line is not None and line.is_open and lane.pipe is not None and not lane.pipe.is_closed:
                line.write(lane.settle(tags, lane.pipe.number))
                questions.append(lane)
        gone = {lane for lane, tags in wanted.items() if tags and lane not in questions}
        if line is None or not questions:
            return gone
        pipes = [lane.pipe for lane in questions if lane.pipe is not None]
        answers = await asyncio.gather(
            *(line.ask(pipe.basic_qos(prefetch_count=self.member.prefetch)) for pipe in pipes), return_exceptions=True
        )
        for lane, answer in zip(questions, answers, strict=True):
            if isinstance(answer, Silent) or (isinstance(answer, BaseException) and not isinstance(answer, Exception)):
                raise answer
            if isinstance(answer, TransportUnavailable):
                gone.add(lane)
            elif isinstance(answer, Exception):
                raise answer
        return gone

    async def _released(self, releases: Sequence[Release]) -> list[Settlement]:
        """Hand out again from here what is released; that it has failed is written into its lane's token."""
        settlements: list[Settlement] = []
        noting: dict[Lane, None] = {}
        now = self._clock.now_us()
        for one in releases:
            lane = self._lane(one.delivery)
            held = None if lane is None else lane.holds(one.delivery)
            if lane is None or held is None:
                settlements.append(Settlement(one.delivery, "lost" if lane is None else "settled"))
            elif one.delay > ZERO:
                due = now + one.delay // timedelta(microseconds=1)
                (stored,) = await self._put_off(lane, [(held, due, one.counted)])
                settlements += await self._acked([one.delivery]) if stored else [Settlement(one.delivery, "failed")]
            else:
                lane.give_back(held, counted=one.counted)
                if one.counted:
                    noting[lane] = None
                settlements.append(Settlement(one.delivery, "settled"))
        if noting:
            await self.member.write(list(noting))
        return settlements

    async def _moved(self, moves: Sequence[Move]) -> list[Settlement]:
        """Publish what is moved; when it is confirmed, ack."""
        found: dict[int, Settlement] = {}
        wanted: dict[int, Move] = {}
        seen: set[tuple[str, int | str]] = set()
        for place, one in enumerate(moves):
            lane, name = self._lane(one.delivery), (one.delivery.lane, one.delivery.position)
            if lane is None or lane.holds(one.delivery) is None or name in seen:
                found[place] = Settlement(one.delivery, "lost" if lane is None else "settled")
            else:
                wanted[place] = one
                seen.add(name)
        messages: list[Message] = [message for one in wanted.values() for message in one.messages]
        coming = iter(await self._publish([Copy(message) for message in messages]) if messages else ())
        stored: list[int] = []
        for place, one in wanted.items():
            receipts = [next(coming) for _ in one.messages]
            ok = all(receipt.ok for receipt in receipts)
            stored += [place] if ok else []
            found[place] = Settlement(one.delivery, "failed", receipts)
        acked = await self._acked([wanted[place].delivery for place in stored])
        for place, settlement in zip(stored, acked, strict=True):
            found[place] = msgspec.structs.replace(settlement, receipts=found[place].receipts)
        return [found[place] for place in range(len(moves))]
