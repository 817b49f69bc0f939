"""The store in memory. Single event loop, no threads, no clock but the one it is given."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from typing import Any

from tidewire.clock import SystemClock
from tidewire.model import Guard
from tidewire.protocols import Clock
from tidewire.stores.memory.outbox import MemoryBacklog, MemoryOutbox
from tidewire.stores.memory.records import (
    MemoryAttempts,
    MemoryHeldKeys,
    MemoryInbox,
    MemoryLanes,
    MemoryTimetable,
)
from tidewire.stores.memory.unit import MemoryTx, MemoryUnit, SyncMemoryTx

__all__ = ["open_memory_store"]


class MemoryStore:
    """See `tidewire.protocols.Store`; *rows* are the user's."""

    def __init__(self, clock: Clock) -> None:
        self.clock = clock
        self.rows: dict[Any, Any] = {}
        self.epochs: dict[tuple[str, str], int] = {}
        self.inbox = MemoryInbox(clock)
        self.outbox = MemoryOutbox(clock)
        self.backlog = MemoryBacklog(self.outbox, clock)
        self.attempts = MemoryAttempts()
        self.held = MemoryHeldKeys()
        self.lanes = MemoryLanes(self.epochs)
        self.timetable = MemoryTimetable(clock)
        self._busy = False
        self._waiting: deque[asyncio.Future[None]] = deque()

    def unit(self, guard: Guard | None = None, *, label: str = "") -> MemoryUnit:
        """Return a unit that has not begun."""
        return MemoryUnit(self, guard)

    def saturated(self) -> bool:
        """Never: nothing is waited for but other units."""
        return False

    def adopt_tx(self, tx: Any) -> MemoryUnit | None:
        """Return the unit of a `MemoryTx` of this store."""
        return tx.unit if isinstance(tx, (MemoryTx, SyncMemoryTx)) and tx.unit.store is self else None

    def apply(self, unit: MemoryUnit) -> None:
        """Make what *unit* collected true, in one step."""
        self.rows.update(unit.rows)
        now = self.clock.now_us()
        for mark, digest in unit.marks.items():
            self.inbox.marks[mark] = (digest, now)
        self.outbox.append(unit.messages)
        for action in unit.after:
            action()

    async def take_turn(self) -> None:
        """Wait for the turn, first come, first served."""
        if not self._busy:
            self._busy = True
            return
        place: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiting.append(place)
        try:
            await place
        except asyncio.CancelledError:
            if place.done() and not place.cancelled():
                self.end_turn()
            raise

    def end_turn(self) -> None:
        """Pass the turn on."""
        while self._waiting:
            place = self._waiting.popleft()
            if not place.done():
                place.set_result(None)
                return
        self._busy = False


@asynccontextmanager
async def open_memory_store(*, clock: Clock | None = None) -> AsyncGenerator[MemoryStore]:
    """Open an empty store that is gone on leaving."""
    yield MemoryStore(clock or SystemClock())
