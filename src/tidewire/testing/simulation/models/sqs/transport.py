"""The adapter to an SQS-like broker: a transport over one link, which can look only at what it takes."""

from __future__ import annotations

import asyncio
import base64
from collections.abc import AsyncGenerator, Callable, Sequence
from contextlib import asynccontextmanager
from datetime import datetime, timedelta
from typing import TypeVar

import msgspec

from tidewire.errors import ConfigurationError, TransportRefused, TransportUnavailable
from tidewire.model import (
    Act,
    Address,
    Browsed,
    Capabilities,
    Change,
    DeadChannel,
    GroupInfo,
    GroupSpec,
    Message,
    Receipt,
    Stats,
    Subscription,
    TopicInfo,
    TopicSpec,
)
from tidewire.testing.simulation.models.common import Lifetime, joined
from tidewire.testing.simulation.models.links import Client, Link
from tidewire.testing.simulation.models.queues import browse_letters, demand_prefetch, remove_letters
from tidewire.testing.simulation.models.sqs import topology
from tidewire.testing.simulation.models.sqs.receiver import SqsReceiver
from tidewire.testing.simulation.models.sqs.sending import Copy, Sender, tens
from tidewire.testing.simulation.models.sqs.server import BATCH_MAX, Entry, Received, SqsServer

__all__ = ["Sqs", "SqsStandard"]

T = TypeVar("T")
LOOK_SECONDS = 5.0
LOOKS_MAX = 200
AUDIT = "tw-audit.fifo"


class Sqs(SqsServer):
    """The server with FIFO queues behind FIFO topics, and its adapter."""

    fifo = True

    def client(self, link: Link) -> Client:
        """Return the adapter for one client."""
        return SqsTransport(self, link, fifo=self.fifo)

    def refused(self, entry: Entry) -> bool:
        """Ask the test's switch."""
        if self.refuse is None or entry.group.startswith((topology.EXACTLY_ONE, AUDIT)):
            return False
        return self.refuse(topology.unpacked(entry.body)[0]) is not None


class SqsStandard(Sqs):
    """The same with standard queues: nothing is ordered, nothing is recognised."""

    fifo = False


