"""Topics and groups on the broker: created where missing, read back, never changed, never deleted."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from datetime import timedelta
from typing import TypeVar

from aiormq.abc import ArgumentsType
from aiormq.exceptions import ChannelAccessRefused, ChannelNotFoundEntity, ChannelPreconditionFailed

from tidewire.errors import TransportError, TransportRefused
from tidewire.model import Change, GroupSpec, InboxChannel, Topic, TopicSpec
from tidewire.protocols import Clock
from tidewire.rules.letters import topic_of
from tidewire.transports.rabbitmq.catalogue import Catalogue, Entry
from tidewire.transports.rabbitmq.frames import bare
from tidewire.transports.rabbitmq.library import Pipe
from tidewire.transports.rabbitmq.line import Line
from tidewire.transports.rabbitmq.names import (
    MEMBERS,
    NOBODY,
    dead_queue,
    foreign_exchange,
    inbox_exchange,
    inbox_queue,
    lane_queue,
    tier_of,
    token_queue,
)
from tidewire.transports.rabbitmq.outlet import open_outlet
from tidewire.transports.rabbitmq.tokens import Token

__all__ = ["Topology"]

_US = timedelta(microseconds=1)
_LIMIT = 1_000_000
"""How often the broker may hand a message out: far above any count of ours, which decides; since 4.0 it would be 20."""
_FOR_EVER = 2_147_483_647
_CHANNELS = 4
T = TypeVar("T")


class Topology:
    """What is declared, and how."""

    def __init__(self, catalogue: Catalogue, clock: Clock) -> None:
        self._catalogue = catalogue
        self._clock = clock

    async def provision(
        self, topics: Sequence[TopicSpec], groups: Sequence[GroupSpec], *, dry_run: bool
    ) -> list[Change]:
        """Create what is missing and say, for each, what was done."""
        catalogue = self._catalogue
        if dry_run:
            await catalogue.look()
            coming = {spec.name for spec in topics}
            changes = [_compared(spec, catalogue) or Change("create", f"topic {spec.name}") for spec in topics]
            return changes + [
                self._unfit(spec, coming) or Change("create" if self._new(spec) else "unchanged", f"group {spec.name}")
                for spec in groups
            ]
        async with catalogue.desk.locked() as line:
            await catalogue.look(line)
            if not catalogue.exists:
                await self._begin(line)
            changes = [await self._topic(line, spec) for spec in topics]
            return changes + [await self._group(line, spec) for spec in groups]

    async def _begin(self, line: Line) -> None:
        """Make what all topics share. No node of a cluster is the only one that has it."""
        nothing: ArgumentsType = {**self._quorum(_FOR_EVER), "x-max-length": 0}
        async with line.a_pipe() as pipe:
            await line.ask(pipe.exchange_declare(MEMBERS, exchange_type="direct", durable=True))
            await line.ask(pipe.queue_declare(NOBODY, durable=True, arguments=nothing))
        await self._catalogue.make(line)

    # --- topics ---------------------------------------------------------------------------------------------------

    async def _topic(self, line: Line, spec: TopicSpec) -> Change:
        what = f"topic {spec.name}"
        if spec.name.startswith("amq."):
            return Change("conflict", what, "names that begin with amq. are the broker's own")
        if spec.lanes < 1:
            return Change("conflict", what, "a topic needs at least one lane")
        change = _compared(spec, self._catalogue)
        if change is not None:
            return change if change.kind == "conflict" else await self._verified_topic(line, spec, change)
        try:
            await self._make_topic(line, spec.name)
        except TransportRefused as error:
            return _conflict(what, error)
        async with line.a_pipe() as pipe:
            await line.ask(pipe.queue_bind(NOBODY, spec.name, "#"))
        retention = None if spec.retention is None else spec.retention // _US
        await self._catalogue.add(line, Entry(spec.name, "", spec.lanes, retention, spec.size_bytes_max))
        return Change("create", what)

    async def _verified_topic(self, line: Line, spec: TopicSpec, change: Change) -> Change:
        try:
            await self._make_topic(line, spec.name)
        except TransportRefused as error:
            if not isinstance(error.__cause__, ChannelAccessRefused):
                return _conflict(f"topic {spec.name}", error)
            async with line.a_pipe() as pipe:
                await line.ask(pipe.exchange_declare(spec.name, passive=True))
        return change

    async def _make_topic(self, line: Line, topic: str) -> None:
        """Declare a topic's exchange, and the one where messages go that name no lane."""
        async with line.a_pipe() as pipe:
            foreign = foreign_exchange(topic)
            await line.ask(pipe.exchange_declare(foreign, exchange_type="fanout", durable=True))
            arguments: ArgumentsType = {"alternate-exchange": foreign}
            await line.ask(pipe.exchange_declare(topic, exchange_type="topic", durable=True, arguments=arguments))

    # --- groups ---------------------------------------------------------------------------------------------------

    def _new(self, spec: GroupSpec) -> list[str]:
        return [name for name in spec.topics if (name, spec.name) not in self._catalogue.groups]

    def _unfit(self, spec: GroupSpec, coming: set[str]) -> Change | None:
        """Return why a group cannot be as *spec* says, if so."""
        what, catalogue = f"group {spec.name}", self._catalogue
        if missing := [name for name in spec.topics if name not in catalogue.topics and name not in coming]:
            return Change("conflict", what, f"there is no topic {', '.join(missing)}")
        for name in spec.topics:
            there = catalogue.groups.get((name, spec.name))
            if there is not None and there.start != spec.start:
                return Change("conflict", what, f"it began at {there.start} of {name}")
        return None

    async def _group(self, line: Line, spec: GroupSpec) -> Change:
        what = f"group {spec.name}"
        if (unfit := self._unfit(spec, set())) is not None:
            return unfit
        new = self._new(spec)
        new += [name for name in spec.topics if name not in new and not await self._is_whole(line, name, spec.name)]
        try:
            for name in spec.topics:
                await self._make_queues(line, name, spec.name, fresh=name in new)
        except TransportRefused as error:
            return _conflict(what, error)
        for name in new:
            await self._join(line, name, spec)
        return Change("create", what, f"reads {', '.join(new)}") if new else Change("unchanged", what)

    def _queues(self, topic: str, group: str) -> list[tuple[str, ArgumentsType]]:
        """Return the queues of a group on a topic, with their arguments."""
        entry = self._catalogue.topics[topic]
        dead = dead_queue(topic, group)
        inbox: ArgumentsType = {
            **self._quorum(_LIMIT),
            "x-single-active-consumer": True,
            "x-dead-letter-exchange": "",
            "x-dead-letter-routing-key": dead,
            "x-dead-letter-strategy": "at-least-once",
            "x-overflow": "reject-publish",
        }
        cap = entry.size_bytes_max
        lane: ArgumentsType = inbox if cap is None else {**inbox, "x-max-length-bytes": cap}
        single: ArgumentsType = {**self._quorum(_FOR_EVER), "x-single-active-consumer": True}
        found: list[tuple[str, ArgumentsType]] = [(dead, single)]
        for number in range(entry.lanes):
            found.append((lane_queue(topic, group, number), lane))
            found.append((inbox_queue(topic, group, number), inbox))
            found.append((token_queue(topic, group, number), single))
        return found

    def _quorum(self, limit: int) -> ArgumentsType:
        replicas = self._catalogue.desk.settings.replicas
        size: ArgumentsType = {} if replicas < 0 else {"x-quorum-initial-group-size": replicas}
        return {"x-queue-type": "quorum", "x-delivery-limit": limit, **size}

    async def _is_whole(self, line: Line, topic: str, group: str) -> bool:
        """Whether no queue of a group was deleted."""
        try:
            await _declare(line, self._queues(topic, group), passive=True)
        except TransportRefused as error:
            if not isinstance(error.__cause__, ChannelNotFoundEntity):
                raise
            return False
        return True

    async def _make_queues(self, line: Line, topic: str, group: str, *, fresh: bool) -> None:
        """Declare the queues of a group on a topic. Who may create nothing sees at least that they are there."""
        queues = self._queues(topic, group)
        try:
            await _declare(line, queues)
        except TransportRefused as error:
            if fresh or not isinstance(error.__cause__, ChannelAccessRefused):
                raise
            await _declare(line, queues, passive=True)

    async def _join(self, line: Line, topic: str, spec: GroupSpec) -> None:
        """Let everything that is published from now on reach a group that was not there, or not whole.

        The tokens begin with the time: a group that is made anew has greater epochs than the one before.
        """
        group, lanes = spec.name, self._catalogue.topics[topic].lanes
        outlet = await open_outlet(line)
        try:
            token = Token(self._clock.now_us()).encoded()
            parcels = [
                bare("", token_queue(topic, group, number), body=token, name=f"token-{number}")
                for number in range(lanes)
            ]
            confirms = await outlet.post(parcels, self._catalogue.desk.settings.timeout)
            if set(confirms) != {"ack"}:
                raise TransportRefused(f"{topic}: the tokens of {group} could not be stored: {set(confirms)}")
            pipe = outlet.pipe
            await line.ask(pipe.queue_bind(lane_queue(topic, group, 0), foreign_exchange(topic), ""))

            async def bind(pipe: Pipe, number: int) -> None:
                await line.ask(pipe.queue_bind(lane_queue(topic, group, number), topic, str(number)))

            await _side_by_side(line, range(lanes), bind)
            await line.ask(pipe.queue_unbind(NOBODY, topic, "#"))
        finally:
            await line.close_pipe(outlet.pipe)
        await self._catalogue.add(line, Entry(topic, group, start=spec.start))

    # --- delays ---------------------------------------------------------------------------------------------------

    async def tier(self, to: Topic | InboxChannel, milliseconds: int) -> str:
        """Return the exchange of the tier through which a message comes to *to* after so long; made when first used.

        In one tier all wait equally long, so that none waits behind a longer one.
        """
        name = tier_of(to, milliseconds)
        place = (topic_of(to), "" if isinstance(to, Topic) else to.group)
        catalogue = self._catalogue
        if milliseconds in catalogue.tiers.get(place, ()):
            return name
        async with catalogue.desk.locked() as line:
            await catalogue.look(line)
            if milliseconds not in catalogue.tiers.get(place, ()):
                await self._make_tier(line, to, milliseconds)
                await catalogue.add(line, Entry(*place, tier=milliseconds))
        return name

    async def _make_tier(self, line: Line, to: Topic | InboxChannel, milliseconds: int) -> None:
        name = tier_of(to, milliseconds)
        async with line.a_pipe() as pipe:
            target = to.name if isinstance(to, Topic) else inbox_exchange(to.topic, to.group)
            if isinstance(to, InboxChannel):
                await line.ask(pipe.exchange_declare(target, exchange_type="direct", durable=True))
                for number in range(self._catalogue.topics[to.topic].lanes):
                    await line.ask(pipe.queue_bind(inbox_queue(to.topic, to.group, number), target, str(number)))
            await line.ask(pipe.exchange_declare(name, exchange_type="fanout", durable=True))
            arguments: ArgumentsType = {
                **self._quorum(_FOR_EVER),
                "x-message-ttl": milliseconds,
                "x-dead-letter-exchange": target,
                "x-dead-letter-strategy": "at-least-once",
                "x-overflow": "reject-publish",
            }
            await line.ask(pipe.queue_declare(name, durable=True, arguments=arguments))
            await line.ask(pipe.queue_bind(name, name, ""))


