"""Looking into RabbitMQ by its own protocol, without the management plugin: what it cannot tell, members are asked."""

from __future__ import annotations

import asyncio
from abc import ABC, abstractmethod
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from datetime import datetime
from functools import partial

import msgspec
from aiormq.abc import DeliveredMessage
from aiormq.exceptions import ChannelNotFoundEntity

from tidewire.chance import Ids
from tidewire.errors import TransportRefused, TransportUnavailable
from tidewire.kit.specs import check_address
from tidewire.model import (
    Act,
    Address,
    Browsed,
    DeadChannel,
    GroupInfo,
    InboxChannel,
    Stats,
    Topic,
    TopicInfo,
)
from tidewire.protocols import Clock
from tidewire.transports.rabbitmq.catalogue import Catalogue
from tidewire.transports.rabbitmq.dead import letters, removed
from tidewire.transports.rabbitmq.frames import bare
from tidewire.transports.rabbitmq.gossip import Count, Word, heard
from tidewire.transports.rabbitmq.journal import Journal
from tidewire.transports.rabbitmq.lanes import Lane
from tidewire.transports.rabbitmq.line import Line
from tidewire.transports.rabbitmq.names import (
    AUDIT,
    MEMBERS,
    dead_queue,
    inbox_queue,
    lane_name,
    lane_queue,
    member_queue,
    tier_of,
)
from tidewire.transports.rabbitmq.outlet import open_outlet
from tidewire.transports.rabbitmq.receiver import RabbitReceiver

__all__ = ["RabbitInspector"]

_ANSWERS = 1.0
_UNKNOWN = Stats(ready=None, in_flight=None, delayed=None, dead=None, oldest_ready=None)
_LOOKS, _AGAIN = 50, 0.02
"""How often it is asked whether others still look at dead letters, and the seconds between."""
_encode = msgspec.json.Encoder().encode
_decode = msgspec.json.Decoder(Act).decode


