"""Searches beside everything else: a connection and a thread of their own, made by the first one."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

from tidewire.errors import TransportClosed
from tidewire.kit.sqllog.home import Connection
from tidewire.transports.postgres.reader import attempted
from tidewire.transports.postgres.session import Line, Session

__all__ = ["Beside", "snapshot"]

T = TypeVar("T")


class Beside:
    """Runs jobs one after another, each on one committed state."""

    def __init__(self, line: Line) -> None:
        self._line = line
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="tidewire-broker-look")
        self._closed = False

    async def run(self, job: Callable[[Connection], T]) -> T:
        """Run *job*; cancelling the wait lets one that has begun come to its end.

        Raises:
            TransportUnavailable, TransportRefused: it cannot be read.
            TransportClosed: after `close`.
        """
        if self._closed:
            raise TransportClosed(f"{self._line.place.shown} is closed")
        return await asyncio.get_running_loop().run_in_executor(self._thread, self._job, job)

    def close(self) -> None:
        """Let the job that runs come to its end and refuse those that wait; blocks."""
        self._closed = True
        self._thread.shutdown()
        self._line.drop()

    def _job(self, job: Callable[[Connection], T]) -> T:
        if self._closed:
            raise TransportClosed(f"{self._line.place.shown} is closed")
        return attempted(self._line, lambda session: snapshot(session, job))


def snapshot(session: Session, job: Callable[[Connection], T]) -> T:
    """Run *job* on one committed state.

    Raises:
        psycopg.Error: it cannot be read.
    """
    session.script("BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY")
    try:
        return job(session)
    finally:
        if not session.broken:
            session.script("ROLLBACK")
