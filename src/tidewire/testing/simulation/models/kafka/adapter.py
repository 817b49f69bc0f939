"""The adapter: a transport, with an inspector and a ledger, over the link to a Kafka-like broker."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Mapping, Sequence
from contextlib import asynccontextmanager
from datetime import datetime

from tidewire.errors import TransportUnavailable
from tidewire.model import (
    Act,
    Address,
    Browsed,
    Capabilities,
    Change,
    GroupInfo,
    GroupSpec,
    Message,
    Receipt,
    Stats,
    Subscription,
    Topic,
    TopicInfo,
    TopicSpec,
)
from tidewire.testing.simulation.models.channels import demand_group, name_of
from tidewire.testing.simulation.models.common import Lifetime, Series, joined, series_of, size_of, unfit
from tidewire.testing.simulation.models.kafka import inspection
from tidewire.testing.simulation.models.kafka.logs import Draft
from tidewire.testing.simulation.models.kafka.logs import Topic as Log
from tidewire.testing.simulation.models.kafka.producer import Producer
from tidewire.testing.simulation.models.kafka.provisioning import provision
from tidewire.testing.simulation.models.kafka.receiver import KafkaReceiver
from tidewire.testing.simulation.models.kafka.server import KafkaServer
from tidewire.testing.simulation.models.links import Client, Link

__all__ = ["Kafka", "KafkaClient"]


class Kafka(KafkaServer):
    """The server, with its adapter."""

    def client(self, link: Link) -> Client:
        """Return the adapter for one client."""
        return KafkaClient(self, link)


class KafkaClient:
    """A `Transport`, `Inspector` and `Ledger`; it finds nothing by its id, since a log has no index."""

    def __init__(self, server: KafkaServer, link: Link) -> None:
        self.server = server
        self.link = link
        self._producer = Producer(server, link)
        self._logs: Mapping[str, Log] = {}
        self._lifetime = Lifetime()

    @property
    def capabilities(self) -> Capabilities:
        """No ids are recognised, nothing is atomic, hand-outs are counted by the adapter alone."""
        return Capabilities(
            order=True,
            fencing=True,
            atomic=False,
            dedup=None,
            native_attempts=False,
            replay=True,
            delay_max=None,
            lease=True,
            batch_max=None,
            durability="replicated",
            message_bytes_max=self.server.message_bytes_max,
            settle_window=None,
        )

    async def close(self) -> None:
        """Refuse every call from now on."""
        self._lifetime.end()

    def check(self) -> None:
        """Raise `TransportClosed` where the transport may not be used."""
        self._lifetime.check()

    async def provision(
        self, topics: Sequence[TopicSpec], groups: Sequence[GroupSpec], *, dry_run: bool = False
    ) -> Sequence[Change]:
        """Create topics, and for each group its channels and the offsets it begins at."""
        self.check()
        return await provision(self.server, self.link, topics, groups=groups, dry_run=dry_run)

    async def publish(self, messages: Sequence[Message]) -> Sequence[Receipt]:
        """Send *messages* in batches, one for each partition."""
        self.check()
        return await self._publish(messages, 1)

    @asynccontextmanager
    async def subscribe(self, subscription: Subscription) -> AsyncGenerator[KafkaReceiver]:
        """Join the group; one that is not provisioned on a topic is created there.

        Raises (on entering):
            ConfigurationError: a topic is unknown.
        """
        self.check()
        await demand_group(self, subscription)
        receiver = KafkaReceiver(
            self.server, self.link, subscription=subscription, publish=self._publish, check=self.check
        )
        async with joined(receiver):
            yield receiver

    # --- publishing -------------------------------------------------------------------------------------------

    async def _publish(self, messages: Sequence[Message], attempt: int) -> Sequence[Receipt]:
        if not messages:
            return ()
        verdicts: list[Receipt | None] = []
        failed: set[Series] = set()
        sizes: dict[str, int] = {}
        for message in messages:
            verdict = await self._verdict(message, failed, sizes)
            if verdict is not None and (series := series_of(message)) is not None:
                failed.add(series)
            verdicts.append(verdict)
        batches: dict[tuple[str, int], list[int]] = {}
        for index, message in enumerate(messages):
            if verdicts[index] is None:
                name = name_of(message.to)
                place = self._producer.place(name, message.key, len(self._logs[name].partitions))
                batches.setdefault(place, []).append(index)
        unsent = 0
        for place, indexes in batches.items():
            drafts = [Draft(messages[index], self._producer.unique(), attempt) for index in indexes]
            for index, outcome in zip(indexes, await self._producer.send(place, drafts), strict=True):
                unsent += outcome == "unsent"
                verdicts[index] = outcome if isinstance(outcome, Receipt) else _receipt(messages[index], outcome)
        if unsent == len(messages):
            raise TransportUnavailable("the brokers cannot be reached")
        return [verdict for verdict in verdicts if verdict is not None]

    async def _verdict(self, message: Message, failed: set[Series], sizes: dict[str, int]) -> Receipt | None:
        """Return why *message* is not sent, if so."""
        if (receipt := unfit(message, failed, self.server.message_bytes_max)) is not None:
            return receipt
        name = name_of(message.to)
        if name not in self._logs:
            self._logs = await self.link.call(self.server.describe)
        if name not in self._logs:
            return Receipt(message.id, "rejected", "unknown_topic", f"there is no {name}")
        cap = self._logs[name].cap
        if cap is None or not isinstance(message.to, Topic):
            return None
        size, waiting = size_of(message), sizes.get(name, 0)  # what this call is about to send
        if waiting + size + await self.look.size(name) > cap:
            await self.look.trim(name, early=True)
        if waiting + size + await self.look.size(name) <= cap:
            sizes[name] = waiting + size
            return None
        held = ", ".join(await self.look.holders(name, all_of=waiting > 0)) or "nobody"
        return Receipt(message.id, "rejected", "full", f"{name} is at its {cap} bytes, held back by {held}")

    # --- inspecting -------------------------------------------------------------------------------------------

    @property
    def look(self) -> inspection.Look:
        """Return an inspector over this client's link."""
        self.check()
        return inspection.Look(self.server, self.link)

    async def topics(self) -> Sequence[TopicInfo]:
        """Return every topic, by name."""
        return await self.look.topics()

    async def groups(self, topic: str | None = None) -> Sequence[GroupInfo]:
        """Return every group on every topic, or on *topic*."""
        return await self.look.groups(topic)

    async def stats(self, topic: str, group: str) -> Stats:
        """Return the counts of (topic, group), from what is committed."""
        return await self.look.stats(topic, group)

    async def browse(self, address: Address, *, after: int | str | None = None, limit: int = 100) -> Sequence[Browsed]:
        """Return messages without consuming them, in the order of their stamps, which are their positions."""
        return await self.look.browse(address, after, limit=limit)

    async def seek(self, topic: str, group: str, *, to: int | str | datetime) -> None:
        """Move an inactive group; its inbox channel stays as it is.

        Raises:
            TransportRefused: a member is active, or what is asked for is no longer retained.
        """
        await self.look.seek(topic, group, to=to)

    async def remove(self, channel: Address, positions: Sequence[int | str]) -> int:
        """Write tombstones for dead letters and return how many there were."""
        self.check()
        drafts = await self.look.tombstones(channel, positions)
        if drafts:
            outcomes = await self._producer.send((name_of(channel), 0), drafts)
            if set(outcomes) != {"stored"}:
                raise TransportUnavailable("the tombstones may not be stored")
        return len(drafts)

    async def note(self, act: Act) -> None:
        """Keep an act, in a topic of its own."""
        await self.look.note(act)

    async def acts(self, *, after: int = 0, limit: int = 100) -> Sequence[tuple[int, Act]]:
        """Return acts with their numbers, from 1."""
        return await self.look.acts(after=after, limit=limit)


def _receipt(message: Message, outcome: str) -> Receipt:
    if outcome == "stored":
        return Receipt(message.id, "stored")
    return Receipt(message.id, "unknown", detail="there was no answer")
