"""A member's connection, whom it knows by it, and the lanes it has by right of their tokens.

From whom it knows each member computes which lanes are its own, and lines up for their tokens: a queue of one message,
given to one consumer at a time. Who holds a token writes a greater one behind it, acks the old one, and has the lane
under the new epoch. A lane is given up by closing its channel, which gives all of it back in order, and then its token.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Iterable, Sequence
from functools import partial

from aiormq.abc import DeliveredMessage
from pamqp import commands as spec

from tidewire.chance import Ids
from tidewire.errors import TransportError, TransportRefused, TransportUnavailable
from tidewire.kit.waits import happens
from tidewire.model import InboxChannel, LaneEvent, Subscription, Topic
from tidewire.protocols import Clock
from tidewire.transports.rabbitmq.dealing import TIER_LEAST_MS, dealt
from tidewire.transports.rabbitmq.frames import Parcel, ack_frames, bare, publish_frames
from tidewire.transports.rabbitmq.gossip import Circle, Word, heard
from tidewire.transports.rabbitmq.lanes import Lane
from tidewire.transports.rabbitmq.library import Pipe, on_end
from tidewire.transports.rabbitmq.line import Line, open_line
from tidewire.transports.rabbitmq.names import (
    MEMBERS,
    inbox_queue,
    lane_name,
    lane_queue,
    member_queue,
    token_queue,
)
from tidewire.transports.rabbitmq.outlet import Confirm, Outlet, open_outlet
from tidewire.transports.rabbitmq.settings import RabbitSettings
from tidewire.transports.rabbitmq.tokens import Token
from tidewire.transports.rabbitmq.wire import read_message

__all__ = ["Member"]

_logger = logging.getLogger("tidewire.rabbitmq")
_AGAIN, _AGAIN_MOST = 0.1, 2.0
_REFRESH = 300.0
"""Seconds after which a token is written anew: the broker closes a channel that has one unacked for half an hour."""
_PREFETCH_MAX = 65_535


class Member:
    """A place in a group. *hear* is called when there is something for whoever receives."""

    def __init__(
        self,
        settings: RabbitSettings,
        subscription: Subscription,
        lanes: Callable[[str], int],
        *,
        clock: Clock,
        ids: Ids,
        hear: Callable[[], None],
    ) -> None:
        self.subscription = subscription
        self.lanes: dict[str, Lane] = {}
        self.events: list[LaneEvent] = []
        self.line: Line | None = None
        self.trouble: TransportUnavailable | None = None
        self.failure: TransportError | None = None
        self.leaving = False
        self.certain = True
        self.news = asyncio.Event()
        self._settings = settings
        self._lanes_of = lanes
        self._clock = clock
        self._ids = ids
        self._hear = hear
        self._loop = asyncio.get_running_loop()
        self._circle = Circle("", ())
        self._control: Outlet | None = None
        self._words: Pipe | None = None
        self._unheard: list[str] = []
        self._say: list[tuple[str, str, Word]] = []
        self._ask_at = self._refresh_at = 0.0
        self._cancelled: list[str] = []
        self._numbers = 0
        lease = subscription.lease.total_seconds()
        self._heartbeat = min(60, max(1, int(lease / 3)))
        self._rest = min(5.0, max(0.1, lease / 3))
        self.prefetch = min(subscription.prefetch, _PREFETCH_MAX)

    # --- the connection -------------------------------------------------------------------------------------------

    async def connect(self) -> None:
        """Open a connection, show that we are there, and say hello."""
        subscription = self.subscription
        line = await open_line(self._settings, f"tidewire {subscription.member}", heartbeat=self._heartbeat)
        me = member_queue(f"{self._clock.now_us():017d}.{self._ids.event_id()[-12:]}")
        there = False
        try:
            control = await open_outlet(line)
            words = await self._appear(line, me)
            there = True
        finally:
            if not there:
                await line.close()
        self._circle = Circle(me, list(subscription.topics))
        self.line, self._control, self._words = line, control, words
        line.on_end(partial(self._ended, line))
        for pipe in (control.pipe, words):
            on_end(pipe, line.cut)
            pipe.on_consumer_cancel_callbacks.add(self._was_cancelled)
        self._say = [(MEMBERS, subscription.group, Word(known=self._circle.known))]
        self._refresh_at = self._loop.time() + _REFRESH
        self.certain = True

    async def _appear(self, line: Line, me: str) -> Pipe:
        """Make the queue by which we are there, and the channel for what we say and hear."""
        pipe = await line.pipe()
        await line.ask(pipe.queue_declare(me, exclusive=True, auto_delete=True))
        await line.ask(pipe.queue_bind(me, MEMBERS, self.subscription.group))
        await line.ask(pipe.give(me, self._listen, tag="words", no_ack=True))
        self._unheard = []
        pipe.on_return = self._came_back
        return pipe

    def _ended(self, line: Line) -> None:
        """The connection is gone: everything on it is lost."""
        if self.line is not line:
            return
        self.line = self._control = self._words = None
        lanes, self.lanes = list(self.lanes.values()), {}
        for lane in lanes:
            self._lost(lane)
        self.certain = True
        self.news.set()
        self._hear()

    def _lost(self, lane: Lane) -> None:
        if lane.epoch and not lane.closing:
            self.events.append(LaneEvent("lost", lane.name, lane.epoch))
        lane.closing = True
        self._hear()

    async def tend(self) -> None:
        """Until cancelled: keep the connection, and the lanes that are ours and no others."""
        again = _AGAIN
        while True:
            self.news.clear()
            connected = self.line is not None
            try:
                if not connected:
                    await self.connect()
                    connected = True
                await self._look_after()
                again = _AGAIN
            except TransportUnavailable as error:
                self._break_off(error, connected=connected)
                await asyncio.sleep(again)
                again = min(2 * again, _AGAIN_MOST)
                continue
            except TransportRefused as error:
                self.failure = error
                self._hear()
                return
            await happens(self.news, self._pause())

    def _break_off(self, error: TransportUnavailable, *, connected: bool) -> None:
        if not connected:
            self.trouble = error  # there was none, and there is no new one: the caller hears of it
        elif self.line is not None:
            _logger.warning(
                "tidewire.rabbitmq.connection_lost",
                extra={"broker": self._settings.what, "group": self.subscription.group, "error": error.message},
            )
            line = self.line
            line.cut()
            self._ended(line)
        self._hear()

    def _pause(self) -> float:
        now = self._loop.time()
        ends = [lane.deadline - now for lane in self.lanes.values() if lane.deadline and not lane.closing]
        return max(0.001, min([self._rest, self._ask_at - now, *ends]))

    # --- the others -----------------------------------------------------------------------------------------------

    def _listen(self, message: DeliveredMessage) -> None:
        word = heard(message.body)
        if word is None:
            return
        circle = self._circle
        newcomers = [name for name in word.known if name not in circle.known]
        if circle.hear(word):
            self._say += [("", name, Word(known=circle.known)) for name in newcomers]
            self.news.set()
        if word.asks:
            now = self._clock.now_us()
            counts = [lane.count(now) for lane in self.lanes.values() if lane.epoch]
            self._say.append(("", word.asks, Word(member=self.subscription.member, counts=counts)))
            self.news.set()

    async def _talk(self) -> None:
        """Say what is to be said, and ask the next one in the ring whether it is there."""
        said, self._say = self._say, []
        now = self._loop.time()
        if now >= self._ask_at:
            self._ask_at = now + self._rest
            if (neighbour := self._circle.next()) is not None:
                said.append(("", neighbour, Word(known=self._circle.known)))
        await self._tell(said)
        gone, self._unheard = [name for name in self._unheard if name in self._circle.known], []
        if self._circle.lose(gone):
            self._say.append((MEMBERS, self.subscription.group, Word(gone=gone)))
            self.news.set()

    async def depart(self) -> None:
        """Be there no more for the others, who take over what is free."""
        await self._tell([(MEMBERS, self.subscription.group, Word(gone=[self._circle.me]))])

    async def _tell(self, said: Sequence[tuple[str, str, Word]]) -> None:
        """Say what is to be said; on return it is known whose queue is gone.

        It is not waited for a confirm: that is late while the node of one that is to hear it stands still.
        """
        line, words = self._here(), self._words
        if not said or words is None:
            return
        parcels = [bare(exchange, key, body=word.encoded(), name=self._name()) for exchange, key, word in said]
        line.write(publish_frames(words.number, parcels, line.body_max))
        await line.ask(words.basic_qos(prefetch_count=0))

    def _came_back(self, message: DeliveredMessage) -> None:
        delivered = message.delivery
        if isinstance(delivered, spec.Basic.Return) and not delivered.exchange:
            self._unheard.append(delivered.routing_key or "")

    async def _post(self, parcels: Sequence[Parcel]) -> list[Confirm]:
        control = self._control
        if control is None:
            raise TransportUnavailable(f"{self._settings.what}: the connection is gone")
        return await control.post(parcels, self._settings.timeout) if parcels else []

    def _name(self) -> str:
        """Return a name for what is said: what comes back unsaid is known by it."""
        self._numbers += 1
        return f"said-{self._numbers}"

    # --- lanes ----------------------------------------------------------------------------------------------------

    async def _look_after(self) -> None:
        await self._talk()
        if not self.certain:
            assert self._control is not None, "there is a connection"
            await self._here().ask(self._control.pipe.basic_qos(prefetch_count=0))
            self.certain = True
            self._hear()
        await self._see_why_cancelled()
        wanted = {} if self.leaving else self._wanted()
        lanes = list(self.lanes.values())
        self._revoke([lane for lane in lanes if lane.epoch and lane.name not in wanted])
        now = self._loop.time()
        idle = [lane for lane in lanes if not lane.out and lane.epoch and (self.leaving or 0 < lane.deadline <= now)]
        ends = list(dict.fromkeys([*(lane for lane in lanes if lane.drained), *idle]))
        await self.hand_over(ends)
        late = [lane for lane in lanes if lane.deadline and lane.deadline <= now and lane not in ends]
        broken = [lane for lane in lanes if lane.pipe is not None and lane.pipe.is_closed and lane not in ends]
        unwanted = [lane for lane in lanes if not lane.epoch and lane.name not in wanted]
        await self._drop(dict.fromkeys([*late, *broken, *unwanted]))
        await self._claim([place for name, place in wanted.items() if name not in self.lanes])
        ready = [lane for lane in self.lanes.values() if not lane.epoch and lane.tokens and lane.name in wanted]
        await self._take_over(ready)
        if now >= self._refresh_at:
            self._refresh_at = now + _REFRESH
            await self.write([lane for lane in self.lanes.values() if lane.epoch and not lane.closing])

    def _here(self) -> Line:
        if self.line is None:
            raise TransportUnavailable(f"{self._settings.what}: the connection is gone")
        return self.line

    def _wanted(self) -> dict[str, tuple[str, int]]:
        """Return the lanes that are to be ours: they are dealt to those who read their topic."""
        me = self._circle.me
        return {
            lane_name(topic, number): (topic, number)
            for topic in self.subscription.topics
            for number, owner in dealt(self._lanes_of(topic), self._circle.readers(topic)).items()
            if owner == me
        }

    def _revoke(self, lanes: Iterable[Lane]) -> None:
        subscription = self.subscription
        patience = min(subscription.grace, subscription.lease).total_seconds()
        for lane in lanes:
            if not (self.leaving or lane.deadline or lane.closing):
                lane.drained = not lane.out  # nothing is in the caller's hands: nobody need wait until it hears
                lane.deadline = self._loop.time() + patience
                deadline = self._clock.ticks() + round(patience * 1e9)
                self.events.append(LaneEvent("revoking", lane.name, lane.epoch, deadline))
                self._hear()

    async def _claim(self, places: Sequence[tuple[str, int]]) -> None:
        """Line up for the tokens of lanes."""
        line, control = self._here(), self._control
        assert control is not None, "there is a connection"
        lanes = [Lane(topic, number) for topic, number in places]
        self.lanes.update({lane.name: lane for lane in lanes})
        group, pipe = self.subscription.group, control.pipe

        async def claim(lane: Lane) -> None:
            queue = token_queue(lane.topic, group, lane.number)
            given = pipe.give(queue, partial(self._token_came, lane), tag=f"token {lane.name}")
            await line.ask(given, queue=queue)

        await asyncio.gather(*(claim(lane) for lane in lanes))

    def _token_came(self, lane: Lane, message: DeliveredMessage) -> None:
        lane.tokens[message.delivery_tag or 0] = Token.decoded(message.body)
        self.news.set()

    async def _take_over(self, lanes: Sequence[Lane]) -> None:
        """Replace tokens by greater ones, and have their lanes; they are told of together."""
        epochs = [lane.newest().epoch + 1 for lane in lanes]
        await asyncio.gather(*(self._prepare(lane, epoch) for lane, epoch in zip(lanes, epochs, strict=True)))
        for lane, epoch in zip(lanes, epochs, strict=True):
            lane.epoch = epoch
            self.events.append(LaneEvent("assigned", lane.name, epoch))
        if lanes:
            self._hear()
        await asyncio.gather(*(self._consume(lane) for lane in lanes))

    async def _prepare(self, lane: Lane, epoch: int) -> None:
        line = self._here()
        lane.notes = dict(lane.newest().notes)
        await self._renew(lane, epoch)
        lane.pipe = pipe = await line.pipe()
        await line.ask(pipe.basic_qos(prefetch_count=self.prefetch))
        pipe.on_consumer_cancel_callbacks.add(self._was_cancelled)
        on_end(pipe, self.news.set)

    async def _consume(self, lane: Lane) -> None:
        line, pipe = self._here(), lane.pipe
        assert pipe is not None, "it was opened"
        group, number = self.subscription.group, lane.number
        for inbox, queue in (
            (True, inbox_queue(lane.topic, group, number)),
            (False, lane_queue(lane.topic, group, number)),
        ):
            await line.ask(pipe.give(queue, partial(self._came, lane, inbox), tag=queue), queue=queue)

    def _came(self, lane: Lane, inbox: bool, message: DeliveredMessage) -> None:
        topic = Topic(lane.topic)
        to = InboxChannel(lane.topic, self.subscription.group) if inbox else topic
        properties, said = message.header.properties, message.routing_key or ""
        read = read_message(to, properties, message.body, topic=topic if inbox else None, routing_key=said)
        due = read.message.not_before
        far = due is not None and due - self._clock.now_us() >= TIER_LEAST_MS * 1000
        lane.arrived(message.delivery_tag or 0, read, inbox=inbox, far=far)
        self._hear()

    async def write(self, lanes: Sequence[Lane]) -> None:
        """Write the tokens of *lanes* anew, with the notes that there are."""
        await asyncio.gather(*(self._renew(lane, lane.epoch) for lane in lanes))

    async def _renew(self, lane: Lane, epoch: int) -> None:
        """Write a greater token and, when it is confirmed, ack those that we had."""
        line, control = self._here(), self._control
        assert control is not None, "there is a connection"
        lane.serial += 1
        before = [tag for tag, token in lane.tokens.items() if (token.epoch, token.serial) < (epoch, lane.serial)]
        queue = token_queue(lane.topic, self.subscription.group, lane.number)
        body = Token(epoch, lane.serial, lane.notes).encoded()
        if await self._post([bare("", queue, body=body, name=self._name())]) != ["ack"]:
            raise TransportUnavailable(f"{self._settings.what}: {queue} did not take a token")
        line.write(ack_frames(control.pipe.number, 0, before))
        for tag in before:
            lane.tokens.pop(tag, None)

    async def hand_over(self, lanes: Sequence[Lane]) -> None:
        """Give lanes up; that what is out comes back is nobody's failure."""
        for lane in lanes:
            lane.closing = True
        await asyncio.gather(*(self._give_up(lane, explained=True) for lane in lanes))

    async def _drop(self, lanes: Iterable[Lane]) -> None:
        """Give lanes up as they are; those that were ours are lost."""
        lost = list(lanes)
        for lane in lost:
            self._lost(lane)
        await asyncio.gather(*(self._give_up(lane, explained=False) for lane in lost))

    async def _give_up(self, lane: Lane, *, explained: bool) -> None:
        line, control = self._here(), self._control
        assert control is not None, "there is a connection"
        if lane.pipe is not None:
            await line.close_pipe(lane.pipe)
        await line.ask(control.pipe.basic_cancel(f"token {lane.name}"))
        if explained and lane.explain():
            await self._renew(lane, lane.epoch)
        for tag in lane.tokens:
            await line.ask(control.pipe.basic_nack(tag, requeue=True, wait=False))
        control.pipe.takers.pop(f"token {lane.name}", None)
        if self.lanes.get(lane.name) is lane:
            del self.lanes[lane.name]

    # --- queues that are gone -------------------------------------------------------------------------------------

    def _was_cancelled(self, frame: object) -> None:
        tag = getattr(frame, "consumer_tag", "") or ""
        self._cancelled.append(tag)
        self.news.set()

    async def _see_why_cancelled(self) -> None:
        """A consumer that the broker has cancelled: its queue was deleted, or has moved.

        Raises:
            TransportRefused: it is not there any more.
        """
        cancelled, self._cancelled = self._cancelled, []
        if not cancelled:
            return
        group, line = self.subscription.group, self._here()
        async with line.a_pipe() as pipe:
            for lane in list(self.lanes.values()):
                for name in (token_queue, lane_queue, inbox_queue):
                    await line.ask(pipe.queue_declare(name(lane.topic, group, lane.number), passive=True))
        line.cut()  # they are all there: line up anew

    # --- leaving --------------------------------------------------------------------------------------------------

    async def end(self, seconds: float) -> None:
        """Give everything back uncounted, in so many *seconds* at most, and end the connection."""
        self.leaving = True
        line = self.line
        if line is None:
            return
        try:
            async with asyncio.timeout(seconds):
                # Also those that were being given up when the task that did so was cancelled: once more is harmless.
                await self.hand_over([lane for lane in self.lanes.values() if lane.epoch])
        except (TimeoutError, TransportError):
            line.cut()  # what it has comes back by itself
        self.line = None
        await line.close()
