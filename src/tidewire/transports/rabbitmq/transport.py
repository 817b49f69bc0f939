"""Transport ``amqp://``: RabbitMQ by plain connections under a supervisor of our own."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncGenerator, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from datetime import timedelta

from tidewire.chance import Ids, UUID7Ids
from tidewire.clock import SystemClock
from tidewire.errors import ConfigurationError, TransportClosed
from tidewire.kit.groups import first_error
from tidewire.kit.specs import check_none_unknown, check_specs
from tidewire.model import Capabilities, Change, GroupSpec, Message, Receipt, Subscription, TopicSpec
from tidewire.protocols import Clock, Receiver
from tidewire.rules.names import check_name
from tidewire.transports.rabbitmq.catalogue import Catalogue
from tidewire.transports.rabbitmq.desk import Desk
from tidewire.transports.rabbitmq.inspector import RabbitInspector
from tidewire.transports.rabbitmq.member import Member
from tidewire.transports.rabbitmq.publishing import Copy, Publisher
from tidewire.transports.rabbitmq.receiver import RabbitReceiver
from tidewire.transports.rabbitmq.settings import RabbitSettings, settings_of
from tidewire.transports.rabbitmq.topology import Topology

__all__ = ["RabbitTransport", "open_rabbit_transport"]


class RabbitTransport(RabbitInspector):
    """See `tidewire.protocols.Transport`, `Inspector` and `Ledger`. Made by `open_rabbit_transport`."""

    def __init__(self, settings: RabbitSettings, *, catalogue: Catalogue, clock: Clock, ids: Ids) -> None:
        super().__init__(catalogue, clock, ids)
        self._settings = settings
        self._topology = Topology(catalogue, clock)
        self._publisher = Publisher(catalogue, self._topology, clock=clock, ids=ids)
        self._process = os.getpid()
        self._closed = False

    @property
    def capabilities(self) -> Capabilities:
        """Order and fencing by tokens; any delay; nothing is recognised, nothing replayed, no settle is atomic."""
        return Capabilities(
            order=True,
            fencing=True,
            atomic=False,
            dedup=None,
            native_attempts=True,
            replay=False,
            delay_max=None,
            lease=True,
            batch_max=None,
            durability="replicated",
            message_bytes_max=self._settings.message_bytes_max,
            settle_window=timedelta(minutes=30),
        )

    async def provision(
        self, topics: Sequence[TopicSpec], groups: Sequence[GroupSpec], *, dry_run: bool = False
    ) -> Sequence[Change]:
        """Create what is missing, read it back, and say what is there."""
        self._check_open()
        check_specs(topics, groups)
        return await self._topology.provision(topics, groups, dry_run=dry_run)

    async def identity(self) -> str:
        """Say the name that was given to what lies in the virtual host; see `tidewire.kit.looks.Identified`."""
        self._check_open()
        name = await self._catalogue.named(self._ids.event_id())
        return f"rabbitmq:{name}" if name else ""

    async def publish(self, messages: Sequence[Message]) -> Sequence[Receipt]:
        """Publish *messages*, mandatory, and wait until each is confirmed by a majority of its queue's replicas."""
        self._check_open()
        return await self._publisher.publish([Copy(message) for message in messages]) if messages else ()

    def subscribe(self, subscription: Subscription) -> AbstractAsyncContextManager[Receiver]:
        """Join the group; a group that is not provisioned on a topic is created there."""
        return self._subscribed(subscription)

    @asynccontextmanager
    async def _subscribed(self, subscription: Subscription) -> AsyncGenerator[Receiver]:
        self._check_open()
        check_name(subscription.group, "group")
        if subscription.prefetch < 1:
            raise ConfigurationError(f"{subscription.group}: prefetch is {subscription.prefetch}, at least 1 is needed")
        await self._demand_group(subscription)
        receiver = RabbitReceiver(subscription, clock=self._clock, publish=self._publisher.publish)
        member = Member(
            self._settings, subscription, self._lanes_of, clock=self._clock, ids=self._ids, hear=receiver.hear
        )
        receiver.start(member)
        self._receivers.append(receiver)
        try:
            await member.connect()
            async with asyncio.TaskGroup() as tasks:
                tending = tasks.create_task(member.tend())
                try:
                    yield receiver
                    await receiver.drain()  # who was cut off by an error or a cancel settles nothing more
                finally:
                    tending.cancel()
        except BaseExceptionGroup as group:
            raise first_error(group) from None
        finally:
            self._receivers.remove(receiver)
            await receiver.leave()

    async def _demand_group(self, subscription: Subscription) -> None:
        catalogue = self._catalogue
        await catalogue.look()
        unknown = [name for name in subscription.topics if name not in catalogue.topics]
        check_none_unknown(subscription.group, unknown)
        if any((name, subscription.group) not in catalogue.groups for name in subscription.topics):
            spec = GroupSpec(subscription.group, subscription.topics, subscription.start)
            (change,) = await self._topology.provision((), [spec], dry_run=False)
            if change.kind == "conflict":
                raise ConfigurationError(f"{change.what}: {change.detail}")

    def _lanes_of(self, topic: str) -> int:
        entry = self._catalogue.topics.get(topic)
        return 0 if entry is None else entry.lanes

    def _copy_name(self) -> str:
        return self._publisher.name()

    def _check_open(self) -> None:
        if os.getpid() != self._process:
            raise TransportClosed("the transport belongs to the process that was forked")
        if self._closed:
            raise TransportClosed(f"{self._settings.what} is closed")

    async def close(self) -> None:
        """End every connection. `open_rabbit_transport` calls it; twice is harmless."""
        self._closed = True
        await asyncio.gather(self._publisher.close(), self._desk.close())


@asynccontextmanager
async def open_rabbit_transport(
    url: str, *, clock: Clock | None = None, ids: Ids | None = None
) -> AsyncGenerator[RabbitTransport]:
    """Open the broker that *url* names, ``amqp://user:password@host:5672/vhost``; the docs list its settings.

    Raises:
        ConfigurationError: the URL holds what cannot be.
        TransportUnavailable: the broker does not answer.
        TransportRefused: it does not let us in, or is too old.
    """
    settings = settings_of(url)
    clock, ids = clock or SystemClock(), ids or UUID7Ids()
    desk = Desk(settings, f"tidewire-{ids.event_id()}")
    transport = RabbitTransport(settings, catalogue=Catalogue(desk), clock=clock, ids=ids)
    try:
        await desk.line()
        yield transport
    finally:
        await transport.close()