class RabbitInspector(ABC):
    """What `RabbitTransport` answers about the broker: `tidewire.protocols.Inspector`, `Lagging` and `Ledger`."""

    def __init__(self, catalogue: Catalogue, clock: Clock, ids: Ids) -> None:
        self._catalogue = catalogue
        self._clock = clock
        self._ids = ids
        self._desk = catalogue.desk
        self._receivers: list[RabbitReceiver] = []
        self._audit = Journal(AUDIT, catalogue.desk.settings.timeout, name=f"{catalogue.desk.name}-audit")
        self._acts: list[tuple[int, Act]] = []
        self._reading = asyncio.Lock()

    @abstractmethod
    def _check_open(self) -> None:
        """Raise unless the transport is open."""

    @abstractmethod
    def _copy_name(self) -> str:
        """Return a name that nothing else has."""

    async def topics(self) -> Sequence[TopicInfo]:
        """Return every topic; the broker cannot tell what was published to it."""
        self._check_open()
        await self._catalogue.look()
        specs = [entry.spec for _, entry in sorted(self._catalogue.topics.items())]
        return [
            TopicInfo(
                name=spec.name, lanes=spec.lanes, messages=None, size_bytes=None, retention=spec.retention,
                size_bytes_max=spec.size_bytes_max,
            )
            for spec in specs
        ]  # fmt: skip

    async def groups(self, topic: str | None = None) -> Sequence[GroupInfo]:
        """Return every group, by topic and name, with the live member that has each lane."""
        self._check_open()
        await self._catalogue.look()
        wanted = sorted(pair for pair in self._catalogue.groups if topic in (None, pair[0]))
        found: list[GroupInfo] = []
        for pair in wanted:
            try:
                found.append(await self._group(*pair))
            except TransportRefused as error:
                if not isinstance(error.__cause__, ChannelNotFoundEntity):
                    raise
                if (left := await self._left(*pair)) is not None:
                    found.append(GroupInfo(topic=pair[0], group=pair[1], stats=left, owners=None))
        return found

    async def _left(self, topic: str, group: str) -> Stats | None:
        """Return what can be told of a group of which a queue was deleted, or None: all were, and it is gone."""
        line = await self._desk.line()

        async def is_there(queue: str) -> bool:
            try:
                async with line.a_pipe() as pipe:
                    await line.ask(pipe.queue_declare(queue, passive=True))
            except TransportRefused:
                return False
            return True

        if await is_there(dead_queue(topic, group)):
            return _UNKNOWN
        lanes = range(self._catalogue.topics[topic].lanes)
        names = [of(topic, group, number) for number in lanes for of in (lane_queue, inbox_queue)]
        found = [queue for queue in names if await is_there(queue)]
        return msgspec.structs.replace(_UNKNOWN, dead=0) if found else None

    async def stats(self, topic: str, group: str) -> Stats:
        """Return the counts of (topic, group). What a member does not answer for, nobody can tell."""
        self._check_open()
        await self._demand(InboxChannel(topic, group))
        return (await self._group(topic, group)).stats

    async def _group(self, topic: str, group: str) -> GroupInfo:
        line = await self._desk.line()
        lanes = [lane_name(topic, number) for number in range(self._catalogue.topics[topic].lanes)]
        ready: dict[str, int] = {}
        owned: set[str] = set()
        async with line.a_pipe() as pipe:

            async def of(queue: str) -> tuple[int, int]:
                said = await line.ask(pipe.queue_declare(queue, passive=True))
                return said.message_count or 0, said.consumer_count or 0

            for number, lane in enumerate(lanes):
                here, consumers = await of(lane_queue(topic, group, number))
                ready[lane] = here + (await of(inbox_queue(topic, group, number)))[0]
                owned |= {lane} if consumers else set()
            dead = await _unseen(partial(of, dead_queue(topic, group)))
            delayed = 0
            for to in (Topic(topic), InboxChannel(topic, group)):
                for tier in self._catalogue.tiers.get((topic, group if isinstance(to, InboxChannel) else ""), ()):
                    delayed += (await of(tier_of(to, tier)))[0]
        told = await self._told(line, group, owned)
        counts = {lane: told[lane][1] for lane in owned if lane in told}
        silent = owned - counts.keys()
        stats = Stats(
            ready=sum(ready.values()) + sum(count.kept for count in counts.values()),
            in_flight=None if silent else sum(count.out for count in counts.values()),
            delayed=delayed + sum(count.later for count in counts.values()),
            dead=dead,
            oldest_ready=_oldest(ready, counts),
        )
        owners = None if silent else {lane: told[lane][0] for lane in sorted(owned)}
        return GroupInfo(topic=topic, group=group, stats=stats, owners=owners)

    async def lag(self, group: str, lanes: Sequence[str]) -> int:
        """See `tidewire.protocols.Lagging`: what is here, and what the queues hold of lanes that have room for more."""
        self._check_open()
        now, line = self._clock.now_us(), await self._desk.line()
        names = frozenset(lanes)
        waiting = 0
        for receiver in [one for one in self._receivers if one.subscription.group == group]:
            flowing = receiver.flowing(names)
            roomy = [lane for lane in flowing if len(lane.unacked) < receiver.member.prefetch]
            waiting += await _ready(line, group, roomy) + sum(lane.count(now).kept for lane in flowing)
        return waiting

    async def _told(self, line: Line, group: str, lanes: set[str]) -> Mapping[str, tuple[str, Count]]:
        """Return what members say of *lanes*: those of this transport at once, others by asking all of the group."""
        now = self._clock.now_us()
        told: dict[str, tuple[str, Count]] = {}
        for receiver in self._receivers:
            if receiver.subscription.group == group:
                _note(told, receiver.subscription.member, receiver.counts(now))
        if lanes <= told.keys():
            return told
        complete: asyncio.Future[None] = asyncio.get_running_loop().create_future()

        def take(message: DeliveredMessage) -> None:
            word = heard(message.body)
            if word is not None and word.member:
                _note(told, word.member, word.counts)
            if lanes <= told.keys() and not complete.done():
                complete.set_result(None)

        outlet = await open_outlet(line)
        pipe = outlet.pipe
        me = member_queue(f"ask.{self._ids.event_id()}")
        try:
            await line.ask(pipe.queue_declare(me, exclusive=True, auto_delete=True))
            await line.ask(pipe.give(me, take, tag="answers", no_ack=True))
            word = Word(asks=me).encoded()
            await outlet.post([bare(MEMBERS, group, body=word, name="ask")], _ANSWERS)
            async with asyncio.timeout(_ANSWERS):
                await complete
        except TimeoutError:
            pass  # what is missing is told as unknown
        finally:
            await line.close_pipe(pipe)
        return told

    async def browse(self, address: Address, *, after: int | str | None = None, limit: int = 100) -> Sequence[Browsed]:
        """Return dead letters: all are taken for a moment and given back. Nothing else can be looked at.

        Raises:
            TransportRefused: it is no dead channel, or there is none.
        """
        self._check_open()
        check_address(address)
        if not isinstance(address, DeadChannel):
            raise TransportRefused(
                "RabbitMQ shows a message only by handing it out: only dead letters can be looked at",
                hint="`tidewire dlq list` lists those, `tidewire groups` counts what waits",
            )
        await self._demand(address)
        found = await letters(self._desk, address, self._copy_name())
        if after is None:
            return found[:limit]
        place = _position(after)
        behind = [number for number, one in enumerate(found) if one.position == place]
        if behind:
            return found[behind[0] + 1 :][:limit]
        return [one for one in found if str(one.position) > place][:limit]

    async def remove(self, channel: Address, positions: Sequence[int | str]) -> int:
        """Remove dead letters and return how many there were."""
        self._check_open()
        if not isinstance(channel, DeadChannel):
            raise TransportRefused("only dead letters can be removed")
        await self._demand(channel)
        wanted = {_position(position) for position in positions}
        return await removed(self._desk, channel, self._copy_name, wanted=wanted)

    async def seek(self, topic: str, group: str, *, to: int | str | datetime) -> None:
        """There is no way back.

        Raises:
            TransportRefused: always.
        """
        self._check_open()
        raise TransportRefused(
            "RabbitMQ keeps nothing that is settled: there is no way back",
            hint="dead letters can be given back: `tidewire dlq redrive`",
        )

    async def note(self, act: Act) -> None:
        """Store *act* in a queue whose messages stay."""
        self._check_open()
        async with self._desk.locked() as line:
            if await self._read_acts(line) is None:
                await self._audit.make(line)
            await self._audit.append(line, _encode(act))

    async def acts(self, *, after: int = 0, limit: int = 100) -> Sequence[tuple[int, Act]]:
        """Return acts with their numbers, oldest first."""
        self._check_open()
        await self._read_acts(await self._desk.line())
        return [(number, act) for number, act in self._acts if number > after][:limit]

    async def _read_acts(self, line: Line) -> list[tuple[int, bytes]] | None:
        async with self._reading:
            found = await self._audit.read_on(line)
            self._acts += [(number, _decode(body)) for number, body in found or ()]
            return found

    async def _demand(self, address: Address) -> None:
        await self._catalogue.know([address])
        if not self._catalogue.knows(address):
            raise TransportRefused(f"there is no {address}", hint="`tidewire topics` and `tidewire groups` list them")


