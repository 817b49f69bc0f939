"""The one writer of a broker file in this process: whatever waits becomes one transaction, one sync, one wake-up.

A job is a function of the connection; it runs on the writer thread inside a transaction with its neighbours. If one
of them fails, the transaction is rolled back and each runs again alone, so that only the culprit hears of it.
A *patient* job waits a little for others to share a sync with: an ack that is late costs nothing but a duplicate.
"""

from __future__ import annotations

import asyncio
import logging
import os
import sqlite3
import threading
from collections import deque
from collections.abc import Callable, Sequence
from contextlib import suppress
from itertools import groupby
from typing import Any, NamedTuple, TypeVar

from tidewire.errors import TransportClosed, TransportError, TransportRefused, TransportUnavailable
from tidewire.kit.bell import Bell
from tidewire.kit.sqlite_errors import is_full
from tidewire.kit.sqlite_file import SqliteFile

__all__ = ["Writer"]

T = TypeVar("T")
Job = Callable[[sqlite3.Connection], Any]
Committed = Callable[[set[int], set[int]], None]
_logger = logging.getLogger("tidewire.sqlite")
_JOBS_MAX = 4_096
_PATIENCE = 0.003
_LULL = 0.002
_COMMIT_BYTES, _ROW_BYTES = 12_288, 2_048
_RESERVE_BYTES = 1 << 20
_LOOK_AT_RESERVE_EVERY = 1.0


class Entry(NamedTuple):
    """A job on its way; *vital* ones (settles) may use the reserve when the disk is full.

    *then* is called on the event loop once the job is durable, whether or not anybody still waits for it.
    """

    job: Job
    future: asyncio.Future[Any]
    vital: bool
    patient: bool
    then: Callable[[], None] | None


