"""A store whose units run on the user's own pool.

Looking up marks, leases, attempts, held keys and the relay go on over the store's own connections. Only what must
commit with the user's rows goes with them: marks, outgoing events, the guard, and the next due time of a run.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, Generator, Sequence
from contextlib import asynccontextmanager, contextmanager
from datetime import timedelta
from typing import Any, Protocol, runtime_checkable
from weakref import WeakValueDictionary

from tidewire.kit.handles import CallersUnit
from tidewire.kit.lent import Lender, Statements
from tidewire.kit.lent.meaning import meant
from tidewire.kit.looks import SeesRelays, SeesWriters
from tidewire.model import Guard, Mark, Message, Stuck
from tidewire.protocols import Attempts, Backlog, HeldKeys, Inbox, Lanes, Outbox, Store, Timetable, Unit
from tidewire.stores.lent.unit import LentUnit, lent_unit

__all__ = ["LentStore", "Speaking"]


_units: WeakValueDictionary[int, LentUnit] = WeakValueDictionary()  # by their handles, which they keep alive


@runtime_checkable
class Speaking(Store, Protocol):
    """A store that says what it writes in units."""

    @property
    def statements(self) -> Statements:
        """What it writes in units, as statements for any handle of its database."""
        ...


class LentStore:
    """See `tidewire.protocols.Store`: *inner*, with units on the pool of *lender*."""

    def __init__(self, inner: Speaking, lender: Lender) -> None:
        self._inner = inner
        self._lender = lender
        self._statements = inner.statements
        self.inbox: Inbox = _Inbox(inner.inbox, self._statements)
        self.outbox: Outbox = _Outbox(inner.outbox, self._statements)
        self.timetable: Timetable = _Timetable(inner.timetable, self._statements)
        self.backlog: Backlog = inner.backlog
        self.attempts: Attempts = inner.attempts
        self.held: HeldKeys = inner.held
        self.lanes: Lanes = inner.lanes
        if isinstance(inner, SeesWriters):
            self.oldest_write = inner.oldest_write
        if isinstance(inner, SeesRelays):
            self.relays = inner.relays

    @property
    def tx_types(self) -> tuple[type | None, type | None]:
        """What ``async def`` handlers and ``def`` handlers find in ``context.tx``; None: this pool is not for them."""
        lent = self._lender.tx_type
        return (lent, None) if self._lender.awaited else (None, lent)

    async def check(self) -> None:
        """Nothing, if the pool leads to this very store.

        Raises:
            ConfigurationError: it leads elsewhere.
            StoreUnavailable: it leads nowhere just now.
        """
        lent = self._lender.lend()
        try:
            with meant():
                await lent.begin()
                await self._statements.check(await lent.sql(), "the pool")
        finally:
            await lent.rollback()

    def unit(self, guard: Guard | None = None, *, label: str = "") -> LentUnit:
        """Return a unit that has not begun."""
        unit = LentUnit(self._lender.lend(), self._statements, guard)
        _units[id(unit.tx)] = unit
        return unit

    def saturated(self) -> bool:
        """Never: how many may wait for the pool is the pool's business."""
        return False

    def adopt_tx(self, tx: Any) -> Unit | None:
        """Return the unit whose handle *tx* is, or that of a caller's own transaction."""
        unit = _units.get(id(tx))
        if unit is None:
            return self._inner.adopt_tx(tx)
        return unit if unit.statements is self._statements else None

    @asynccontextmanager
    async def around(self, unit: Unit) -> AsyncGenerator[None]:
        """Begin where the handle does not, and say what an error of the database means."""
        with meant(lent_unit(unit, self._statements).failed):
            if self._lender.eager:
                await unit.begin()
            yield

    @contextmanager
    def around_in_thread(self, unit: Unit) -> Generator[None]:
        """The same for a ``def`` handler, in its thread."""
        own = lent_unit(unit, self._statements)
        with meant(own.failed), own.in_thread():
            yield


class _Inbox:
    def __init__(self, inner: Inbox, statements: Statements) -> None:
        self._inner = inner
        self._statements = statements
        self.known = inner.known
        self.run_of = inner.run_of
        self.next_run = inner.next_run
        self.prune = inner.prune

    async def mark(self, unit: Unit, mark: Mark, digest: bytes) -> None:
        """Insert the mark; a committed one makes it `AlreadyMarked`, one that is open is waited for."""
        own = lent_unit(unit, self._statements)
        await own.write(await self._statements.mark(mark, digest))


class _Outbox:
    def __init__(self, inner: Outbox, statements: Statements) -> None:
        self._inner = inner
        self._statements = statements
        self.wait = inner.wait
        self.count = inner.count
        self.requeue = inner.requeue

    async def put(self, unit: Unit, messages: Sequence[Message]) -> None:
        """Insert rows with the seal; in a caller's own transaction, at once."""
        if isinstance(unit, CallersUnit):
            await self._inner.put(unit, messages)
        else:
            lent_unit(unit, self._statements).leave(messages)

    async def stuck(self, *, after: int = 0, limit: int = 100) -> Sequence[Stuck]:
        """Return quarantined rows."""
        return await self._inner.stuck(after=after, limit=limit)


class _Timetable:
    def __init__(self, inner: Timetable, statements: Statements) -> None:
        self._inner = inner
        self._statements = statements

    async def claim(
        self, name: str, rule: str, *, first: int, now: int, owner: str, lease: timedelta
    ) -> tuple[int, bool]:
        """As the store does, on its own connection."""
        return await self._inner.claim(name, rule, first=first, now=now, owner=owner, lease=lease)

    async def advance(self, unit: Unit, name: str, *, owner: str, due: int, to: int) -> None:
        """Move on, in *unit*, whose transaction holds the row until it ends."""
        step = self._statements.advance(name, owner=owner, due=due, to=to)
        await lent_unit(unit, self._statements).write([step])
