"""Reading beside everything else: a connection on a thread of its own, for what may take longer than the loop waits."""

from __future__ import annotations

import asyncio
import sqlite3
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

from tidewire.errors import TransportClosed
from tidewire.kit.sqlite_file import SqliteFile

__all__ = ["Reading"]

T = TypeVar("T")


class Reading:
    """Runs reads one after another. The thread and its connection are made by the first one and kept until `close`."""

    def __init__(self, file: SqliteFile) -> None:
        self._file = file
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="tidewire-broker-read")
        self._connection: sqlite3.Connection | None = None
        self._closed = False

    async def run(self, job: Callable[[sqlite3.Connection], T]) -> T:
        """Run *job* on one committed state of the file. Cancelling the wait lets a job that has begun come to its end.

        A long search is many jobs: others get their turn in between, and a state that is not looked at any more does
        not keep the write-ahead log from being emptied.

        Raises:
            TransportUnavailable, TransportRefused: the file cannot be read.
            TransportClosed: after `close`, or in a forked child.
        """
        self._check_open()
        return await asyncio.get_running_loop().run_in_executor(self._thread, self._together, job)

    def close(self) -> None:
        """Let the job that runs come to its end, refuse those that wait, and close the connection; blocks."""
        self._closed = True
        self._thread.shutdown()
        if self._connection is not None:
            self._file.close_connection(self._connection)
            self._connection = None

    def _together(self, job: Callable[[sqlite3.Connection], T]) -> T:
        self._check_open()
        if self._connection is None:
            self._connection = self._file.connect(read_only=True)
        connection = self._connection
        with self._file.mapped:
            connection.execute("BEGIN")
            try:
                return job(connection)
            finally:
                if connection.in_transaction:  # some errors of SQLite end it
                    connection.execute("COMMIT")

    def _check_open(self) -> None:
        self._file.check_usable()
        if self._closed:
            raise TransportClosed(f"{self._file.what} is closed")
