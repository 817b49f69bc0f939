"""A member's place in its group, on the event loop: what it owns, what it has in hand, what it tells the broker."""

from __future__ import annotations

import asyncio
import os
from collections import deque
from collections.abc import Awaitable, Callable, Container, Sequence
from datetime import timedelta
from functools import partial
from itertools import groupby
from operator import attrgetter

import msgspec

from tidewire.errors import TransportClosed, TransportError, TransportUnavailable
from tidewire.kit.threads import apart
from tidewire.kit.waits import happens
from tidewire.model import (
    ZERO,
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
    Topic,
)
from tidewire.protocols import Clock
from tidewire.transports.kafka.fetching import Fetched, Fetcher, Source
from tidewire.transports.kafka.lanes import Feed, Lane, offset_of
from tidewire.transports.kafka.member import Commit, Entry, Member, Opened
from tidewire.transports.kafka.names import inbox_topic

__all__ = ["KafkaReceiver"]

_POLL = 0.25
_GOODBYE = 1.0


class KafkaReceiver:
    """See `tidewire.protocols.Receiver`."""

    def __init__(
        self,
        subscription: Subscription,
        *,
        clock: Clock,
        timeout: float,
        publish: Callable[[Sequence[Message]], Awaitable[Sequence[Receipt]]],
    ) -> None:
        self.subscription = subscription
        self._clock = clock
        self._timeout = timeout
        self._publish = publish
        self._process = os.getpid()
        self._loop = asyncio.get_running_loop()
        self._lanes: dict[str, Lane] = {}
        self._order: deque[Lane] = deque()
        self._events: deque[LaneEvent] = deque()
        self._woken = asyncio.Event()
        self._calm = asyncio.Event()
        self._failure: TransportError | None = None
        self._leaving = False
        self._closed = False
        self._unsettled = 0
        self._lease = subscription.lease // timedelta(microseconds=1) * 1_000
        self._awake_at = clock.ticks()
        self._asking: asyncio.Future[frozenset[str]] | None = None
        self._buffered_max = max(64, subscription.prefetch // 4)
        self._member: Member | None = None
        self._fetcher: Fetcher | None = None

    # --- the protocol ---------------------------------------------------------------------------------------------

    async def receive(self, limit: int, wait: timedelta) -> Sequence[Delivery | LaneEvent]:
        """Hand out lane events and up to *limit* deliveries; nothing is awaited between taking and returning them."""
        self._check()
        await asyncio.sleep(0)  # or a consumer of what is buffered would never let others run
        deadline = self._loop.time() + wait.total_seconds()
        while True:
            self._check()
            if self._failure is not None:
                raise self._failure
            self._woken.clear()
            found: list[Delivery | LaneEvent] = list(self._events)
            self._events.clear()
            if limit > 0 and not self._leaving and self._certain():
                self._hand_out(found, min(limit, self.subscription.prefetch - self._unsettled))
            rest = deadline - self._loop.time()
            if found or rest <= 0:
                return found
            if await self._make_room():
                continue
            timer = self._loop.call_later(min(rest, self._pause()), self._woken.set)
            try:
                await self._woken.wait()
            finally:
                timer.cancel()

    async def settle(
        self, *, ack: Sequence[Delivery] = (), release: Sequence[Release] = (), move: Sequence[Move] = ()
    ) -> Sequence[Settlement]:
        """Settle: a move's messages are stored first, then all of it is committed at once.

        A commit that gets no answer in time is `TransportUnavailable`: it may have happened, and settling again is
        harmless.
        """
        if os.getpid() != self._process:
            raise TransportClosed("this membership belongs to the process that was forked")
        if self.subscription.ordering == "key" and any(one.delay > ZERO for one in release):
            raise ValueError("under ordering by key a release has no delay: hold the key, or move the delivery")
        lanes: dict[str, Lane] = {}
        for name, run in groupby(ack, attrgetter("lane")):
            lane = self._lanes.get(name)
            if lane is not None and (ours := [one for one in run if one.epoch == lane.epoch]):
                lanes[name] = lane
                self._unsettled -= lane.settle(ours)
        for one in release:
            if (lane := self._lane(one.delivery)) is not None:
                lanes[lane.name] = lane
                self._give_back(lane, one)
        moved = await self._store(move) if move else {}
        for place, onward in enumerate(move):
            if (lane := self._lane(onward.delivery)) is not None:
                lanes[lane.name] = lane
                if all(receipt.ok for receipt in moved.get(place, ())):
                    self._unsettled -= lane.settle([onward.delivery])
        self._woken.set()
        lost = await self._commit(list(lanes.values()))
        kept = {name: lane.epoch for name, lane in lanes.items() if name not in lost}
        self._resume_feeds(lanes.values())
        if not self._unsettled:
            self._calm.set()
        return [
            *(Settlement(one, "settled" if kept.get(one.lane) == one.epoch else "lost") for one in ack),
            *(_settlement(one.delivery, kept, ()) for one in release),
            *(_settlement(one.delivery, kept, moved.get(place, ())) for place, one in enumerate(move)),
        ]

    async def steer(
        self, *, pause: Sequence[str] = (), resume: Sequence[str] = (), drained: Sequence[str] = ()
    ) -> None:
        """Pause and resume lanes; give drained ones back, what is out of them uncounted."""
        self._check()
        for name in (name for name in pause if name in self._lanes):
            self._lanes[name].paused = True
        for name in (name for name in resume if name in self._lanes):
            self._lanes[name].paused = False
        self._woken.set()
        leaving = [self._lanes[name] for name in drained if name in self._lanes and self._lanes[name].revoking]
        if leaving:
            await self._close(leaving)

    # --- life -----------------------------------------------------------------------------------------------------

    def start(self, member: Member, fetcher: Fetcher) -> None:
        """Let both threads work for us."""
        self._member, self._fetcher = member, fetcher
        member.start()
        fetcher.start()

    async def drain(self) -> None:
        """Hand nothing more out and wait until all is settled, at most ``grace``."""
        self._leaving = True
        self._woken.set()
        end = self._loop.time() + self.subscription.grace.total_seconds()
        while self._unsettled and self._failure is None and (rest := end - self._loop.time()) > 0:
            self._calm.clear()
            await happens(self._calm, rest)

    async def leave(self) -> None:
        """Give everything back uncounted, leave the group, and end the threads. Bounded: a broker that does not answer
        is left without a word, and hears of it by the end of the lease."""
        self._leaving = True
        lanes = list(self._lanes.values())
        member, fetcher = self._member, self._fetcher
        assert member is not None, "it was started"
        assert fetcher is not None, "it was started"
        fetcher.end()
        self._closed = True
        self._send(lanes, self._loop.create_future(), open_=False)
        for lane in lanes:
            self._forget(lane)
        self._woken.set()
        member.leave()
        await apart(lambda: member.join(_GOODBYE) and fetcher.join(_GOODBYE / 2))

    def out(self) -> dict[tuple[str, int], frozenset[int]]:
        """Return what is out, by partition."""
        return {
            (feed.log, feed.partition): frozenset(feed.out)
            for lane in self._lanes.values()
            for feed in lane.feeds
            if feed.out
        }

    def reading(self, lanes: Container[str]) -> dict[tuple[str, int], int]:
        """Return the offset that is to be handed out next, by partition, of those of *lanes* that may hand out."""
        open_ = [lane for lane in self._order if lane.name in lanes and not (lane.paused or lane.revoking)]
        feeds = [feed for lane in open_ for feed in lane.feeds if feed.has_window and not feed.paused]
        return {(one.log, one.partition): offset_of(one.fresh[0]) if one.fresh else one.next_offset for one in feeds}

    def _check(self) -> None:
        if os.getpid() != self._process:
            raise TransportClosed("this membership belongs to the process that was forked")
        if self._closed:
            raise TransportClosed("this membership has ended")

    def _certain(self) -> bool:
        """Whether our lanes are ours as far as we can know. Who has stood still for longer than its lease asks first:
        a commit of all lanes says so, or that they are lost."""
        now, before = self._clock.ticks(), self._awake_at
        self._awake_at = now
        if self._asking is not None and self._asking.done():
            self._asking = None
        if self._asking is None and now - before > self._lease and self._lanes:
            self._asking = self._loop.create_future()
            self._send(list(self._lanes.values()), self._asking, open_=True, whole=True)
        return self._asking is None

    # --- handing out ----------------------------------------------------------------------------------------------

    def _hand_out(self, found: list[Delivery | LaneEvent], credit: int) -> None:
        """Take from the lanes in turn, of each its share."""
        now = self._clock.now_us()
        order = self._order
        share = max(1, credit // max(1, len(order)))
        idle = 0
        while credit > 0 and idle < len(order):
            lane = order[0]
            order.rotate(-1)
            taken = [] if lane.paused or lane.revoking else lane.take(min(share, credit), now)
            idle = 0 if taken else idle + 1
            credit -= len(taken)
            self._unsettled += len(taken)
            found += taken
        self._look_after(order)

    def _look_after(self, lanes: Sequence[Lane] | deque[Lane]) -> None:
        """Ask for what was taken from the buffers, and write down that more may be handed out."""
        assert self._fetcher is not None, "it was started"
        higher: list[Lane] = []
        for lane in lanes:
            for feed in lane.feeds:
                if feed.paused and not self._blocked(lane, feed):
                    feed.paused = False
                    self._fetcher.resume(feed.log, feed.partition)
                if not feed.asked and not lane.revoking and feed.wants_ceiling():
                    feed.asked = True
                    higher.append(lane)
        self._fetcher.holding(self._weight())
        if higher:
            self._send(higher, self._loop.create_future(), open_=True)

    def _resume_feeds(self, lanes: object) -> None:
        if any(feed.paused for lane in self._order for feed in lane.feeds):
            self._look_after(self._order)

    async def _make_room(self) -> bool:
        """What waits for a time and keeps the books full goes to the end of the inbox channel, to wait there.

        Cut off in between, it is there twice: the first one is not settled then.
        """
        for lane in list(self._order):
            for feed in lane.feeds:
                if feed.has_window or lane.revoking:
                    continue
                early = feed.in_the_way()
                inbox = InboxChannel(_topic_of(feed.address), self.subscription.group)
                copies = [
                    msgspec.structs.replace(feed.kept[offset].message, to=inbox, not_before=due)
                    for due, offset in early
                ]
                receipts = await self._publish(copies) if copies else ()
                moved = {offset for (_, offset), receipt in zip(early, receipts, strict=True) if receipt.ok}
                if moved and self._lanes.get(lane.name) is lane:
                    feed.moved(moved)
                    await self._commit([lane])
                    return True
        return False

    def _pause(self) -> float:
        """Return how long to wait at most: until the next one is due."""
        now = self._clock.now_us()
        due = [feed.waiting[0][0] for lane in self._order for feed in lane.feeds if feed.waiting]
        return min([_POLL, *(max(0.0005, (one - now) / 1e6 + 0.0005) for one in due)])

    def fetched(self, batches: Sequence[Fetched]) -> None:
        """Take in what was read, of lanes that are still ours."""
        assert self._fetcher is not None, "it was started"
        for batch in batches:
            source = batch.source
            lane = self._lanes.get(source.lane)
            if lane is None or lane.epoch != source.epoch:
                continue
            feed = lane.feed_of(source.to)
            feed.begins_at(batch.gone)
            feed.arrived(batch.records)
            if not feed.paused and self._blocked(lane, feed):  # or it would fill the room of all
                feed.paused = True
                self._fetcher.pause(feed.log, feed.partition)
        self._fetcher.holding(self._weight())
        self._woken.set()

    def _blocked(self, lane: Lane, feed: Feed) -> bool:
        """Whether a feed holds enough for now that nobody will be given soon."""
        return self._stuck(lane, feed) and len(feed.fresh) > self._buffered_max

    def _stuck(self, lane: Lane, feed: Feed) -> bool:
        return lane.paused or lane.revoking or not feed.has_window

    def _weight(self) -> int:
        """Return what waits to be handed out, of lanes that hand out at all."""
        return sum(feed.weight for lane in self._order for feed in lane.feeds if not self._stuck(lane, feed))

    # --- lanes come and go ----------------------------------------------------------------------------------------

    def heard(self, events: Sequence[LaneEvent], opened: Sequence[Opened]) -> None:
        """Lanes were given, are being taken, or are lost."""
        assert self._fetcher is not None, "it was started"
        for new in opened:
            self._open(new)
        gone: list[tuple[str, int]] = []
        idle: list[Lane] = []
        for event in events:
            lane = self._lanes.get(event.lane)
            if event.kind == "revoking" and lane is not None:
                lane.revoking = True
                idle += [] if any(feed.out for feed in lane.feeds) else [lane]
            elif event.kind == "lost" and lane is not None:
                self._forget(lane)
                gone += [(feed.log, feed.partition) for feed in lane.feeds]
            elif lane is None:
                continue
            self._events.append(event)
        if gone:
            self._fetcher.drop(gone)
        if idle:  # nothing of them is in anybody's hands: the next owner need not wait until we are heard
            self._give_up(idle, self._loop.create_future())
        self._woken.set()

    def _open(self, opened: Opened) -> None:
        group = self.subscription.group
        topic, inbox = Topic(opened.topic), InboxChannel(opened.topic, group)
        first = Feed(opened.topic, opened.partition, address=topic, progress=opened.books[0])
        second = Feed(inbox_topic(opened.topic, group), opened.partition, address=inbox, progress=opened.books[1])
        if (old := self._lanes.get(opened.name)) is not None:
            self._forget(old)
        lane = Lane(opened.name, opened.epoch, (first, second))
        self._lanes[lane.name] = lane
        self._order.append(lane)
        assert self._fetcher is not None, "it was started"
        self._fetcher.read(
            [
                Source(feed.log, feed.partition, feed.address, lane.name, lane.epoch, feed.progress.low)
                for feed in lane.feeds
            ]
        )

    def _forget(self, lane: Lane) -> None:
        self._unsettled -= sum(len(feed.out) for feed in lane.feeds)
        for feed in lane.feeds:
            feed.out.clear()
        if self._lanes.get(lane.name) is lane:
            del self._lanes[lane.name]
        if lane in self._order:
            self._order.remove(lane)
        if not self._unsettled:
            self._calm.set()

    async def _close(self, lanes: Sequence[Lane]) -> None:
        done: asyncio.Future[frozenset[str]] = self._loop.create_future()
        self._give_up(lanes, done)
        await done

    def _give_up(self, lanes: Sequence[Lane], done: asyncio.Future[frozenset[str]]) -> None:
        """Give lanes up, in good order: nothing of them is in doubt for the next owner."""
        self._send(lanes, done, open_=False)
        for lane in lanes:
            self._forget(lane)
        assert self._fetcher is not None, "it was started"
        self._fetcher.drop([(feed.log, feed.partition) for lane in lanes for feed in lane.feeds])

    def broken(self, error: TransportError) -> None:
        """The membership cannot go on: whoever receives hears why."""
        if self._failure is None:
            self._failure = error
        self._woken.set()
        self._calm.set()

    # --- settling -------------------------------------------------------------------------------------------------

    def _lane(self, delivery: Delivery) -> Lane | None:
        lane = self._lanes.get(delivery.lane)
        return lane if lane is not None and lane.epoch == delivery.epoch else None

    def _give_back(self, lane: Lane, one: Release) -> None:
        due = 0
        if one.delay > ZERO:
            due = self._clock.now_us() + one.delay // timedelta(microseconds=1)
        feed = lane.feed_of(one.delivery.message.to)
        self._unsettled -= feed.give_back(offset_of(one.delivery), counted=one.counted, due=due)

    async def _store(self, moves: Sequence[Move]) -> dict[int, Sequence[Receipt]]:
        """Publish the messages of those moves whose deliveries are out and ours; return the receipts by place."""
        chosen: list[int] = []
        for place, one in enumerate(moves):
            lane = self._lane(one.delivery)
            if lane is not None and offset_of(one.delivery) in lane.feed_of(one.delivery.message.to).out:
                chosen.append(place)
        messages = [message for place in chosen for message in moves[place].messages]
        receipts = iter(await self._publish(messages) if messages else ())
        return {place: [next(receipts) for _ in moves[place].messages] for place in chosen}

    async def _commit(self, lanes: Sequence[Lane]) -> frozenset[str]:
        """Commit what has changed of *lanes* and return which of them were lost.

        Raises:
            TransportUnavailable: no answer came in time.
        """
        done: asyncio.Future[frozenset[str]] = self._loop.create_future()
        if not self._send(lanes, done, open_=True):
            return frozenset()
        try:
            async with asyncio.timeout(self._timeout):
                return await done
        except TimeoutError:
            raise TransportUnavailable("the broker has not answered a commit in time") from None

    def _send(
        self, lanes: Sequence[Lane], done: asyncio.Future[frozenset[str]], *, open_: bool, whole: bool = False
    ) -> bool:
        """Ask the member's thread for a commit; False if nothing has changed."""
        slack = max(16, self.subscription.prefetch)
        entries: list[tuple[Feed, int, Entry]] = []
        ceilings: list[int] = []
        for lane in lanes:
            for feed, version, entry in lane.entries(open_=open_, slack=slack, whole=whole):
                entries.append((feed, version, entry))
                ceilings.append(max(feed.progress.high, feed.progress.low) + slack)
        if not entries:
            return False
        assert self._member is not None, "it was started"
        epochs = {lane.name: lane.epoch for lane in lanes}
        closes = () if open_ else tuple(epochs)
        told = partial(self._committed, entries, ceilings, done)
        self._member.commit(Commit(epochs, [entry for _, _, entry in entries], told, closes))
        return True

    def _committed(
        self,
        entries: Sequence[tuple[Feed, int, Entry]],
        ceilings: Sequence[int],
        done: asyncio.Future[frozenset[str]],
        result: frozenset[str] | TransportError,
    ) -> None:
        for (feed, version, _), ceiling in zip(entries, ceilings, strict=True):
            feed.asked = False
            if not isinstance(result, TransportError):
                feed.saved = max(feed.saved, version)
                feed.progress.ceiling = max(feed.progress.ceiling, ceiling)
        if done.done():
            return
        if isinstance(result, TransportError):
            done.set_exception(result)
            done.exception()  # who asked may have been cancelled meanwhile
        else:
            done.set_result(result)
        self._woken.set()


def _topic_of(address: Address) -> str:
    return address.name if isinstance(address, Topic) else address.topic


def _settlement(delivery: Delivery, kept: dict[str, int], receipts: Sequence[Receipt]) -> Settlement:
    if kept.get(delivery.lane) != delivery.epoch:
        return Settlement(delivery, "lost")
    stored = all(receipt.ok for receipt in receipts)
    return Settlement(delivery, "settled" if stored else "failed", receipts)
