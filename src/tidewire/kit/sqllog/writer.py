"""The one writer of a log in this process: whatever waits becomes one transaction, one sync, one wake-up.

A job is a function of the connection; it runs on the writer thread inside a transaction with its neighbours. If one
of them fails, the transaction is rolled back and each runs again alone, so that only the culprit hears of it.
A *patient* job waits a little for others to share a sync with: an ack that is late costs nothing but a duplicate.
"""

from __future__ import annotations

import asyncio
import logging
import threading
from collections import deque
from collections.abc import Callable, Sequence
from contextlib import suppress
from itertools import groupby
from typing import Any, NamedTuple, TypeVar

from tidewire.errors import TransportClosed, TransportError, TransportRefused, TransportUnavailable
from tidewire.kit.bell import Bell
from tidewire.kit.sqllog.home import Connection, Doubtful, Home
from tidewire.kit.sqllog.names import Names

__all__ = ["Writer"]

T = TypeVar("T")
Job = Callable[[Connection], Any]
Committed = Callable[[set[int], set[int]], None]
_logger = logging.getLogger("tidewire.broker")
_JOBS_MAX = 4_096
_PATIENCE = 0.003
_LULL = 0.002
_UPKEEP_EVERY = 1.0


class Entry(NamedTuple):
    """A job on its way; *vital* ones (settles) may use the reserve when the disk is full.

    *then* is called on the event loop once the job is durable, whether or not anybody still waits for it; *doubt*
    gives the result where nobody knows whether it is.
    """

    job: Job
    future: asyncio.Future[Any]
    vital: bool
    patient: bool
    then: Callable[[], None] | None
    doubt: Callable[[], Any] | None


class Writer:
    """Runs jobs. After a commit that touched topics or group-topics, *wake* is called with them on the event loop;
    after one that may or may not stand, *doubted*."""

    def __init__(self, home: Home, names: Names, *, wake: Committed, doubted: Callable[[], None]) -> None:
        self._home = home
        self._names = names
        self._tell = home.tell
        self._wake = wake
        self._doubted = doubted
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
        self._upkeep_at = self._loop.time() + _UPKEEP_EVERY
        self._thread = threading.Thread(target=self._live, name="tidewire-broker", daemon=True)
        self._thread.start()

    async def submit(
        self,
        job: Callable[[Connection], T],
        *,
        vital: bool = False,
        patient: bool = False,
        then: Callable[[], None] | None = None,
        doubt: Callable[[], T] | None = None,
    ) -> T:
        """Run *job* and return its result once it is durable. Cancelling the wait undoes neither it nor *then*.

        Raises:
            TransportUnavailable: nothing can be written now; the job has no effect.
            Doubtful: it has its effect or none, and there is no *doubt* to return.
            TransportRefused: nothing can be written any more; neither can it later.
            TransportClosed: after `close`, or in a forked child.
        """
        self._home.check_usable()
        while len(self._queue) >= _JOBS_MAX and not self._closing:  # noqa: ASYNC110 - the thread knows no asyncio.Event
            await asyncio.sleep(0.001)
        if self._closing:
            raise TransportClosed(f"{self._home.what} is closed")
        future: asyncio.Future[T] = self._loop.create_future()
        self._queue.append(Entry(job, future, vital, patient, then, doubt))
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
        """Finish what waits and end the thread, and with it the home's writing; blocks."""
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
            self._broken = _as_refused(error, self._home.what)
            _logger.error("tidewire.broker.writer_broken", extra={"broker": self._home.what}, exc_info=error)
            with suppress(RuntimeError):
                self._loop.call_soon_threadsafe(self._fail_all)
        with suppress(TransportError):
            self._home.stop()

    def _fail_all(self) -> None:
        """On the event loop: give everybody who waits the error that ended the thread."""
        left, self._at_work = [*self._at_work, *self._queue], ()
        self._queue.clear()
        for entry in left:
            if not entry.future.done():
                entry.future.set_exception(self._broken or TransportClosed(f"{self._home.what} is closed"))

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
            with suppress(TransportUnavailable):
                self._home.rest(lambda: not self._bell.wait(_LULL))
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
        if now >= self._upkeep_at:
            self._upkeep_at = now + _UPKEEP_EVERY
            self._home.upkeep()

    def _commit(self, batch: Sequence[Entry]) -> None:
        try:
            results: list[Any] = self._transaction([entry.job for entry in batch])
        except Exception as error:
            results = [error] if len(batch) == 1 else [TransportUnavailable("not run")] * len(batch)
            if isinstance(error, TransportUnavailable) and error.__cause__ is None:
                # The turn did not come: each alone would wait for it as long.
                results = [error] * len(batch)
            elif len(batch) > 1 or (batch[0].vital and self._home.make_room(error)):
                results = [self._alone(entry) for entry in batch]
        self._deliver(batch, results)

    def _deliver(self, batch: Sequence[Entry], results: Sequence[Any]) -> None:
        """Tell everybody, here with one wake-up of the loop for the whole batch."""
        topics, subs, self.topics, self.subs = self.topics, self.subs, set(), set()
        touched = bool(topics or subs)
        if touched:
            self._tell(topics, subs)

        doubtful = any(isinstance(result, Doubtful) for result in results)

        def deliver() -> None:
            if doubtful:
                self._doubted()
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
            if not (entry.vital and self._home.make_room(error)):
                return error
        try:
            return self._transaction([entry.job])[0]
        except Exception as error:
            return error

    def _transaction(self, jobs: Sequence[Job]) -> list[Any]:
        def work(connection: Connection) -> list[Any]:
            self._names.begin()
            results = _run(connection, jobs)
            if self.topics or self.subs:
                self._home.announce(connection, topics=self.topics, subs=self.subs)
            return results

        results = self._home.write(work)
        self._names.stand()
        return results


def _run(connection: Connection, jobs: Sequence[Job]) -> list[Any]:
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
        if isinstance(result, Doubtful) and entry.doubt is not None:
            entry.future.set_result(entry.doubt())
        elif isinstance(result, BaseException):
            entry.future.set_exception(result)
        else:
            entry.future.set_result(result)


def _as_refused(error: Exception, what: str) -> TransportRefused:
    if isinstance(error, TransportRefused):
        return error
    return TransportRefused(f"{what}: its writer ended with {type(error).__name__}: {error}")
