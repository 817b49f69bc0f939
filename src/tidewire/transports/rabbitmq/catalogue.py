"""Which topics and groups there are, and how they were made. The broker cannot be asked: a queue holds it."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable
from datetime import timedelta
from typing import Literal

import msgspec
from aiormq.exceptions import ChannelAccessRefused, ChannelNotFoundEntity

from tidewire.errors import TransportRefused
from tidewire.model import Address, TopicSpec
from tidewire.rules.letters import topic_of
from tidewire.transports.rabbitmq.desk import Desk
from tidewire.transports.rabbitmq.journal import Journal
from tidewire.transports.rabbitmq.line import Line
from tidewire.transports.rabbitmq.names import AUDIT, CATALOGUE

__all__ = ["Catalogue", "Entry"]

_US = timedelta(microseconds=1)


class Entry(msgspec.Struct, frozen=True, omit_defaults=True):
    """A record: a topic, a group on it (*group* is not empty), or a tier of the delays that lead to either (*tier* is
    the milliseconds that a message waits in it). One without a topic gives this broker its *name*. Durations are
    microseconds."""

    topic: str = ""
    group: str = ""
    lanes: int = 0
    retention: int | None = None
    size_bytes_max: int | None = None
    start: Literal["earliest", "latest"] = "earliest"
    tier: int = 0
    name: str = ""

    @property
    def spec(self) -> TopicSpec:
        """Return the topic as it was made."""
        retention = None if self.retention is None else self.retention * _US
        return TopicSpec(self.topic, self.lanes, retention, self.size_bytes_max)


_encode = msgspec.json.Encoder().encode
_decode = msgspec.json.Decoder(Entry).decode


class Catalogue:
    """What is known of topics and groups; read on when something is asked for that is not known yet."""

    def __init__(self, desk: Desk) -> None:
        self.desk = desk
        self.topics: dict[str, Entry] = {}
        self.groups: dict[tuple[str, str], Entry] = {}
        self.tiers: dict[tuple[str, str], set[int]] = {}  # of topics (with no group), and of inbox channels
        self.exists = False
        self.name = ""
        self._gone: dict[str, Entry] = {}
        self._journal = Journal(CATALOGUE, desk.settings.timeout, name=f"{desk.name}-catalogue")
        self._looking = asyncio.Lock()

    def knows(self, address: Address) -> bool:
        """Whether there is such an address, as far as was read."""
        topic = topic_of(address)
        return topic in self.topics and (topic == getattr(address, "name", None) or self._group(address))

    def _group(self, address: Address) -> bool:
        return (topic_of(address), getattr(address, "group", "")) in self.groups

    async def know(self, addresses: Iterable[Address]) -> None:
        """Look again, if one of *addresses* is not known."""
        wanted = list(addresses)
        if not all(self.knows(address) for address in wanted):
            await self.look()
            await self.verify({topic for address in wanted if (topic := topic_of(address)) in self._gone})

    async def verify(self, topics: Iterable[str]) -> None:
        """Know those of *topics* no more whose exchange is not there, and those again that are there again."""
        line = await self.desk.line()
        for topic in topics:
            entry = self.topics.get(topic) or self._gone.get(topic)
            if entry is None:
                continue
            try:
                async with line.a_pipe() as pipe:
                    await line.ask(pipe.exchange_declare(topic, passive=True))
            except TransportRefused as error:
                if not isinstance(error.__cause__, ChannelNotFoundEntity):
                    raise
                self._gone[topic] = entry
                self.topics.pop(topic, None)
            else:
                self.topics[topic] = entry

    async def look(self, line: Line | None = None) -> None:
        """Read what was added."""
        async with self._looking:  # one reads for all
            records = await self._journal.read_on(line or await self.desk.line())
            self.exists = records is not None
            for _, record in records or ():
                self._take(_decode(record))

    def _take(self, entry: Entry) -> None:
        if entry.name:
            self.name = self.name or entry.name
        elif entry.tier:
            self.tiers.setdefault((entry.topic, entry.group), set()).add(entry.tier)
        elif entry.group:
            self.groups[entry.topic, entry.group] = entry
        else:
            self.topics[entry.topic] = entry

    async def named(self, name: str) -> str:
        """Return the name that this broker was given, which is *name* if it had none; nothing while nothing is there.

        The nodes of a cluster would each say another one, unless somebody has named the cluster. Where we may not
        give it a name, it has none.
        """
        if not self.name:
            await self.look()
        if not self.name and self.exists:
            try:
                async with self.desk.locked() as line:
                    await self.look(line)
                    if not self.name:
                        await self.add(line, Entry(name=name))
            except TransportRefused as error:
                if not isinstance(error.__cause__, ChannelAccessRefused):
                    raise
        return self.name

    async def add(self, line: Line, entry: Entry) -> None:
        """Note what was made. Only under the desk's lock."""
        await self._journal.append(line, _encode(entry))
        self._take(entry)

    async def make(self, line: Line) -> None:
        """Create the queue, and that of the audit: an operator's first act may come just before the broker dies. Only
        under the desk's lock."""
        await Journal(AUDIT, self.desk.settings.timeout, name="audit").make(line)
        await self._journal.make(line)
        self.exists = True

    def groups_on(self, topic: str) -> list[str]:
        """Return the groups of a topic."""
        return sorted(group for name, group in self.groups if name == topic)
