"""Units of the PostgreSQL store: one transaction on a connection of its own, in as few round trips as there can be.

BEGIN travels with the first statement. What tidewire adds (the guard, marks, outgoing events) and COMMIT travel
together at the seal: a failure among them makes the server skip the rest, COMMIT included.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Generator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, Literal, Protocol

import psycopg

from tidewire.errors import AlreadyMarked, LaneFenced, StoreUnavailable, TransactionClosed, TransactionLost
from tidewire.kit.postgres.errors import PostgresErrors, is_rerun, is_server, is_too_slow
from tidewire.kit.postgres.pool import PostgresPool
from tidewire.kit.postgres.text import kept
from tidewire.kit.postgres.wire import Answers, Sent, Statement, Wire
from tidewire.model import Guard
from tidewire.protocols import Unit
from tidewire.stores.postgres.events import Leaving

__all__ = ["Core", "PostgresUnit", "Writing", "own_unit"]

_CUT_AFTER, _PATIENCE = 5.0, 0.2
_BEGIN: Statement = ("BEGIN", ())
_COMMIT: Statement = ("COMMIT", ())
_ROLLBACK: Statement = ("ROLLBACK", ())
_NO_LANE, _ABORTED = "22012", "25P02"


class _Durable:
    """What is durable already."""

    def __await__(self) -> Generator[Any, None, None]:
        yield from ()


_DURABLE = _Durable()


class Writing(Protocol):
    """What the outbox does for units: it says how events are written, and hears of what is committed."""

    def statements(self, rows: Sequence[Leaving]) -> Sequence[Statement]:
        """Return what inserts *rows*, in order."""
        ...

    def written(self, rows: Sequence[Leaving], places: Sequence[tuple[int, ...]]) -> None:
        """Hear that *rows* are committed; *places* is what their first statement returned."""
        ...


@dataclass(slots=True)
class Core:
    """What all units of one store share. *handle* and *sync_handle* make ``context.tx`` of a unit."""

    pool: PostgresPool
    errors: PostgresErrors
    outbox: Writing
    guard_sql: str
    mark_index: str
    handle: Callable[[PostgresUnit], Any]
    sync_handle: Callable[[PostgresUnit], Any]
    loop: asyncio.AbstractEventLoop


class PostgresUnit:
    """One unit; see `tidewire.protocols.Unit`. Made by `PostgresStore.unit`.

    After an error of a statement that was not undone by a savepoint, it cannot be sealed, even if the handler
    swallows the error: PostgreSQL would turn the COMMIT into a ROLLBACK and say nothing.
    """

    __slots__ = (
        "_beginning", "_failure", "_guard", "_inserts", "_later", "_leaving", "_marks", "_points", "_sent", "_state",
        "_sync", "_tx", "_wire", "core",
    )  # fmt: skip

    def __init__(self, core: Core, guard: Guard | None) -> None:
        self.core = core
        self._guard = guard
        self._state: Literal["new", "open", "ended"] = "new"
        self._wire: Wire | None = None
        self._beginning: asyncio.Future[None] | None = None
        self._sent = False
        self._failure: Exception | None = None
        self._later: list[Statement] = []
        self._marks: set[tuple[int, bytes]] = set()
        self._leaving: list[Leaving] = []
        self._inserts = 0
        self._points = 0
        self._tx: Any = None
        self._sync: Any = None

    @property
    def tx(self) -> Any:
        """The handle for ``async def`` handlers."""
        if self._tx is None:
            self._tx = self.core.handle(self)
        return self._tx

    @property
    def sync_tx(self) -> Any:
        """The handle for ``def`` handlers."""
        if self._sync is None:
            self._sync = self.core.sync_handle(self)
        return self._sync

    async def begin(self) -> None:
        """Take a connection; nothing if the unit has one."""
        while self._beginning is not None:  # two first statements at once share one connection
            await asyncio.shield(self._beginning)
        if self._state == "open":
            return
        self.check_open()
        wire = self.core.pool.take_at_once()
        if wire is None:
            beginning = self._beginning = asyncio.get_running_loop().create_future()
            try:
                wire = await self.core.pool.take()
            finally:
                self._beginning = None
                beginning.set_result(None)
            if self._state != "new":  # rolled back while it waited
                self.core.pool.give(wire)
                self.check_open()
        self._wire, self._state = wire, "open"

    def check_open(self) -> None:
        """Nothing, unless the unit has ended.

        Raises:
            TransactionClosed: it has.
        """
        if self._state == "ended":
            raise TransactionClosed("this unit has ended", hint="use context.tx only while its handler runs")

    async def statements(self, statements: Sequence[Statement]) -> Answers:
        """Run the user's *statements*, sent together. Errors as `PostgresTx.execute` says."""
        if self._state != "open":
            await self.begin()
        wire = self._wire
        assert wire is not None
        ahead = self._later if self._sent else [_BEGIN, *self._later]
        sent = wire.send([*ahead, *statements], own=False)
        self._sent, self._later = True, []
        try:
            answers = await sent
        except asyncio.CancelledError:  # whether it succeeds is not known: it must not be committed unseen
            self._failure = self._failure or psycopg.errors.QueryCanceled("a statement was cancelled by its handler")
            raise
        if answers.error is not None:
            raise self._failed(answers.error, lost=answers.lost)
        answers.skip(len(ahead))
        if not wire.alive:  # answered, and gone in the same moment
            self._failure = self.core.errors.unavailable("the connection to PostgreSQL was lost within a transaction")
            raise self._failure
        if self._state == "open" and not wire.in_transaction and not wire.busy:
            self._failure = TransactionLost("a statement of the handler has ended the unit's transaction")
            raise self._failure
        return answers

    async def rows(self, sql: str, parameters: Sequence[Any] = ()) -> Sequence[tuple[Any, ...]]:
        """Run one of tidewire's own statements in the unit now; see `tidewire.kit.handles.AsyncSql`."""
        return (await self.statements([(sql, parameters)])).rows()

    def later(self, statement: Statement) -> None:
        """Send *statement*, one of tidewire's own, ahead of what is sent next: the user's statement or the seal.

        Raises:
            TransactionClosed: the unit has ended.
        """
        self.check_open()
        self._later.append(statement)

    def mark(self, scope: int, event_id: bytes) -> bool:
        """Note that this unit has a mark; False if it has had it before."""
        self.check_open()
        before = len(self._marks)
        self._marks.add((scope, event_id))
        return len(self._marks) > before

    def leave(self, rows: Sequence[Leaving]) -> None:
        """Write *rows* into the outbox with the seal.

        Raises:
            TransactionClosed: the unit has ended.
        """
        self.check_open()
        self._leaving += rows

    async def seal(self) -> Awaitable[None]:
        """Commit. The transaction is durable on return: the next event of a key must see what this one wrote."""
        self.check_open()
        if not (self._sent or self._later or self._leaving):
            self._end()
            return _DURABLE
        if self._failure is not None:
            failure = self._failure
            await self.rollback()
            raise failure
        if self._state != "open":
            await self.begin()
        wire = self._wire
        assert wire is not None
        batch = self._batch()
        self._state = "ended"
        answers, interrupted = await _to_the_end(wire, wire.send(batch))
        error = answers.error
        if error is None and not answers.committed:
            error = answers.error = psycopg.errors.InFailedSqlTransaction(
                "an earlier statement of this unit had failed"
            )
        if error is None:
            self._end()
            if self._leaving:
                self.core.outbox.written(self._leaving, answers.rows(-1 - self._inserts))
            if interrupted:
                raise asyncio.CancelledError
            return _DURABLE
        reason = self._sealing_failed(answers, batch)
        await self._undo(wire)
        if interrupted:
            raise asyncio.CancelledError
        raise reason from error

    async def rollback(self) -> None:
        """End without effect; a statement that still runs is cut off."""
        wire, was_open = self._wire, self._state == "open"
        self._state = "ended"
        if wire is not None and was_open:
            await self._undo(wire)

    async def set_savepoint(self) -> str:
        """Set a savepoint, and return its name."""
        self._points += 1
        name = f"tidewire_{self._points}"
        await self.statements([(f"SAVEPOINT {name}", ())])
        return name

    async def back_to(self, name: str) -> None:
        """Undo what came after the savepoint *name*, errors included; nothing where the transaction is gone."""
        if self._state == "open" and not isinstance(self._failure, StoreUnavailable | TransactionLost):
            assert self._wire is not None, "an open unit has a connection"
            if await _quiet(self._wire):
                raise asyncio.CancelledError
            self._failure = None
            await self.statements([(f"ROLLBACK TO SAVEPOINT {name}", ()), (f"RELEASE SAVEPOINT {name}", ())])

    async def release(self, name: str) -> None:
        """Keep what came after the savepoint *name*."""
        await self.statements([(f"RELEASE SAVEPOINT {name}", ())])

    def _batch(self) -> list[Statement]:
        batch = [] if self._sent else [_BEGIN]
        if self._guard is not None:
            lane = (kept(self._guard.group), kept(self._guard.lane), self._guard.epoch)
            batch.append((self.core.guard_sql, lane))
        batch += self._later
        if self._leaving:
            inserts = self.core.outbox.statements(self._leaving)
            self._inserts = len(inserts)
            batch += inserts
        batch.append(_COMMIT)
        return batch

    def _failed(self, error: psycopg.Error, *, lost: bool) -> Exception:
        """Note what a failed statement of the user's means for this unit and return what is to be raised."""
        errors = self.core.errors
        reason: Exception = error
        if self._is_marked(error):
            reason = AlreadyMarked("the event has already taken effect")
        elif is_rerun(error):
            reason = TransactionLost(f"the transaction conflicted with another one: {_said(error)}; it runs again")
        elif is_server(error):
            reason = errors.typed("a statement of the handler", error)
            self.core.pool.forget_idle()
        elif lost and error.sqlstate is None:
            reason = errors.lost("a statement of the handler", error)
        if self._failure is None:
            self._failure = reason
        reason.__cause__ = None if reason is error else error
        return reason

    def _sealing_failed(self, answers: Answers, batch: Sequence[Statement]) -> Exception:
        """Return what a failure of the seal's batch means. Nothing is stored, unless the connection broke at COMMIT."""
        error = answers.error
        assert error is not None
        errors, failed = self.core.errors, batch[answers.failed] if answers.failed < len(batch) else _COMMIT
        if self._guard is not None and failed[0] == self.core.guard_sql and error.sqlstate == _NO_LANE:
            guard = self._guard
            return LaneFenced(f"{guard.group}: epoch {guard.epoch} of lane {guard.lane} has been taken over")
        if self._is_marked(error):
            return AlreadyMarked("the event has already taken effect")
        if is_rerun(error):
            return TransactionLost(f"the transaction conflicted with another one: {_said(error)}; it runs again")
        if is_too_slow(error) or error.sqlstate == _ABORTED:
            return error  # the handler's own: it did nothing for too long, or went on after an error
        if answers.lost:
            self.core.pool.forget_idle()
            if error.sqlstate is None or is_server(error):
                return errors.unavailable(
                    f"the connection was lost at the commit, and whether it happened is not known: {_said(error)}",
                    hint="the event comes again; if it has taken effect, its mark says so",
                )
        if failed is _COMMIT and not is_server(error):
            return error  # a deferred constraint of the user's own
        if is_server(error):
            self.core.pool.forget_idle()
        return errors.typed("the commit of a unit", error)

    def _is_marked(self, error: psycopg.Error) -> bool:
        return error.sqlstate == "23505" and error.diag.constraint_name == self.core.mark_index

    async def _undo(self, wire: Wire) -> None:
        """Roll back and give the connection back; one that does not answer is closed, and the server rolls back."""
        interrupted = await _quiet(wire)
        if wire.alive and wire.in_transaction:
            _, cut = await _to_the_end(wire, wire.send([_ROLLBACK]))
            interrupted = interrupted or cut
        self._end()
        if interrupted:
            raise asyncio.CancelledError

    def _end(self) -> None:
        self._state = "ended"
        if self._wire is not None:
            self.core.pool.give(self._wire)
            self._wire = None


