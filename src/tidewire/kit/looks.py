"""Looking at a broker or a store whose adapter is opened for it: one that creates nothing by being opened."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractAsyncContextManager
from datetime import timedelta
from typing import Protocol, runtime_checkable

from tidewire.model import Capabilities, Change, GroupSpec, InboxState, OutboxState, TopicInfo, TopicSpec
from tidewire.protocols import Store, Transport

__all__ = [
    "Identified",
    "OpenedBrokerLook",
    "OpenedStoreLook",
    "SeesRelays",
    "SeesWriters",
    "StepsBack",
    "topics_there",
]


@runtime_checkable
class HasTopics(Protocol):
    """A transport that can say what topics there are."""

    async def topics(self) -> Sequence[TopicInfo]:
        """See `tidewire.protocols.Inspector`."""
        ...


@runtime_checkable
class HasSpecs(Protocol):
    """A transport that can say how some topics are kept, without a look at all the others."""

    async def specs(self, names: Sequence[str]) -> Sequence[TopicSpec]:
        """Return those of the topics *names* that are there, as they are."""
        ...


@runtime_checkable
class StepsBack(Protocol):
    """A broker whose positions are no numbers, and which knows what lies before one."""

    def before(self, position: int | str) -> int | str | None:
        """Return the position behind which *position* comes first, or None: it comes first of all.

        Raises:
            TransportRefused: it is no position.
        """
        ...


@runtime_checkable
class SeesWriters(Protocol):
    """A store in which a transaction that stays open does harm, and which can say how old the oldest one is."""

    async def oldest_write(self) -> timedelta | None:
        """Return for how long the oldest transaction that has written something is open, or None: there is none."""
        ...


@runtime_checkable
class Identified(Protocol):
    """A broker that can say which one it is, whatever the URL that it was opened with."""

    async def identity(self) -> str:
        """Return what is the same for all who have this broker open, and differs for any other; nothing where it has
        no name.

        Raises:
            TransportUnavailable, TransportRefused: it cannot be asked.
        """
        ...


@runtime_checkable
class SeesRelays(Protocol):
    """A store that can name the relays of its outbox."""

    async def relays(self) -> Sequence[str]:
        """Return the owners whose leases on the outbox have not ended; raises as `Backlog.lease`."""
        ...


async def topics_there(transport: Transport, names: Sequence[str]) -> Sequence[TopicInfo | TopicSpec]:
    """Return what *transport* can say of the topics *names*, and maybe of others: nothing where it cannot tell."""
    if isinstance(transport, HasSpecs):
        return await transport.specs(names)
    return await transport.topics() if isinstance(transport, HasTopics) else ()


class OpenedBrokerLook:
    """See `tidewire.protocols.BrokerLook`. Each call opens the transport anew and closes it."""

    def __init__(self, opened: Callable[[], AbstractAsyncContextManager[Transport]]) -> None:
        self._opened = opened

    async def capabilities(self) -> Capabilities:
        """Ask the opened transport."""
        async with self._opened() as transport:
            return transport.capabilities

    async def compare(self, topics: Sequence[TopicSpec], groups: Sequence[GroupSpec]) -> Sequence[Change]:
        """Provision without doing it."""
        async with self._opened() as transport:
            return await transport.provision(topics, groups, dry_run=True)

    async def topics(self) -> Sequence[TopicInfo]:
        """Ask the opened transport; nothing where it cannot tell."""
        async with self._opened() as transport:
            return await transport.topics() if isinstance(transport, HasTopics) else ()

    async def specs(self, names: Sequence[str]) -> Sequence[TopicSpec]:
        """Ask the opened transport; nothing where it cannot tell."""
        async with self._opened() as transport:
            there = await topics_there(transport, names)
        return [
            topic
            if isinstance(topic, TopicSpec)
            else TopicSpec(topic.name, topic.lanes, topic.retention, topic.size_bytes_max)
            for topic in there
            if topic.name in names
        ]


class OpenedStoreLook:
    """See `tidewire.protocols.StoreLook`. Each call opens the store anew and closes it; whose marks it has, it cannot
    tell."""

    def __init__(self, opened: Callable[[], AbstractAsyncContextManager[Store]]) -> None:
        self._opened = opened

    async def marked(self, group: str) -> frozenset[str]:
        """Return nothing: a `Store` does not list its marks."""
        return frozenset()

    async def outbox(self) -> OutboxState:
        """Count what the opened store has."""
        async with self._opened() as store:
            pending, stuck = await store.outbox.count()
            oldest = await store.outbox.stuck(limit=1) if stuck else ()
        return OutboxState(
            ready=pending, delayed=0, stuck=stuck, stuck_since=oldest[0].at if oldest else None, relayed=None
        )

    async def inbox(self) -> Sequence[InboxState]:
        """Return nothing: a `Store` does not list its marks."""
        return ()
