"""Units in transactions that the user's own pool lends."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Sequence
from contextlib import AbstractContextManager
from typing import Any, Literal

from tidewire.errors import TransactionClosed, TransactionControl
from tidewire.kit.lent import Lent, Statements, Step
from tidewire.kit.lent.meaning import meant
from tidewire.model import Guard, Message
from tidewire.protocols import Unit

__all__ = ["LentUnit", "lent_unit"]


class LentUnit:
    """One unit; see `tidewire.protocols.Unit`. Made by `LentStore.unit`.

    Outgoing events are written at the seal, all in one statement, behind the handler's own rows.
    """

    def __init__(self, lent: Lent, statements: Statements, guard: Guard | None) -> None:
        self._lent = lent
        self.statements = statements
        self._state: Literal["open", "ended"] = "open"
        self._guard = () if guard is None else (statements.guard(guard),)
        self._rows: list[Any] = []

    @property
    def tx(self) -> Any:
        """The handle that the pool lends."""
        return self._lent.tx

    @property
    def sync_tx(self) -> Any:
        """The same: a pool lends one kind, for handlers of one kind."""
        return self._lent.tx

    async def begin(self) -> None:
        """Begin, where the handle does not do so at its first statement."""
        self._check_open()
        await self._lent.begin()

    def in_thread(self) -> AbstractContextManager[None]:
        """Return the block in which a ``def`` handler runs, in its thread."""
        return self._lent.in_thread()

    async def write(self, steps: Sequence[Step]) -> None:
        """Run *steps* now, behind everything that the handler wrote.

        Raises:
            TransactionClosed: the unit has ended.
            The refusal of a step.
        """
        self._check_open()
        self._check_whole()
        with meant(self.failed):
            sql = await self._lent.sql()
            self._check_whole()
            for step in steps:
                rows = await sql.rows(step.sql, step.parameters)
                if not rows and step.refusal is not None:
                    raise step.refusal

    def failed(self) -> BaseException | None:
        """Return the last error of a statement in this unit, caught or not."""
        return self._lent.failed

    def leave(self, messages: Sequence[Message]) -> None:
        """Write *messages* into the outbox with the seal, in one statement with those of other calls.

        What cannot be a row raises here.

        Raises:
            TransactionClosed: the unit has ended.
        """
        self._check_open()
        self._rows += self.statements.rows(messages)

    async def seal(self) -> Awaitable[None]:
        """Write outgoing events, check the guard and commit: the unit is durable on return."""
        self._check_open()
        try:
            self._check_whole()
            steps = self.statements.put(self._rows) if self._rows else ()
            if steps or self._lent.begun:
                await self.write([*steps, *self._guard])
            with meant(self.failed):
                await self._lent.commit()
        except BaseException:
            await self.rollback()
            raise
        self._state = "ended"
        if self._rows:
            self.statements.written(self._rows)
        return _durable()

    async def rollback(self) -> None:
        """End without effect."""
        if self._state == "ended":
            return
        self._state = "ended"
        ending = asyncio.ensure_future(self._lent.rollback())
        interrupted = False
        while not ending.done():
            try:
                await asyncio.wait([ending])
            except asyncio.CancelledError:
                interrupted = True
        ending.result()
        if interrupted:
            raise asyncio.CancelledError

    def _check_whole(self) -> None:
        if self._lent.ended:
            raise TransactionControl(
                f"the handler has ended the unit's transaction ({self._lent.ended}), so nothing of it can be kept",
                hint="raise an error to roll back, return to commit; a savepoint undoes a part",
            )

    def _check_open(self) -> None:
        if self._state == "ended":
            raise TransactionClosed("this unit has ended", hint="use context.tx only while its handler runs")


def lent_unit(unit: Unit, statements: Statements) -> LentUnit:
    """Return *unit* as one of the store with these *statements*.

    Raises:
        TypeError: it is another store's: effect and mark in two databases are refused.
    """
    inner = getattr(unit, "inner", unit)
    if not isinstance(inner, LentUnit) or inner.statements is not statements:
        raise TypeError(f"{type(unit).__name__} is not a unit of this store: effect and mark must share one database")
    return inner


def _durable() -> Awaitable[None]:
    done: asyncio.Future[None] = asyncio.get_running_loop().create_future()
    done.set_result(None)
    return done