async def _unseen(of: Callable[[], Awaitable[tuple[int, int]]]) -> int | None:
    """Return how many messages a queue holds of which *of* says the ready ones and the consumers, or None while
    somebody looks at it: what is shown is not ready, and comes back together with the end of the consumer."""
    for _ in range(_LOOKS):
        here, lookers = await of()
        if not lookers:
            return here
        await asyncio.sleep(_AGAIN)
    return None


async def _ready(line: Line, group: str, lanes: Sequence[Lane]) -> int:
    """Return what the queues of *lanes* hold for whoever is to be given it next.

    Raises:
        TransportUnavailable: one of them is not there, or there is no answer.
    """
    ready = 0
    try:
        async with line.a_pipe() as pipe:
            for lane in lanes:
                for name in (lane_queue, inbox_queue):
                    queue = name(lane.topic, group, lane.number)
                    ready += (await line.ask(pipe.queue_declare(queue, passive=True))).message_count or 0
    except TransportRefused as error:
        raise TransportUnavailable(error.message, hint=error.hint) from error
    return ready


def _note(told: dict[str, tuple[str, Count]], member: str, counts: Iterable[Count]) -> None:
    told.update({count.lane: (member, count) for count in counts})


def _oldest(ready: Mapping[str, int], counts: Mapping[str, Count]) -> int | None:
    """Return the oldest stamp, where the owner of each lane that holds something has the first of it here."""
    stamps: list[int] = []
    for lane, number in ready.items():
        count = counts.get(lane)
        if count is not None and count.kept and count.oldest is not None:
            stamps.append(count.oldest)
        elif number or (count is not None and count.kept):
            return None
    return min(stamps, default=None)


def _position(position: int | str) -> str:
    text = str(position)
    if len(text) < 18 or not text[:17].isdigit():
        raise TransportRefused(f"{text[:40]!r} is no position of this broker")
    return text
