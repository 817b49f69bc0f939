"""What an adapter to a database gives: units, and the parts that work on them."""

from __future__ import annotations

from collections.abc import Awaitable, Sequence, Set
from contextlib import AbstractAsyncContextManager, AbstractContextManager
from datetime import timedelta
from typing import Any, Protocol, runtime_checkable

from tidewire.model import Failure, Guard, Held, Mark, Message, Pending, Stuck

__all__ = [
    "Attempts",
    "Backlog",
    "HeldKeys",
    "Inbox",
    "Lanes",
    "Outbox",
    "Store",
    "Surrounding",
    "SyncOutbox",
    "Timetable",
    "TxTypes",
    "Unit",
]


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

    async def next_run(self, group: str) -> int:
        """Raise the group's run, durably, and return it: what took effect before may take effect again."""
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

    async def stuck(self, *, after: int = 0, limit: int = 100) -> Sequence[Stuck]:
        """Return quarantined rows with ``row > after``, in row order."""
        ...

    async def requeue(self, rows: Sequence[int]) -> int:
        """Let quarantined *rows* leave again, behind what is pending, in row order, and return how many there were."""
        ...


class SyncOutbox(Protocol):
    """The outbox as synchronous code sees it. It opens nothing, so there is nothing to close."""

    def put(self, tx: Any, messages: Sequence[Message]) -> None:
        """Insert *messages* in the caller's transaction *tx*, of whatever library, in order.

        Raises:
            ConfigurationError: *tx* is not a transaction of this database; nothing was done with it.
        """
        ...


class Backlog(Protocol):
    """The relay's view of the outbox. It has one partition or several; each has one owner at a time, who reads it in
    row order. All rows of a (topic, key) are in one partition."""

    async def lease(self, owner: str, duration: timedelta) -> bool:
        """Take or extend *owner*'s fair share of the partitions; False if there is none for it now.

        Who stays silent for its *duration*, judged by the store's clock, has nothing any more. Zero gives all back.
        """
        ...

    async def claim(self, owner: str, *, after: int, limit: int, without: Set[int] = frozenset()) -> Sequence[Pending]:
        """Return due rows of *owner*'s partitions in row order: those with ``row > after`` that are not in *without*.

        Up to *limit*, or fewer once their bodies reach `CLAIM_BYTES_MAX`; without quarantined ones and later ones of
        their key. Empty without the lease. Gap-safe if it begins at 0: no row that becomes visible later is passed by.
        A keyed row that is not due does not hold back its key: it joins the key's order when it is due.
        """
        ...

    async def done(self, owner: str, rows: Sequence[int]) -> bool:
        """Delete exactly *rows* in one statement where *owner* still has their partitions; False if it has not.

        What it has lost is not changed.
        """
        ...

    async def refused(self, owner: str, row: int, *, detail: str, attempts_max: int) -> bool:
        """Count a refusal of *row*; at *attempts_max* quarantine it, and by that its key. True if quarantined now.

        Nothing without the lease.
        """
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


class Timetable(Protocol):
    """When recurring runs are due: once per store, whatever the number of processes. Times in µs since 1970."""

    async def claim(
        self, name: str, rule: str, *, first: int, now: int, owner: str, lease: timedelta
    ) -> tuple[int, bool]:
        """Return when *name* is due, and whether *owner* is to run it: it is due at *now*, and nobody has a lease.

        Then the lease is taken. A name that is not known, or had another *rule*, is due at *first*. Durable.
        """
        ...

    async def advance(self, unit: Unit, name: str, *, owner: str, due: int, to: int) -> None:
        """In *unit*: the run of *due* has happened, the next one is at *to*; the lease ends with it.

        Raises:
            AlreadyMarked: *owner* has lost the lease, or *due* has passed by: somebody else runs it.
        """
        ...


@runtime_checkable
class TxTypes(Protocol):
    """Optional beside a store: it says what handlers find in ``context.tx``."""

    @property
    def tx_types(self) -> tuple[type | None, type | None]:
        """The types for ``async def`` handlers and for ``def`` handlers; None: there is none for such."""
        ...


@runtime_checkable
class Surrounding(Protocol):
    """Optional beside a store whose units run on connections of the user's own: what goes on around a handler."""

    def around(self, unit: Unit) -> AbstractAsyncContextManager[None]:
        """Return the block in which an ``async def`` handler of *unit* runs."""
        ...

    def around_in_thread(self, unit: Unit) -> AbstractContextManager[None]:
        """Return the block in which a ``def`` handler of *unit* runs, in its thread."""
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
        """Return the unit that a caller's transaction handle belongs to, or None if it is not this store's.

        A transaction of another library (a SQLAlchemy session, a connection of asyncpg or psycopg) is a unit that can
        be written into and that its caller ends. Whether it is to this database is asked by what writes into it.
        """
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

    @property
    def timetable(self) -> Timetable:
        """Recurring runs."""
        ...