class SqsTransport:
    """A `Transport`, `Inspector` and `Ledger` over one link."""

    def __init__(self, server: SqsServer, link: Link, *, fifo: bool) -> None:
        self.server = server
        self.link = link
        self.fifo = fifo
        self.sender = Sender(server, link, fifo=fifo)
        self._lifetime = Lifetime()

    @property
    def capabilities(self) -> Capabilities:
        """Order by message groups where queues are FIFO; no lanes that one member has, so no fencing."""
        return Capabilities(
            order=self.fifo,
            fencing=False,
            atomic=False,
            dedup=timedelta(minutes=5) if self.fifo else None,
            native_attempts=True,
            replay=False,
            delay_max=self.server.delay_max,
            lease=True,
            batch_max=BATCH_MAX,
            durability="replicated",
            message_bytes_max=self.server.message_bytes_max,
            settle_window=timedelta(hours=12),
            lanes=False,
            size_cap=False,
        )

    async def provision(
        self, topics: Sequence[TopicSpec], groups: Sequence[GroupSpec], *, dry_run: bool = False
    ) -> Sequence[Change]:
        """Create what is missing."""
        self.demand_open()
        return await self.link.call(topology.provision, self.server, topics, groups, dry_run=dry_run, fifo=self.fifo)

    async def publish(self, messages: Sequence[Message]) -> Sequence[Receipt]:
        """Publish."""
        self.demand_open()
        return await self.sender.send([Copy(message, self.sender.name()) for message in messages])

    @asynccontextmanager
    async def subscribe(self, subscription: Subscription) -> AsyncGenerator[SqsReceiver]:
        """Join the group, which here means to begin to receive."""
        self.demand_open()
        demand_prefetch(subscription)
        if subscription.ordering == "key" and not self.fifo:
            raise ConfigurationError(
                f"{subscription.group}: standard queues keep no order", hint="use FIFO queues, or ordering none"
            )
        async with joined(SqsReceiver(self, subscription)) as receiver:
            yield receiver

    async def close(self) -> None:
        """Refuse every call from now on."""
        self._lifetime.end()

    # --- looking ----------------------------------------------------------------------------------------------

    async def topics(self) -> Sequence[TopicInfo]:
        """Return every topic; the broker does not keep what was published to it."""
        return await self._asked(lambda: topology.topic_infos(self.server))

    async def groups(self, topic: str | None = None) -> Sequence[GroupInfo]:
        """Return every group on every topic, or on *topic*; nobody owns a lane."""
        return await self._asked(lambda: self._groups(topic))

    def _groups(self, topic: str | None) -> list[GroupInfo]:
        server = self.server
        names = [name for name in sorted(server.topics) if topic in (None, name)]
        return [
            GroupInfo(
                topic=name, group=group, stats=topology.stats_of(server, name, group, fifo=self.fifo), owners=None
            )
            for name in names
            for group in topology.groups_on(server, name)
        ]

    async def stats(self, topic: str, group: str) -> Stats:
        """Return the counts of (topic, group)."""
        return await self._asked(lambda: topology.stats_of(self.server, topic, group, fifo=self.fifo))

    async def browse(self, address: Address, *, after: int | str | None = None, limit: int = 100) -> Sequence[Browsed]:
        """Return dead letters: all are taken for a moment and shown again. Nothing else can be looked at.

        Raises:
            TransportRefused: it is no dead channel, or there is none.
        """
        self.demand_open()
        return await browse_letters(self._letters, address, after=after, limit=limit)

    async def remove(self, channel: Address, positions: Sequence[int | str]) -> int:
        """Remove dead letters and return how many there were."""
        self.demand_open()
        return await remove_letters(self._letters, channel, positions)

    async def seek(self, topic: str, group: str, *, to: int | str | datetime) -> None:
        """There is no way back.

        Raises:
            TransportRefused: always.
        """
        self.demand_open()
        raise TransportRefused("this broker keeps nothing that is settled")

    async def _letters(self, channel: DeadChannel, remove: Sequence[str]) -> list[Browsed]:
        taken = await self._taken(topology.dead(channel.topic, channel.group), remove)
        return [_browsed(one, channel) for one in taken]

    async def _taken(self, name: str, remove: Sequence[str]) -> list[Received]:
        """Take all of a queue, delete those at the places to *remove*, show the rest again, and return them all."""
        if not await self._asked(lambda: name in self.server.queues):
            raise TransportRefused(f"there is no {name}", hint="provision the group first")
        lock = name.removesuffix(".fifo") + "-look.fifo"
        await self._asked(lambda: topology.ensure_lock(self.server, lock))
        for _ in range(LOOKS_MAX):
            if locked := await self.link.call(self.server.receive, lock, 1, LOOK_SECONDS):
                found, whole = await self._taken_now(name, remove)
                await self.link.call(self.server.change, lock, [locked[0].receipt], 0.0)
                if whole:
                    return sorted(found, key=_place)
            await asyncio.sleep(0.1)
        raise TransportUnavailable(f"somebody else has been looking at {name} for too long")

    async def _taken_now(self, name: str, remove: Sequence[str]) -> tuple[list[Received], bool]:
        """Take all that is there, and say whether it is all: somebody may have died while looking."""
        found: list[Received] = []
        there = sum((await self.link.call(self.server.counts, name))[:3])
        while batch := await self.link.call(self.server.receive, name, BATCH_MAX, LOOK_SECONDS):
            found += batch
        whole = len(found) >= there
        gone = [one.receipt for one in found if whole and _place(one) in remove]
        kept = [one.receipt for one in found if one.receipt not in gone]
        for receipts in tens(gone):
            await self.link.call(self.server.delete, name, receipts)
        for receipts in tens(kept):
            await self.link.call(self.server.change, name, receipts, 0.0)
        return found, whole

    async def note(self, act: Act) -> None:
        """Put an act into the queue of the audit."""

        def put() -> None:
            self.server.create_queue(AUDIT, {})
            body = base64.b64encode(msgspec.json.encode(act)).decode()
            self.server.send(AUDIT, [Entry(body=body, group=f"{AUDIT}-{name}", dedup=name)])

        name = self.sender.name()
        await self._asked(put)

    async def acts(self, *, after: int = 0, limit: int = 100) -> Sequence[tuple[int, Act]]:
        """Take the audit for a moment."""
        if not await self._asked(lambda: AUDIT in self.server.queues):
            return []
        acts = [msgspec.json.decode(base64.b64decode(one.body), type=Act) for one in await self._taken(AUDIT, [])]
        return list(enumerate(acts[after : after + limit], after + 1))

    async def _asked(self, ask: Callable[[], T]) -> T:
        self.demand_open()
        return await self.link.call(ask)

    # --- state ------------------------------------------------------------------------------------------------

    def demand_open(self) -> None:
        """Raise `TransportClosed` when it is closed, or belongs to the process that was forked."""
        self._lifetime.check()


def _place(one: Received) -> str:
    return f"{one.sent_at:020d}.{one.number:010d}"


def _browsed(one: Received, channel: DeadChannel) -> Browsed:
    message = msgspec.structs.replace(topology.unpacked(one.body)[0], to=channel)
    return Browsed(message, _place(one), one.sent_at)
