"""Looking at a broker or a store from outside, without changing anything: for `tidewire check` and `doctor`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from tidewire.model import Capabilities, Change, GroupSpec, InboxState, OutboxState, TopicInfo, TopicSpec

__all__ = ["BrokerLook", "StoreLook", "StoreTables"]


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

    async def specs(self, names: Sequence[str]) -> Sequence[TopicSpec]:
        """Return how those of the topics *names* are kept that are there, asking after no others where that can be;
        raises as `compare`."""
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

    async def inbox(self) -> Sequence[InboxState]:
        """Return how the marks are, group by group; raises as `outbox`."""
        ...


class StoreTables(Protocol):
    """The tables that tidewire keeps in a store: which version they are of, and what brings them up to date."""

    async def versions(self) -> tuple[int, int]:
        """Return the version that is there (0: none) and the one that this tidewire needs.

        Raises:
            StoreUnavailable: it cannot be reached.
            StoreRefused: it is there, and will not serve us.
        """
        ...

    async def upgrade(self) -> tuple[int, int]:
        """Make or upgrade the tables, all or nothing, and return the version before and now; raises as `versions`.

        Raises:
            StoreRefused: they are newer than this tidewire, or we may not.
        """
        ...

    @property
    def needed(self) -> int:
        """The version that this tidewire needs; asks nobody."""
        ...

    def sql(self, version: int) -> Sequence[str]:
        """Return the statements that bring tables of *version*, up to `needed`, up to date."""
        ...

    async def facts(self) -> Sequence[tuple[str, str]]:
        """Return what can be said of each table cheaply, for people; raises as `versions`."""
        ...
