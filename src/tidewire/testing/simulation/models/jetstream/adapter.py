"""The adapter: a transport, with an inspector and a ledger, over the link to a JetStream-like broker."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Sequence
from contextlib import asynccontextmanager
from datetime import datetime

import msgspec

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
from tidewire.testing.simulation.models.channels import demand_group
from tidewire.testing.simulation.models.common import Lifetime, joined
from tidewire.testing.simulation.models.jetstream.inspection import Look
from tidewire.testing.simulation.models.jetstream.provisioning import provision
from tidewire.testing.simulation.models.jetstream.publishing import Publisher
from tidewire.testing.simulation.models.jetstream.receiver import JetStreamReceiver
from tidewire.testing.simulation.models.jetstream.server import JetStreamServer
from tidewire.testing.simulation.models.links import Client, Link

__all__ = ["JetStream", "JetStreamClient"]


class JetStream(JetStreamServer):
    """The server, with its adapter."""

    def client(self, link: Link) -> Client:
        """Return the adapter for one client."""
        return JetStreamClient(self, link)


class JetStreamClient:
    """A `Transport`, `Inspector` and `Ledger`; it finds nothing by its id, since a stream has no index."""

    def __init__(self, server: JetStreamServer, link: Link) -> None:
        self.server = server
        self.link = link
        self._publisher = Publisher(server, link)
        self._lifetime = Lifetime()

    @property
    def capabilities(self) -> Capabilities:
        """Ids are recognised for a window, hand-outs are counted, nothing is atomic."""
        return Capabilities(
            order=True,
            fencing=True,
            atomic=False,
            dedup=self.server.window,
            native_attempts=True,
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
        """Create streams, and for each group its channels and consumers."""
        self.check()
        return await provision(self.server, self.link, topics, groups=groups, dry_run=dry_run)

    async def publish(self, messages: Sequence[Message]) -> Sequence[Receipt]:
        """Publish *messages*; where a stream is full, make room of what everybody is done with and try again."""
        self.check()
        receipts = await self._publisher.publish(messages)
        full = {one.to.name for one, receipt in zip(messages, receipts, strict=True)
                if receipt.reason == "full" and isinstance(one.to, Topic)}  # fmt: skip
        if not full:
            return receipts
        for name in full:
            await self.look.trim(name, early=True)
        again = [index for index, receipt in enumerate(receipts) if receipt.reason in ("full", "after_failure")]
        for index, receipt in zip(again, await self._publisher.publish([messages[i] for i in again]), strict=True):
            receipts[index] = receipt
        return [await self._full(one, receipt) for one, receipt in zip(messages, receipts, strict=True)]

    async def _full(self, message: Message, receipt: Receipt) -> Receipt:
        """Say who holds a full topic back."""
        if receipt.reason != "full" or not isinstance(message.to, Topic):
            return receipt
        held = ", ".join(await self.look.holders(message.to.name)) or "nobody"
        return msgspec.structs.replace(receipt, detail=f"{message.to.name} is full, held back by {held}")

    @asynccontextmanager
    async def subscribe(self, subscription: Subscription) -> AsyncGenerator[JetStreamReceiver]:
        """Join the group; one that is not provisioned on a topic is created there.

        Raises (on entering):
            ConfigurationError: a topic is unknown.
        """
        self.check()
        await demand_group(self, subscription)
        receiver = JetStreamReceiver(
            self.server, self.link, subscription=subscription, publisher=self._publisher, check=self.check
        )
        async with joined(receiver):
            yield receiver

    # --- inspecting -------------------------------------------------------------------------------------------

    @property
    def look(self) -> Look:
        """Return an inspector over this client's link."""
        self.check()
        return Look(self.server, self.link)

    async def topics(self) -> Sequence[TopicInfo]:
        """Return every topic, by name."""
        return await self.look.topics()

    async def groups(self, topic: str | None = None) -> Sequence[GroupInfo]:
        """Return every group on every topic, or on *topic*."""
        return await self.look.groups(topic)

    async def stats(self, topic: str, group: str) -> Stats:
        """Return the counts of (topic, group)."""
        return await self.look.stats(topic, group)

    async def browse(self, address: Address, *, after: int | str | None = None, limit: int = 100) -> Sequence[Browsed]:
        """Return messages without consuming them, by their numbers, which are their positions."""
        return await self.look.browse(address, after, limit=limit)

    async def seek(self, topic: str, group: str, *, to: int | str | datetime) -> None:
        """Move an inactive group; its inbox channel stays as it is.

        Raises:
            TransportRefused: a member is active, or what is asked for is no longer retained.
        """
        await self.look.seek(topic, group, to=to)

    async def remove(self, channel: Address, positions: Sequence[int | str]) -> int:
        """Delete dead letters and return how many there were."""
        return await self.look.remove(channel, positions)

    async def note(self, act: Act) -> None:
        """Keep an act, in a stream of its own."""
        await self.look.note(act, name=self._publisher.unique())

    async def acts(self, *, after: int = 0, limit: int = 100) -> Sequence[tuple[int, Act]]:
        """Return acts with their numbers, from 1."""
        return await self.look.acts(after=after, limit=limit)
