"""The seams: what adapters give and what the runtime builds on, each with its contract in words.

Everything takes and gives batches (a batch of one is a batch). Nothing inherits: an adapter is whatever has
these members. Every ``async`` member is cancel-safe unless it says otherwise: after a cancelled call the
adapter is usable, and the effect has happened or has not.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from contextlib import AbstractAsyncContextManager
from datetime import datetime, timedelta
from typing import Any, Protocol, TypeAlias

from tidewire.model import (
    Act,
    Address,
    Browsed,
    Capabilities,
    Change,
    Delivery,
    Fact,
    Failure,
    Found,
    GroupInfo,
    GroupSpec,
    Guard,
    Held,
    LaneEvent,
    Mark,
    Message,
    Move,
    Pending,
    Receipt,
    Release,
    Settlement,
    Stats,
    Subscription,
    TopicInfo,
    TopicSpec,
)

__all__ = [
    "Attempts",
    "Backlog",
    "Clock",
    "Codec",
    "Finder",
    "HeldKeys",
    "Inbox",
    "Inspector",
    "Lanes",
    "Ledger",
    "Observer",
    "Outbox",
    "Receiver",
    "Store",
    "Transport",
    "Unit",
]


class Clock(Protocol):
    """Wall time for stamps people read, ticks for leases. Waiting uses the event loop."""

    def now(self) -> datetime:
        """Return the wall time, aware, in UTC."""
        ...

    def now_us(self) -> int:
        """Return the wall time as integer microseconds since 1970."""
        ...

    def ticks(self) -> int:
        """Return nanoseconds that never jump and are comparable between the processes of one machine."""
        ...


class Codec(Protocol):
    """Turns one event type into bytes and back. Synchronous, pure, made once per type at registration."""

    @property
    def content_type(self) -> str:
        """The media type of what `encode` returns."""
        ...

    def encode(self, event: Any) -> bytes:
        """Return the body of *event*.

        Raises:
            ConfigurationError: the value cannot travel (NaN, Infinity, a naive datetime); names the path.
        """
        ...

    def decode(self, body: bytes) -> Any:
        """Return the event in *body*, its type's own validation included.

        Raises:
            DecodeError: and nothing else, whatever the bytes.
        """
        ...


# --- transports -----------------------------------------------------------------------------------------------


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
        """Return up to *limit* messages at *address* after a position, oldest first, without consuming them."""
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


class Ledger(Protocol):
    """Optional beside a transport: the audit of what operators did, kept with the messages it is about."""

    async def note(self, act: Act) -> None:
        """Store *act*, durably; nothing is ever changed or removed."""
        ...

    async def acts(self, *, after: int = 0, limit: int = 100) -> Sequence[tuple[int, Act]]:
        """Return acts with their numbers, oldest first, behind the number *after*."""
        ...


# --- the store ------------------------------------------------------------------------------------------------


class Unit(Protocol):
    """One transaction of the store with what belongs to it. Made by `Store.unit`, used by one handler call.

    Nothing is begun until `begin`, which the first statement, mark or outbox row calls by itself. Ends exactly
    once: by `seal` or by `rollback`; afterwards its `tx` raises `TransactionClosed`.
    """

    @property
    def tx(self) -> Any:
        """The store's native handle for the user's rows; the first statement begins the unit."""
        ...

    @property
    def sync_tx(self) -> Any:
        """The same for ``def`` handlers, which run in a thread: no ``await``. Only after `begin`."""
        ...

    async def begin(self) -> None:
        """Take the unit's turn or connection; nothing if it has begun. From here to its end statements run.

        Raises:
            StoreUnavailable: the database cannot be written now.
        """
        ...

    async def seal(self) -> Awaitable[None]:
        """End the turn. What comes back resolves once the unit is durable; until then its outcome is provisional.

        Guards are checked inside the transaction. A unit that never began is durable at once.

        Raises (from seal, or from what it returns):
            AlreadyMarked: a mark of this unit exists; the unit was rolled back.
            LaneFenced: a guard does not hold; the unit was rolled back.
            TransactionLost: the transaction it shared was lost; nothing of the unit is stored. Run it again.
            StoreUnavailable: as `begin`; nothing of the unit is stored.
        """
        ...

    async def rollback(self) -> None:
        """End the unit without effect; harmless if it has not begun or has ended."""
        ...


class Inbox(Protocol):
    """Inbox marks: rows that make an effect happen once."""

    async def known(self, marks: Sequence[Mark]) -> Sequence[bytes | None]:
        """Return for each mark the body digest it was stored with, or None where there is no such mark."""
        ...

    async def mark(self, unit: Unit, mark: Mark, digest: bytes) -> None:
        """Insert the mark in *unit*.

        Raises:
            AlreadyMarked: it exists, committed. The caller rolls the unit back.
        """
        ...

    async def run_of(self, group: str) -> int:
        """Return the group's current run (0 until `replay --again` raises it)."""
        ...

    async def prune(self, before: int, limit: int) -> int:
        """Delete up to *limit* marks stored before *before* (µs since 1970) and return how many went."""
        ...


