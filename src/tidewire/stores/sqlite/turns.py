"""Turns and shared transactions: how many units become one commit, and never mix.

A unit takes the *turn* at its first statement and keeps it until it is sealed or rolled back; turns are first
come, first served. Units whose turns follow one another share one SQLite transaction, each in a savepoint of its
own, until nobody waits for a turn, 64 have shared it, or 5 ms have passed; then it is committed on the writer
thread. Statements run on the event loop (a thread hop costs ten statements), commits never do.
"""

from __future__ import annotations

import asyncio
import logging
import sqlite3
import threading
from collections import deque
from collections.abc import Callable, Generator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from datetime import timedelta
from typing import Any, Protocol, TypeVar

from tidewire.errors import StoreUnavailable, TransactionLost
from tidewire.kit.sqlite_file import SqliteFile
from tidewire.model import Message

__all__ = ["Leaving", "Shared", "Turns"]

T = TypeVar("T")
_logger = logging.getLogger("tidewire.store")
_TURNS_MAX = 64
_AGE_MAX = 0.005
_BRIEF = 0.001
_PATIENCE = 0.003
_WAIT = timedelta(seconds=30)
_COMMIT_BYTES, _ROW_BYTES, _ROWS_EACH = 12_288, 1_024, 3
_BUSY_MS = 5_000


class Leaving:
    """A message on its way into the outbox: its columns, its due time if it is to wait, the row it was given."""

    __slots__ = ("columns", "due", "message", "row")

    def __init__(self, message: Message, columns: tuple[Any, ...], due: int | None) -> None:
        self.message = message
        self.columns = columns
        self.due = due
        self.row = 0


class Rows(Protocol):
    """Where the messages of a shared transaction go."""

    def write(self, connection: sqlite3.Connection, leaving: Sequence[Leaving]) -> None:
        """Insert them, last of all in their transaction; on the writer thread."""
        ...

    def written(self, leaving: Sequence[Leaving]) -> None:
        """They are durable; on the event loop."""
        ...


class Taker(Protocol):
    """Who takes a turn; told when the transaction is gone under its feet."""

    def lose(self) -> None:
        """The transaction was lost while this one had the turn."""
        ...


class Shared:
    """One transaction that units share; awaiting it waits until it is durable, and cancelling that is harmless.

    Raises (when awaited):
        TransactionLost: nothing of it is stored.
        StoreUnavailable: nothing of it is stored; the disk is full or the like.
    """

    __slots__ = ("future", "guarded", "leaving", "since", "turns")

    def __init__(self, future: asyncio.Future[None], since: float) -> None:
        self.future = future
        self.since = since
        self.turns = 0
        self.guarded: set[tuple[str, str, int]] = set()
        self.leaving: list[Leaving] = []

    def __await__(self) -> Generator[Any, None, None]:
        if not self.future.done():
            yield from asyncio.shield(self.future).__await__()
        self.future.result()