async def _to_the_end(wire: Wire, sent: Sent) -> tuple[Answers, bool]:
    """Wait for the answers even if we are cancelled, for a few seconds; then the connection is cut. True: we were."""
    with suppress(asyncio.CancelledError):
        return await sent, False
    cut = asyncio.get_running_loop().call_later(_CUT_AFTER, wire.close)
    while not sent.answered:
        with suppress(asyncio.CancelledError):
            await sent
    cut.cancel()
    return sent.answers, True


async def _quiet(wire: Wire) -> bool:
    """Wait until nothing of this connection runs, cutting off what does; True if we were cancelled meanwhile."""
    if not wire.busy:
        return False
    ended = asyncio.shield(wire.quiet(patience=_PATIENCE, longest=_CUT_AFTER))
    interrupted = False
    while not ended.done():
        try:
            await asyncio.wait([ended])
        except asyncio.CancelledError:
            interrupted = True
    ended.result()
    return interrupted


def own_unit(unit: Unit, core: Core | None) -> PostgresUnit:
    """Return *unit* as one of the store whose *core* that is.

    Raises:
        TypeError: it is another store's: effect and mark in two databases are refused.
    """
    inner = unit if type(unit) is PostgresUnit else getattr(unit, "inner", unit)
    if not isinstance(inner, PostgresUnit) or inner.core is not core:
        raise TypeError(f"{type(unit).__name__} is not a unit of this store: effect and mark must share one database")
    return inner


def _said(error: psycopg.Error) -> str:
    return f"{str(error).strip().partition(chr(10))[0]} ({error.sqlstate or 'no SQLSTATE'})"
