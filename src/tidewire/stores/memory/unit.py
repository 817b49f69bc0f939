"""Units of the memory store: what they collect is applied in one step."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any, Literal, Protocol

from tidewire.errors import LaneFenced, TransactionClosed
from tidewire.model import Guard, Mark, Message
from tidewire.protocols import Unit

__all__ = ["MemoryTx", "MemoryUnit", "SyncMemoryTx", "own_unit"]


class Home(Protocol):
    """What a unit needs of its store: the rows, the epochs, its turn, and a place to apply what it collected."""

    rows: dict[Any, Any]
    epochs: dict[tuple[str, str], int]

    async def take_turn(self) -> None:
        """Wait for the turn."""
        ...

    def end_turn(self) -> None:
        """Pass the turn on."""
        ...

    def apply(self, unit: MemoryUnit) -> None:
        """Make what *unit* collected true."""
        ...


class MemoryTx:
    """``context.tx`` of the memory store: a mapping whose changes happen if and only if the unit commits."""

    def __init__(self, unit: MemoryUnit) -> None:
        self.unit = unit

    async def put(self, key: Any, value: Any) -> None:
        """Set *key*; the first use begins the unit."""
        await self.unit.begin()
        self.unit.rows[key] = value

    async def get(self, key: Any, default: Any = None) -> Any:
        """Return the value of *key* as this unit sees it."""
        await self.unit.begin()
        return self.unit.rows.get(key, self.unit.store.rows.get(key, default))


class SyncMemoryTx:
    """The same for ``def`` handlers."""

    def __init__(self, unit: MemoryUnit) -> None:
        self.unit = unit

    def put(self, key: Any, value: Any) -> None:
        """Set *key*.

        Raises:
            TransactionClosed: the handler has ended.
        """
        self._rows()[key] = value

    def get(self, key: Any, default: Any = None) -> Any:
        """Return the value of *key* as this unit sees it; errors as `put`."""
        return self._rows().get(key, self.unit.store.rows.get(key, default))

    def _rows(self) -> dict[Any, Any]:
        if not self.unit.open:
            raise TransactionClosed("this unit has ended", hint="use context.tx only while its handler runs")
        return self.unit.rows


class MemoryUnit:
    """See `tidewire.protocols.Unit`: what it collects is applied in one step by `seal`."""

    def __init__(self, store: Home, guard: Guard | None) -> None:
        self.store = store
        self.rows: dict[Any, Any] = {}
        self.marks: dict[Mark, bytes] = {}
        self.messages: list[Message] = []
        self.after: list[Callable[[], None]] = []
        self._guard = guard
        self._state: Literal["new", "open", "ended"] = "new"
        self._tx = MemoryTx(self)

    @property
    def tx(self) -> MemoryTx:
        """The mapping."""
        return self._tx

    @property
    def sync_tx(self) -> SyncMemoryTx:
        """The same without ``await``, after `begin`."""
        return SyncMemoryTx(self)

    @property
    def open(self) -> bool:
        """Whether it has begun and not ended."""
        return self._state == "open"

    async def begin(self) -> None:
        """Take the turn; nothing if it is taken."""
        if self._state == "ended":
            raise TransactionClosed("this unit has ended", hint="use context.tx only while its handler runs")
        if self._state == "new":
            await self.store.take_turn()
            self._state = "open"

    async def seal(self) -> Awaitable[None]:
        """Apply everything at once."""
        if self._state == "ended":
            raise TransactionClosed("this unit has ended")
        if self._state == "open":
            guard = self._guard
            if guard is not None and self.store.epochs.get((guard.group, guard.lane)) != guard.epoch:
                await self.rollback()
                raise LaneFenced(f"{guard.group}: epoch {guard.epoch} of lane {guard.lane} has been taken over")
            self.store.apply(self)
            self.store.end_turn()
        self._state = "ended"
        done: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        done.set_result(None)
        return done

    async def rollback(self) -> None:
        """Forget everything."""
        if self._state == "open":
            self.store.end_turn()
        self._state = "ended"


def own_unit(unit: Unit) -> MemoryUnit:
    """Return *unit* as one of a memory store.

    Raises:
        TypeError: it is another store's: effect and mark in two databases are refused.
    """
    inner = getattr(unit, "inner", unit)
    if not isinstance(inner, MemoryUnit):
        raise TypeError(f"{type(unit).__name__} is not a unit of this store: effect and mark must share one database")
    return inner