class Turns:
    """The one writer of a store's file in this process."""

    def __init__(self, file: SqliteFile, connection: sqlite3.Connection, outbox: Rows) -> None:
        self.file = file
        self.connection = connection
        self._outbox = outbox
        connection.execute("PRAGMA busy_timeout=0")  # the event loop never waits for a lock
        self.holder: Taker | None = None
        self.shared: Shared | None = None
        self._loop = asyncio.get_running_loop()
        self.clock = self._loop.time
        self._loop_thread = threading.get_ident()
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="tidewire-store")
        self._waiting: deque[asyncio.Future[None]] = deque()
        self._patient: list[asyncio.Future[None]] = []
        self._committing: asyncio.Future[None] | None = None
        self._closing_soon = False
        self._granted = 0.0

    def saturated(self) -> bool:
        """Whether one more unit could only queue: a commit is on its way, or somebody has just got the turn.

        Handlers that all stand in line cost a step of the loop each; a turn that is held for longer is held by
        somebody who waits for something else, and others may do so meanwhile.
        """
        if self._committing is not None:
            return True
        return self.holder is not None and self._loop.time() - self._granted < _BRIEF

    def take_at_once(self, taker: Taker) -> Shared | None:
        """Take the turn in the transaction that is open, if nobody has it or waits for it; else as `take`."""
        shared = self.shared
        if shared is None or self.holder is not None or self._committing is not None or self._waiting:
            return None
        self.holder = taker
        self._granted = self._loop.time()
        self._set_savepoint(shared)
        return shared

    async def take(self, taker: Taker) -> Shared:
        """Wait for the turn and return the transaction it is in; the savepoint ``unit`` is set.

        Raises:
            StoreUnavailable, StoreRefused: the file cannot be written now; the turn was given back.
        """
        if self.holder is not None or self._committing is not None or self._waiting:
            await self._wait_in_line()
        self.holder = taker
        self._granted = self._loop.time()
        try:
            shared = self.shared or await self._begin()
        except BaseException:
            self.give()
            raise
        self._set_savepoint(shared)
        return shared

    def give(self, *, close: bool = False) -> None:
        """End the holder's turn; *close* commits the shared transaction at once."""
        self.holder = None
        shared = self.shared
        if shared is None:
            self._next()
        elif close or shared.turns >= _TURNS_MAX or self._loop.time() - shared.since > _AGE_MAX:
            self._commit()
        elif self._waiting and self._next():
            return
        elif not self._closing_soon:  # whoever is ready now may still join
            self._closing_soon = True
            self._loop.call_soon(self._commit_if_free)

    def lost(self) -> None:
        """SQLite has rolled the transaction back by itself: tell everybody who had a part in it. From any thread."""
        if threading.get_ident() != self._loop_thread:
            self._loop.call_soon_threadsafe(self.lost)
            return
        shared, self.shared = self.shared, None
        if shared is not None:
            _fail(shared.future, TransactionLost("another statement rolled the shared transaction back; run again"))
            self.file.turn.release()
        if self.holder is not None:
            self.holder.lose()

    async def company(self) -> None:
        """Wait a little for a transaction to share: what is in no hurry need not have one, and its sync, alone."""
        if self.shared is not None:
            return
        waiting = self._loop.create_future()
        self._patient.append(waiting)
        timer = self._loop.call_later(_PATIENCE, _let_go, waiting)
        try:
            await waiting
        finally:
            timer.cancel()
            self._patient.remove(waiting)

    async def on_thread(self, function: Callable[[], T]) -> T:
        """Run *function* on the writer thread; when cancelled, wait for its end first."""
        running = self._loop.run_in_executor(self._thread, function)
        try:
            return await asyncio.shield(running)
        except asyncio.CancelledError:
            await asyncio.wait([running])
            raise

    async def close(self) -> None:
        """Commit what is open, after every turn that was asked for, and close the connection.

        A unit that nobody ends is rolled back after 30 s.
        """
        try:
            await self._idle()
        finally:
            if self.shared is not None and self.holder is None and self._committing is None:
                self._commit()
            try:
                await self.on_thread(lambda: self.file.close_connection(self.connection))
            finally:
                self._thread.shutdown(wait=False)

    async def _idle(self) -> None:
        deadline = self._loop.time() + _WAIT.total_seconds()
        while self.holder is not None or self._committing is not None or self._waiting or self.shared is not None:
            if self.holder is None and self._committing is None and not self._waiting:
                self._commit()
            elif self._loop.time() > deadline:
                _logger.error("tidewire.store.unit_left_open", extra={"file": self.file.what})
                return
            await asyncio.sleep(0.001)

    async def _wait_in_line(self) -> None:
        place: asyncio.Future[None] = self._loop.create_future()
        self._waiting.append(place)
        try:
            await place
        except asyncio.CancelledError:
            if place.done() and not place.cancelled():
                self.give()  # it was our turn already: pass it on
            else:
                with suppress(ValueError):  # whoever passed the turn on may have passed over us already
                    self._waiting.remove(place)
            raise

    def _next(self) -> bool:
        """Give the turn to whoever has waited longest; False if nobody waits any more."""
        while self._waiting:
            place = self._waiting.popleft()
            if not place.done():
                self.holder = _RESERVED
                self._granted = self._loop.time()
                place.set_result(None)
                return True
        return False

    def _set_savepoint(self, shared: Shared) -> None:
        try:
            with self.file.mapped:
                self.connection.execute("SAVEPOINT unit")
        except BaseException:
            self.give()
            raise
        shared.turns += 1

    async def _begin(self) -> Shared:
        self.file.check_usable()
        if not self._begin_at_once():
            try:
                await self.on_thread(self._begin_blocking)
            except asyncio.CancelledError:
                if self.connection.in_transaction:  # it began all the same: somebody has to end it
                    self.shared = Shared(self._loop.create_future(), self._loop.time())
                raise
        shared = self.shared = Shared(self._loop.create_future(), self._loop.time())
        for waiting in self._patient:
            _let_go(waiting)
        return shared

    def _begin_at_once(self) -> bool:
        """Begin on the loop if nobody else is writing; False if it has to be waited for."""
        if not self.file.turn.try_acquire():
            self.file.turn.give_up()
            return False
        try:
            with self.file.mapped:
                self.connection.execute("BEGIN IMMEDIATE")
        except StoreUnavailable as error:
            self.file.turn.release()
            if getattr(error.__cause__, "sqlite_errorcode", 0) & 0xFF == sqlite3.SQLITE_BUSY:
                return False  # a program that does not know the turn holds SQLite's own lock
            raise
        except BaseException:
            self.file.turn.release()
            raise
        return True

    def _begin_blocking(self) -> None:
        if not self.file.turn.acquire(_WAIT):
            raise StoreUnavailable(f"{self.file.what}: another process has been writing for {_WAIT}")
        try:
            with self.file.mapped:
                self.connection.execute(f"PRAGMA busy_timeout={_BUSY_MS}")
                try:
                    self.connection.execute("BEGIN IMMEDIATE")
                finally:
                    self.connection.execute("PRAGMA busy_timeout=0")
        except BaseException:
            self.file.turn.release()
            raise

    def _commit_if_free(self) -> None:
        self._closing_soon = False
        if self.shared is not None and self.holder is None and self._committing is None:
            self._commit()

    def _commit(self) -> None:
        """Send the open transaction to the disk. Turns wait until it is there."""
        shared, self.shared = self.shared, None
        assert shared is not None
        self._committing = self._loop.run_in_executor(self._thread, self._commit_blocking, shared)
        self._committing.add_done_callback(lambda done: self._committed(shared, done))

    def _commit_blocking(self, shared: Shared) -> None:
        try:
            before = self.connection.total_changes
            with self.file.mapped:
                try:
                    if shared.leaving:
                        self._outbox.write(self.connection, shared.leaving)
                    self.connection.execute("COMMIT")
                except BaseException:
                    if self.connection.in_transaction:
                        self.connection.execute("ROLLBACK")
                    raise
            changes = self.connection.total_changes - before + shared.turns * _ROWS_EACH
            self.file.committed(self.connection, size=_COMMIT_BYTES + changes * _ROW_BYTES)
        finally:
            self.file.turn.release()

    def _committed(self, shared: Shared, done: asyncio.Future[None]) -> None:
        self._committing = None
        error = None if done.cancelled() else done.exception()
        if error is not None:
            _fail(shared.future, error)
        elif not shared.future.done():
            shared.future.set_result(None)
            if shared.leaving:
                self._outbox.written(shared.leaving)
        self._next()


class _Reserved:
    """Holds the place between giving a turn to somebody and their waking up."""

    def lose(self) -> None:
        return None


_RESERVED = _Reserved()


def _let_go(waiting: asyncio.Future[None]) -> None:
    if not waiting.done():
        waiting.set_result(None)


def _fail(future: asyncio.Future[None], error: BaseException) -> None:
    if not future.done():
        future.set_exception(error)
        future.exception()  # nobody may be waiting; that is no reason to complain at the end
