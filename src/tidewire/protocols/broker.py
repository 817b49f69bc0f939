"""What an adapter to a broker gives: publishing, receiving, and (optionally) looking into it."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractAsyncContextManager
from datetime import datetime, timedelta
from typing import Protocol, runtime_checkable

from tidewire.model import (
    Act,
    Address,
    Browsed,
    Capabilities,
    Change,
    Delivery,
    Found,
    GroupInfo,
    GroupSpec,
    LaneEvent,
    Message,
    Move,
    Receipt,
    Release,
    Settlement,
    Stats,
    Subscription,
    TopicInfo,
    TopicSpec,
)
from tidewire.protocols.store import Store, Unit

__all__ = ["Enlisting", "Finder", "Inspector", "Lagging", "Ledger", "Receiver", "Transport"]


class Transport(Protocol):
    """An adapter to one broker. Made open, by an ``open_…`` context manager that closes it."""

    @property
    def capabilities(self) -> Capabilities:
        """What this broker honestly promises; constant while open."""
        ...

    async def provision(
        self, topics: Sequence[TopicSpec], groups: Sequence[GroupSpec], *, dry_run: bool = False
    ) -> Sequence[Change]:
        """Create what is missing and read back what was applied; one change per topic and per group.

        Idempotent and safe concurrently. From its return every publish reaches every group listed, running or
        not. An existing object with other settings is a ``conflict``, never changed; nothing is ever deleted.
        With *dry_run* nothing changes.
        """
        ...

    async def publish(self, messages: Sequence[Message]) -> Sequence[Receipt]:
        """Store *messages* and say what became of each, in order; an empty sequence does nothing.

        Returns when each is durable as `Capabilities.durability` says, or certainly not stored, or unknown.
        Messages of one key, in one call and over consecutive awaited calls, are stored in order; after a
        non-success the rest of that key in the call is ``rejected`` (``after_failure``), so that no gap appears.
        Cancelling leaves each message stored or not.

        Raises:
            TransportUnavailable: none of the messages was handed over.
            TransportClosed: the transport is closed.
        """
        ...

    def subscribe(self, subscription: Subscription) -> AbstractAsyncContextManager[Receiver]:
        """Join the group. Leaving stops the hand-out, waits up to ``grace`` for settles, gives the rest back
        uncounted and leaves the group, so that others take over at once.

        Raises (on entering):
            ConfigurationError: the ordering asked for is not among the capabilities, or a topic is unknown.
        """
        ...


class Receiver(Protocol):
    """A member's place in its group. One `receive` is outstanding at a time; `settle` and `steer` run beside it."""

    async def receive(self, limit: int, wait: timedelta) -> Sequence[Delivery | LaneEvent]:
        """Return up to *limit* deliveries, plus lane events, as soon as there is one; empty only after *wait*.

        *limit* is credit: with 0 only lane events come, while membership and leases stay alive.
        The ``assigned`` event of a lane comes before its first delivery. Lanes are handed out in order; the
        transport schedules no keys. Cancelling loses nothing and counts nothing.

        Raises:
            TransportUnavailable: no connection now; call again.
        """
        ...

    async def settle(
        self,
        *,
        ack: Sequence[Delivery] = (),
        release: Sequence[Release] = (),
        move: Sequence[Move] = (),
    ) -> Sequence[Settlement]:
        """Settle, in any order within a lane, and say what became of each: acks first, then releases, then moves.

        Durable on return. One transaction where `Capabilities.atomic` is true; else a move's messages are
        durable before its delivery is acked. A failed move leaves its own delivery unsettled and no other. A
        delivery of a stale epoch is ``lost``. Settling twice is harmless.

        Raises:
            TransportUnavailable: nothing is known to be settled; what is unsettled comes back.
            ValueError: a `Release` with a delay under ordering by key; nothing was sent.
        """
        ...

    async def steer(
        self, *, pause: Sequence[str] = (), resume: Sequence[str] = (), drained: Sequence[str] = ()
    ) -> None:
        """Pause lanes (hand out nothing of them), resume them at the right place, or declare revoked ones drained."""
        ...


class Inspector(Protocol):
    """Optional beside a transport (a transport that has it answers ``isinstance`` by having these members)."""

    async def topics(self) -> Sequence[TopicInfo]:
        """Return every topic, by name."""
        ...

    async def groups(self, topic: str | None = None) -> Sequence[GroupInfo]:
        """Return every group on every topic, or on *topic*, by topic and name."""
        ...

    async def stats(self, topic: str, group: str) -> Stats:
        """Return the counts of (topic, group), without effect on consumers."""
        ...

    async def browse(self, address: Address, *, after: int | str | None = None, limit: int = 100) -> Sequence[Browsed]:
        """Return up to *limit* messages at *address* after a position, oldest first, without consuming them.

        A dead channel can always be looked at. Where `Capabilities.replay` is false, a topic and an inbox channel may
        be refused: a queue shows a message only by handing it out.

        Raises:
            TransportRefused: there is no such address, or it cannot be looked at.
        """
        ...

    async def seek(self, topic: str, group: str, *, to: int | str | datetime) -> None:
        """Move an inactive group's cursor to a position, or to the first message stored at or after a time.

        Raises:
            TransportRefused: a member is active, or what is asked for is no longer retained.
        """
        ...

    async def remove(self, channel: Address, positions: Sequence[int | str]) -> int:
        """Remove messages from a dead channel and return how many there were. Missing ones are ignored."""
        ...


class Enlisting(Protocol):
    """Optional beside a transport that keeps its positions in a database: a store may lie there too."""

    async def enlist(self, store: Store) -> bool:
        """Say whether *store*'s units write to this broker's database, so that `settle_with` can be used."""
        ...

    def settle_with(self, unit: Unit, deliveries: Sequence[Delivery]) -> None:
        """Let the commit of *unit* settle *deliveries* of one lane too: both, or neither. They are acked all the same.

        What is not this member's any more is left alone; that the unit must not commit then, its guard sees to.
        """
        ...


class Finder(Protocol):
    """Optional beside an `Inspector`: search without reading everything."""

    async def find(self, event_id: str, *, limit: int = 100) -> Sequence[Found]:
        """Return every place, topic or channel, where a message with this id lies; by an index."""
        ...

    async def related(self, correlation_id: str, *, limit: int = 1_000) -> Sequence[Found]:
        """Return the messages in topics and dead channels with this id or correlation id, oldest first.

        May read every message: no index is kept for it, since it would cost each publish.
        """
        ...


@runtime_checkable
class Lagging(Protocol):
    """Optional beside a transport: what waits for one member, so that one that is deaf is told from one that is idle.

    Without it the counts of the whole group are looked at, which say so only where one member has every lane.
    """

    async def lag(self, group: str, lanes: Sequence[str]) -> int:
        """Return how many messages of *lanes*, which a member of *group* in this process has, wait to be handed out.

        Only what could be handed out now: nothing of a lane that is paused or to go, or whose books are full, and
        nothing that waits for its time. Asked of the broker anew, not of what a member believes.

        Raises:
            TransportUnavailable: the broker did not answer.
        """
        ...


class Ledger(Protocol):
    """Optional beside a transport: the audit of what operators did, kept with the messages it is about."""

    async def note(self, act: Act) -> None:
        """Store *act*, durably; nothing is ever changed or removed."""
        ...

    async def acts(self, *, after: int = 0, limit: int = 100) -> Sequence[tuple[int, Act]]:
        """Return acts with their numbers, oldest first, behind the number *after*."""
        ...