class Writer:
    """Runs jobs. After a commit that touched topics or group-topics, *tell* is called with them on the writer thread,
    and *wake* on the event loop."""

    def __init__(self, file: SqliteFile, connection: sqlite3.Connection, *, tell: Committed, wake: Committed) -> None:
        self.file = file
        self._connection = connection
        self._tell = tell
        self._wake = wake
        self._loop = asyncio.get_running_loop()
        self._queue: deque[Entry] = deque()
        self._at_work: Sequence[Entry] = ()
        self._bell = Bell()
        self._closing = False
        self._broken: TransportRefused | None = None
        self._periodic: dict[object, tuple[float, Job]] = {}
        self._due: dict[object, float] = {}
        self.topics: set[int] = set()
        self.subs: set[int] = set()
        self._reserve = f"{file.path}-reserve"
        self._look_at_reserve_at = self._loop.time() + _LOOK_AT_RESERVE_EVERY
        self._keep_reserve()
        self._thread = threading.Thread(target=self._live, name="tidewire-broker", daemon=True)
        self._thread.start()

    async def submit(
        self,
        job: Callable[[sqlite3.Connection], T],
        *,
        vital: bool = False,
        patient: bool = False,
        then: Callable[[], None] | None = None,
    ) -> T:
        """Run *job* and return its result once it is durable. Cancelling the wait undoes neither it nor *then*.

        Raises:
            TransportUnavailable: the file cannot be written now; the job has no effect.
            TransportRefused: the file cannot be written any more; neither can it later.
            TransportClosed: after `close`, or in a forked child.
        """
        self.file.check_usable()
        while len(self._queue) >= _JOBS_MAX and not self._closing:  # noqa: ASYNC110 - the thread knows no asyncio.Event
            await asyncio.sleep(0.001)
        if self._closing:
            raise TransportClosed(f"{self.file.what} is closed")
        future: asyncio.Future[T] = self._loop.create_future()
        self._queue.append(Entry(job, future, vital, patient, then))
        self._bell.ring()
        if self._broken is not None:
            self._fail_all()
        return await future

    def every(self, owner: object, seconds: float, job: Job) -> None:
        """Run *job* about every *seconds* from the writer thread, whatever the event loop is doing."""
        self._periodic[owner] = (seconds, job)

    def no_more(self, owner: object) -> None:
        """End what `every` began."""
        self._periodic.pop(owner, None)

    def close(self) -> None:
        """Finish what waits and end the thread; blocks. The connection is closed in the turn."""
        if not self._closing:
            self._closing = True
            self._bell.ring()
            self._thread.join()
            with suppress(RuntimeError):  # what came in that instant; the loop is closed: nobody waits any more
                self._loop.call_soon_threadsafe(self._fail_all)

    # --- on the writer thread -----------------------------------------------------------------------------------

    def _live(self) -> None:
        """Work until `close`. What ends this before, everybody hears of, and nobody waits for a dead thread."""
        try:
            self._run()
        except Exception as error:
            self._broken = _as_refused(error, self.file.what)
            _logger.error("tidewire.sqlite.writer_broken", extra={"file": self.file.what}, exc_info=error)
            with suppress(RuntimeError):
                self._loop.call_soon_threadsafe(self._fail_all)
        with suppress(TransportError):
            self.file.close_connection(self._connection)

    def _fail_all(self) -> None:
        """On the event loop: give everybody who waits the error that ended the thread."""
        left, self._at_work = [*self._at_work, *self._queue], ()
        self._queue.clear()
        for entry in left:
            if not entry.future.done():
                entry.future.set_exception(self._broken or TransportClosed(f"{self.file.what} is closed"))

    def _run(self) -> None:
        while True:
            batch = self._at_work = self._next_batch()
            if batch:
                self._commit(batch)
            self._at_work = ()
            self._run_periodic()
            if self._closing and not self._queue:
                break

    def _next_batch(self) -> list[Entry]:
        """Wait for jobs, and for company if all of them are patient; nothing where something periodic may be due."""
        if not self._queue:
            # The log is copied in a lull, so that it seldom has to be while somebody waits.
            if self.file.untidy and not self._bell.wait(_LULL):
                with suppress(TransportUnavailable), self.file.writing(), self.file.mapped:
                    self.file.tidy(self._connection)
            if not self._queue:
                self._bell.wait(self._rest())
        batch = self._waiting()
        ends_at = self._loop.time() + _PATIENCE
        while batch and all(entry.patient for entry in batch) and not self._closing:
            if not self._bell.wait(ends_at - self._loop.time()):
                break
            batch += self._waiting()
        return batch

    def _waiting(self) -> list[Entry]:
        return [self._queue.popleft() for _ in range(len(self._queue))]

    def _rest(self) -> float:
        return min((seconds for seconds, _ in list(self._periodic.values())), default=1.0) / 2

    def _run_periodic(self) -> None:
        now = self._loop.time()
        for owner, (seconds, job) in list(self._periodic.items()):
            if now >= self._due.get(owner, 0.0):
                self._due[owner] = now + seconds
                with suppress(TransportUnavailable):
                    self._transaction([job])
                    self._deliver((), ())
        for owner in [owner for owner in self._due if owner not in self._periodic]:
            del self._due[owner]
        if now >= self._look_at_reserve_at:
            self._look_at_reserve_at = now + _LOOK_AT_RESERVE_EVERY
            self._lay_reserve_in_again()

    def _commit(self, batch: Sequence[Entry]) -> None:
        try:
            results: list[Any] = self._transaction([entry.job for entry in batch])
        except Exception as error:
            results = [error] if len(batch) == 1 else [TransportUnavailable("not run")] * len(batch)
            if isinstance(error, TransportUnavailable) and error.__cause__ is None:
                # The turn did not come: each alone would wait for it as long.
                results = [error] * len(batch)
            elif len(batch) > 1 or (batch[0].vital and is_full(error.__cause__)):
                results = [self._alone(entry) for entry in batch]
        self._deliver(batch, results)

    def _deliver(self, batch: Sequence[Entry], results: Sequence[Any]) -> None:
        """Tell everybody, here with one wake-up of the loop for the whole batch."""
        topics, subs, self.topics, self.subs = self.topics, self.subs, set(), set()
        touched = bool(topics or subs)
        if touched:
            self._tell(topics, subs)

        def deliver() -> None:
            _resolve(batch, results)
            if touched:
                self._wake(topics, subs)

        if batch or touched:
            with suppress(RuntimeError):  # the loop is closed: nobody waits any more
                self._loop.call_soon_threadsafe(deliver)

    def _alone(self, entry: Entry) -> Any:
        try:
            return self._transaction([entry.job])[0]
        except Exception as error:
            if not (entry.vital and is_full(error.__cause__) and self._spend_reserve()):
                return error
        try:
            return self._transaction([entry.job])[0]
        except Exception as error:
            return error

    def _transaction(self, jobs: Sequence[Job]) -> list[Any]:
        connection = self._connection
        before = connection.total_changes
        with self.file.writing(), self.file.mapped:
            connection.execute("BEGIN IMMEDIATE")
            try:
                results = _run(connection, jobs)
                connection.execute("COMMIT")
            except BaseException:
                if connection.in_transaction:
                    connection.execute("ROLLBACK")
                raise
            self.file.committed(connection, size=_COMMIT_BYTES + (connection.total_changes - before) * _ROW_BYTES)
        return results

    # --- a reserve for a full disk: acks need room too ------------------------------------------------------------

    def _keep_reserve(self) -> None:
        try:
            descriptor = os.open(self._reserve, os.O_CREAT | os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
        except OSError:
            return
        try:
            if os.fstat(descriptor).st_size < _RESERVE_BYTES:
                os.posix_fallocate(descriptor, 0, _RESERVE_BYTES)
        except OSError:
            return
        finally:
            os.close(descriptor)

    def _lay_reserve_in_again(self) -> None:
        """Make it whole again, whoever has spent it, once there is room for a few of its size."""
        try:
            if os.stat(self._reserve).st_size >= _RESERVE_BYTES:
                return
            disk = os.statvfs(self._reserve)
        except OSError:
            return
        if disk.f_bavail * disk.f_frsize >= 3 * _RESERVE_BYTES:
            self._keep_reserve()

    def _spend_reserve(self) -> bool:
        try:
            os.truncate(self._reserve, 0)
        except OSError:
            return False
        return True


def _run(connection: sqlite3.Connection, jobs: Sequence[Job]) -> list[Any]:
    """Run *jobs* in order; neighbours of a kind that knows how are run together, and mean the same."""
    results: list[Any] = []
    for kind, neighbours in groupby(jobs, type):
        some, together = list(neighbours), getattr(kind, "together", None)
        results += [job(connection) for job in some] if together is None else together(connection, some)
    return results


def _resolve(batch: Sequence[Entry], results: Sequence[Any]) -> None:
    for entry, result in zip(batch, results, strict=True):
        if entry.then is not None and not isinstance(result, BaseException):
            entry.then()
        if entry.future.done():
            continue
        if isinstance(result, BaseException):
            entry.future.set_exception(result)
        else:
            entry.future.set_result(result)


def _as_refused(error: Exception, what: str) -> TransportRefused:
    if isinstance(error, TransportRefused):
        return error
    return TransportRefused(f"{what}: its writer ended with {type(error).__name__}: {error}")
