"""Looking at a broker or a store from outside, without changing anything: for `tidewire check` and `doctor`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from tidewire.model import Capabilities, Change, GroupSpec, OutboxState, TopicInfo, TopicSpec

__all__ = ["BrokerLook", "StoreLook"]


class BrokerLook(Protocol):
    """A broker, looked at: nothing is created, joined or consumed."""

    async def capabilities(self) -> Capabilities:
        """Return what it promises. An adapter that knows this without a connection needs none.

        Raises:
            TransportUnavailable: it cannot be reached, and only it knows.
        """
        ...

    async def compare(self, topics: Sequence[TopicSpec], groups: Sequence[GroupSpec]) -> Sequence[Change]:
        """Say what `Transport.provision` would do; one change per topic and per group.

        Raises:
            TransportUnavailable: it cannot be reached, or is not there yet.
            TransportRefused: it is there, and will not serve us.
        """
        ...

    async def topics(self) -> Sequence[TopicInfo]:
        """Return every topic, by name; raises as `compare`."""
        ...


class StoreLook(Protocol):
    """A store, looked at."""

    async def marked(self, group: str) -> frozenset[str]:
        """Return the handlers by which there are inbox marks of *group*: none where there is no store yet.

        Raises:
            StoreUnavailable: it cannot be reached.
            StoreRefused: it is there, and will not serve us.
        """
        ...

    async def outbox(self) -> OutboxState:
        """Return how the outbox is; raises as `marked`, and `StoreUnavailable` where there is no store yet."""
        ...