async def _declare(line: Line, queues: Sequence[tuple[str, ArgumentsType]], *, passive: bool = False) -> None:
    """Declare durable queues with their arguments, or (*passive*) see that they are there."""

    async def declare(pipe: Pipe, queue: tuple[str, ArgumentsType]) -> None:
        name, arguments = queue
        told = {} if passive else arguments
        await line.ask(pipe.queue_declare(name, durable=not passive, passive=passive, arguments=told))

    await _side_by_side(line, queues, declare)


async def _side_by_side(line: Line, things: Sequence[T], act: Callable[[Pipe, T], Awaitable[None]]) -> None:
    """Do *act* with each of *things*, over a few channels at a time: a broker takes long for a queue, and has time.

    When one fails, those that have begun end first.
    """

    async def some(share: Sequence[T]) -> None:
        async with line.a_pipe() as pipe:
            for thing in share:
                await act(pipe, thing)

    shares = [things[start::_CHANNELS] for start in range(min(_CHANNELS, len(things)))]
    for ended in await asyncio.gather(*map(some, shares), return_exceptions=True):
        if ended is not None:
            raise ended


def _compared(spec: TopicSpec, catalogue: Catalogue) -> Change | None:
    """Return whether what is there already is as *spec* says; None if nothing is."""
    entry = catalogue.topics.get(spec.name)
    if entry is None:
        return None
    there = entry.spec
    differ = [
        f"{name} is {getattr(there, name)}, not {getattr(spec, name)}"
        for name in ("lanes", "retention", "size_bytes_max")
        if getattr(there, name) != getattr(spec, name)
    ]
    what = f"topic {spec.name}"
    return Change("conflict", what, "; ".join(differ)) if differ else Change("unchanged", what)


def _conflict(what: str, error: TransportError) -> Change:
    """Return what the broker says of what is there already; anything else rises."""
    if not isinstance(error.__cause__, ChannelPreconditionFailed):
        raise error
    return Change("conflict", what, str(error.__cause__))