class Outbox(Protocol):
    """Events written in the caller's transaction."""

    async def put(self, unit: Unit, messages: Sequence[Message]) -> None:
        """Insert *messages* in *unit*, in order. They exist if and only if the unit commits."""
        ...

    async def wait(self, longest: timedelta) -> bool:
        """Wait until rows may have been committed since the last `wait`, a delayed row is due, or *longest*.

        A flag, not a pulse: what was committed before the call counts. True if there may be rows.
        """
        ...

    async def count(self) -> tuple[int, int]:
        """Return how many rows are pending and how many are quarantined."""
        ...


class Backlog(Protocol):
    """The relay's view of the outbox: one owner at a time reads it in commit order."""

    async def lease(self, owner: str, duration: timedelta) -> bool:
        """Take or extend the relay's lease; False while another *owner* holds it. Judged by the store's clock.

        A *duration* of zero gives the lease back.
        """
        ...

    async def claim(self, owner: str, *, after: int, limit: int) -> Sequence[Pending]:
        """Return due rows with ``row > after`` in row order, without quarantined ones and later ones of their key.

        Empty without the lease. Gap-safe: no lower row can become visible later. A keyed row that is not due
        does not hold back its key: it joins the key's order when it is due.
        """
        ...

    async def done(self, owner: str, rows: Sequence[int]) -> bool:
        """Delete exactly *rows* in one statement if *owner* still holds the lease; else change nothing: False."""
        ...

    async def refused(self, owner: str, row: int, *, detail: str, attempts_max: int) -> bool:
        """Count a refusal of *row*; at *attempts_max* quarantine it, and by that its key. True if quarantined now."""
        ...


class Attempts(Protocol):
    """Starts and failures, kept over restarts. Keyed like a mark without its run: (group, source, event id)."""

    async def get(self, group: str, source: str, event_id: str) -> Failure | None:
        """Return what is remembered of the event, or None."""
        ...

    async def begin(self, group: str, source: str, event_id: str) -> int:
        """Record a start, durably, in its own transaction, and return how many starts have not ended."""
        ...

    async def fail(self, group: str, source: str, event_id: str, failure: Failure) -> None:
        """Store *failure* (its *starts* set to 0) durably, in its own transaction."""
        ...

    async def forget(self, group: str, source: str, event_id: str) -> None:
        """Remove what is remembered: the event was handled, became a dead letter, or was stopped uncounted."""
        ...


class HeldKeys(Protocol):
    """Keys whose events wait behind one that failed. Written before the settle, so that a next owner knows."""

    async def keys(self, group: str, topics: Sequence[str]) -> Sequence[tuple[str, str]]:
        """Return every held (topic, key) of the group on *topics*."""
        ...

    async def head(self, group: str, topic: str, key: str) -> Held | None:
        """Return the oldest row of the key (lowest sequence), or None: the key is free."""
        ...

    async def put(self, rows: Sequence[Held]) -> Sequence[Held]:
        """Insert or update rows durably in one transaction and return them with their sequence.

        A row that exists (group, topic, key, source, event id) keeps its sequence.
        """
        ...

    async def free(self, rows: Sequence[Held]) -> None:
        """Remove rows durably. Missing ones are ignored."""
        ...


class Lanes(Protocol):
    """Fencing reaches the store: a zombie that wakes up cannot commit."""

    async def adopt(self, group: str, lane: str, epoch: int) -> int:
        """Record, durably, that *epoch* owns the lane, before the first hand-out, and return the recorded epoch.

        Raises:
            LaneFenced: a higher epoch has been recorded.
        """
        ...


class Store(Protocol):
    """The service's own database. Made open, by an ``open_…`` context manager that closes it."""

    def unit(self, guard: Guard | None = None, *, label: str = "") -> Unit:
        """Return a unit that has not begun. With *guard* it commits only while that lane is still owned.

        *label* names what runs in it (a handler), for a store that treats slow ones apart.
        """
        ...

    def saturated(self) -> bool:
        """Whether a unit that began now would have to wait for a commit or a connection. Cheap; a hint."""
        ...

    def adopt_tx(self, tx: Any) -> Unit | None:
        """Return the unit that a caller's transaction handle belongs to, or None if it is not this store's."""
        ...

    @property
    def inbox(self) -> Inbox:
        """Inbox marks."""
        ...

    @property
    def outbox(self) -> Outbox:
        """Outgoing events, as their writers see them."""
        ...

    @property
    def backlog(self) -> Backlog:
        """Outgoing events, as the relay sees them."""
        ...

    @property
    def attempts(self) -> Attempts:
        """Starts and failures."""
        ...

    @property
    def held(self) -> HeldKeys:
        """Held keys."""
        ...

    @property
    def lanes(self) -> Lanes:
        """Lane epochs."""
        ...


# --- observers ------------------------------------------------------------------------------------------------


class Observer(Protocol):
    """Hears what happened. Synchronous and cheap: called on the hot path, never awaited, must not raise."""

    def record(self, facts: Sequence[Fact]) -> None:
        """Take note of *facts*."""
        ...


Wakeup: TypeAlias = Callable[[], None]
