"""Reading, and hearing of others' commits, on one connection and one thread: queries wait for nobody's long search."""

from __future__ import annotations

import asyncio
import logging
import os
import selectors
import threading
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from typing import Any, NamedTuple, TypeVar

import psycopg

from tidewire.errors import TransportClosed, TransportError, TransportRefused
from tidewire.transports.postgres.session import ERRORS, Line, Session

__all__ = ["Reader"]

T = TypeVar("T")
Job = Callable[[Session], Any]
_logger = logging.getLogger("tidewire.broker")
_LOOK_EVERY = 1.0


class _Entry(NamedTuple):
    job: Job
    future: asyncio.Future[Any]


class Reader:
    """Runs reads one after another; *heard* is called on the event loop with what comes on *channel*, and with None
    after a time in which nothing could be heard."""

    def __init__(self, line: Line, channel: str, heard: Callable[[str | None], None]) -> None:
        self._line = line
        self._channel = channel
        self._heard = heard
        self._loop = asyncio.get_running_loop()
        self._queue: deque[_Entry] = deque()
        self._closing = False
        self._ended: Exception | None = None
        self._listening: Session | None = None
        self._bell, self._rope = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
        self._thread = threading.Thread(target=self._live, name="tidewire-broker-read", daemon=True)
        self._thread.start()

    async def run(self, job: Callable[[Session], T]) -> T:
        """Run *job*, once more where the connection breaks. Cancelling the wait lets it come to its end.

        Raises:
            TransportUnavailable, TransportRefused: it cannot be read.
            TransportClosed: after `close`.
        """
        if self._closing or self._ended is not None:
            raise self._ended or TransportClosed(f"{self._line.place.shown} is closed")
        future: asyncio.Future[T] = self._loop.create_future()
        self._queue.append(_Entry(job, future))
        self._pull()
        return await future

    def close(self) -> None:
        """Refuse what waits and end the thread and its connection; blocks."""
        self._closing = True
        self._pull()
        self._thread.join()
        for descriptor in (self._bell, self._rope):
            os.close(descriptor)

    def _pull(self) -> None:
        with suppress(BlockingIOError):  # the pipe is full of it already
            os.write(self._rope, b"!")

    # --- on the thread ------------------------------------------------------------------------------------------

    def _live(self) -> None:
        """Work until `close`. What ends this before, everybody hears of, and nobody waits for a dead thread."""
        try:
            self._run()
        except Exception as error:
            _logger.error("tidewire.broker.reader_broken", extra={"broker": self._line.place.shown}, exc_info=error)
            self._ended = TransportRefused(f"{self._line.place.shown}: its reader ended with {error!r}")
        self._line.drop()
        while self._queue:
            self._answer(self._queue.popleft(), self._ended or TransportClosed(f"{self._line.place.shown} is closed"))

    def _run(self) -> None:
        while not self._closing:
            while self._queue and not self._closing:
                self._serve(self._queue.popleft())
            with suppress(TransportError):  # tried again at the next look
                self._listen()
            self._wait()

    def _serve(self, entry: _Entry) -> None:
        if entry.future.cancelled():
            return
        try:
            self._answer(entry, attempted(self._line, entry.job))
        except Exception as error:
            self._answer(entry, error)

    def _answer(self, entry: _Entry, result: Any) -> None:
        def deliver() -> None:
            if entry.future.done():
                return
            if isinstance(result, Exception):
                entry.future.set_exception(result)
            else:
                entry.future.set_result(result)

        with suppress(RuntimeError):  # the loop is closed: nobody waits any more
            self._loop.call_soon_threadsafe(deliver)

    def _listen(self) -> None:
        """Listen on the connection that there is now; what came while there was none, nobody has told us."""
        session = self._line.connected()
        if session is self._listening:
            return
        try:
            session.connection.add_notify_handler(lambda notice: self._tell(notice.payload))
            session.script(f'LISTEN "{self._channel}"')
        except psycopg.Error as error:
            self._line.drop()
            raise ERRORS.lost("listening", error) from None
        if self._listening is not None:
            _logger.info("tidewire.broker.reconnected", extra={"broker": self._line.place.shown})
        self._listening = session
        self._tell(None)

    def _wait(self) -> None:
        """Wait for work, or for what the server says unasked, or a moment."""
        session = self._line.session
        with selectors.DefaultSelector() as selector:
            selector.register(self._bell, selectors.EVENT_READ)
            if session is not None:
                selector.register(session.connection.pgconn.socket, selectors.EVENT_READ)
            ready = [key.fd for key, _ in selector.select(_LOOK_EVERY)]
        if self._bell in ready:
            with suppress(BlockingIOError):
                os.read(self._bell, 4_096)
        if session is not None and (len(ready) > 1 or self._bell not in ready):
            try:
                session.connection.pgconn.consume_input()
                while (notice := session.connection.pgconn.notifies()) is not None:
                    self._tell(notice.extra.decode())
            except psycopg.Error:
                self._line.drop()

    def _tell(self, payload: str | None) -> None:
        with suppress(RuntimeError):  # the loop is closed: nobody listens any more
            self._loop.call_soon_threadsafe(self._heard, payload)


def attempted(line: Line, job: Callable[[Session], T]) -> T:
    """Run *job*, which only reads, on *line*'s session; once more if that one is broken, which only using it shows.

    Raises:
        TransportUnavailable, TransportRefused: there is no session, or it fails.
    """
    for last in (False, True):
        session = line.connected()
        try:
            return job(session)
        except psycopg.Error as error:
            if not session.has_lost(error):
                raise ERRORS.typed(f"reading {line.place.shown}", error) from error
            line.drop()
            if last:
                raise ERRORS.lost(f"reading {line.place.shown}", error) from None
    raise AssertionError("two attempts")
