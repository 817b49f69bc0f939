"""Transport ``kafka://``: Apache Kafka by plain confluent-kafka clients behind threads of our own."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncGenerator, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager

import confluent_kafka

from tidewire.chance import Ids, UUID7Ids
from tidewire.clock import SystemClock
from tidewire.errors import ConfigurationError, TransportClosed
from tidewire.kit.groups import first_error
from tidewire.kit.specs import check_none_unknown, check_specs
from tidewire.kit.threads import apart
from tidewire.model import Capabilities, Change, GroupSpec, Message, Receipt, Subscription, TopicSpec
from tidewire.protocols import Clock, Receiver
from tidewire.rules.names import check_name
from tidewire.transports.kafka.asking import Asker
from tidewire.transports.kafka.fetching import Fetcher
from tidewire.transports.kafka.inspector import KafkaInspector
from tidewire.transports.kafka.member import Member
from tidewire.transports.kafka.names import inbox_topic, log_of
from tidewire.transports.kafka.producing import Publisher
from tidewire.transports.kafka.receiver import KafkaReceiver
from tidewire.transports.kafka.retention import watch_for_ever
from tidewire.transports.kafka.settings import (
    KafkaSettings,
    client_is_modern,
    fetcher_conf,
    member_conf,
    settings_of,
)
from tidewire.transports.kafka.topology import Names, provision_all, retention_of

__all__ = ["KafkaTransport", "open_kafka_transport"]

_ROOM = 512
_FLUSH = 1.0


class KafkaTransport(KafkaInspector):
    """See `tidewire.protocols.Transport` and `Inspector`. Made by `open_kafka_transport`."""

    def __init__(self, settings: KafkaSettings, *, names: Names, publisher: Publisher, clock: Clock, ids: Ids) -> None:
        super().__init__(names, publisher, clock)
        self._settings = settings
        self._ids = ids
        self._process = os.getpid()
        self._closed = False
        self._broker_is_modern = False

    @property
    def capabilities(self) -> Capabilities:
        """Order, fencing, replay, any delay; ``stored`` means acknowledged by every replica in sync."""
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
            message_bytes_max=self._settings.message_bytes_max,
            settle_window=None,
            size_cap=False,
        )

    async def provision(
        self, topics: Sequence[TopicSpec], groups: Sequence[GroupSpec], *, dry_run: bool = False
    ) -> Sequence[Change]:
        """Create what is missing, read it back, and say what is there."""
        self._check_open()
        check_specs(topics, groups)
        return await provision_all(self._names, topics, groups, dry_run=dry_run)

    async def specs(self, names: Sequence[str]) -> Sequence[TopicSpec]:
        """Return those of the topics *names* that are there: two questions, however many others the brokers have."""
        self._check_open()
        await self._names.look()
        lanes = {name: count for name in names if (count := self._names.partitions(name)) is not None}
        configs = await self._names.asker.configs(list(lanes))
        return [TopicSpec(name, lanes[name], retention_of(config)) for name, config in configs.items()]

    async def identity(self) -> str:
        """Name the cluster by its own id; see `tidewire.kit.looks.Identified`."""
        self._check_open()
        cluster = await self._names.asker.cluster()
        return f"kafka:{cluster}" if cluster else ""

    async def publish(self, messages: Sequence[Message]) -> Sequence[Receipt]:
        """Hand all of *messages* over at once, and wait until each is acknowledged by every replica in sync."""
        self._check_open()
        if not messages:
            return ()
        names = self._names
        if any(names.partitions(log_of(message.to)) is None for message in messages):
            await names.look()
        receipts = await self._publisher.publish(messages)
        for message, receipt in zip(messages, receipts, strict=True):
            if receipt.reason == "unknown_topic":
                names.forget(log_of(message.to))
        return receipts

    def subscribe(self, subscription: Subscription) -> AbstractAsyncContextManager[Receiver]:
        """Join the group; a group that is not provisioned on a topic is created there."""
        return self._subscribed(subscription)

    @asynccontextmanager
    async def _subscribed(self, subscription: Subscription) -> AsyncGenerator[Receiver]:
        self._check_open()
        check_name(subscription.group, "group")
        names = self._names
        inboxes = [inbox_topic(topic, subscription.group) for topic in subscription.topics]
        await names.look()
        unknown = [topic for topic in subscription.topics if names.partitions(topic) is None]
        check_none_unknown(subscription.group, unknown)
        fresh = frozenset[str]()
        if any(names.partitions(inbox) is None for inbox in inboxes):
            spec = GroupSpec(subscription.group, subscription.topics, subscription.start)
            (change,) = await provision_all(names, (), [spec], dry_run=False)
            if change.kind == "conflict":
                raise ConfigurationError(f"{change.what}: {change.detail}")
            fresh = frozenset(subscription.topics) if subscription.start == "latest" else fresh
        receiver = self._receiver(subscription, fresh)
        self._receivers.append(receiver)
        try:
            async with asyncio.TaskGroup() as tasks:
                watching = tasks.create_task(
                    watch_for_ever(names, subscription.topics, self._clock, gone=receiver.broken)
                )
                try:
                    yield receiver
                    await receiver.drain()  # who was cut off by an error or a cancel settles nothing more
                finally:
                    watching.cancel()
        except BaseExceptionGroup as group:
            raise first_error(group) from None
        finally:
            self._receivers.remove(receiver)
            await receiver.leave()

    def _receiver(self, subscription: Subscription, fresh: frozenset[str]) -> KafkaReceiver:
        settings, clock = self._settings, self._clock
        receiver = KafkaReceiver(subscription, clock=clock, timeout=settings.timeout, publish=self.publish)
        modern = settings.protocol == "consumer" or (
            settings.protocol == "auto" and self._broker_is_modern and client_is_modern(_client_version())
        )
        name, group = subscription.member, subscription.group
        member = Member(
            member_conf(
                settings,
                name,
                group=group,
                ordering=subscription.ordering,
                lease=subscription.lease,
                modern=modern,
            ),
            subscription,
            clock=clock,
            timeout=settings.timeout,
            hear=receiver.heard,
            failed=receiver.broken,
        )
        member.fresh = fresh
        fetcher = Fetcher(
            fetcher_conf(settings, f"{name}-fetch", group=group),
            timeout=settings.timeout,
            room=max(_ROOM, 4 * subscription.prefetch),
            hear=receiver.fetched,
            failed=receiver.broken,
        )
        receiver.start(member, fetcher)
        return receiver

    def _check_open(self) -> None:
        if os.getpid() != self._process:
            raise TransportClosed("the transport belongs to the process that was forked")
        if self._closed:
            raise TransportClosed(f"{self._settings.what} is closed")

    async def begin(self) -> None:
        """Reach the broker, and learn what it has."""
        await self._names.asker.open()
        self._publisher.begin()
        await self._names.look()
        if self._settings.protocol == "auto":
            self._broker_is_modern = await self._names.asker.has_modern_groups()

    async def close(self) -> None:
        """End every client. `open_kafka_transport` calls it; twice is harmless."""
        self._closed = True
        await apart(lambda: self._publisher.end(_FLUSH))
        await self._names.asker.close()


def _client_version() -> tuple[int, ...]:
    return tuple(int(part) for part in confluent_kafka.libversion()[0].split("-")[0].split(".")[:3])


@asynccontextmanager
async def open_kafka_transport(
    url: str, *, clock: Clock | None = None, ids: Ids | None = None
) -> AsyncGenerator[KafkaTransport]:
    """Open the brokers that *url* names, ``kafka://host:9092,host2:9092``; the docs list its settings.

    Raises:
        ConfigurationError: the URL holds what cannot be.
        TransportUnavailable: no broker answers.
        TransportRefused: the brokers do not let us in.
    """
    settings = settings_of(url)
    clock, ids = clock or SystemClock(), ids or UUID7Ids()
    name = f"tidewire-{ids.event_id()}"
    names = Names(Asker(settings, name, clock))
    publisher = Publisher(settings, name, clock=clock, ids=ids, partitions=names.partitions)
    transport = KafkaTransport(settings, names=names, publisher=publisher, clock=clock, ids=ids)
    try:
        await transport.begin()
        yield transport
    finally:
        await transport.close()
