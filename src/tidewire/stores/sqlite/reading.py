"""The read connection: committed rows only, short reads, on the event loop."""

from __future__ import annotations

import sqlite3
from collections.abc import Callable, Generator
from contextlib import contextmanager
from typing import TypeAlias

from tidewire.kit.sqlite_file import SqliteFile

__all__ = ["Read", "Reader"]

Read: TypeAlias = Callable[..., sqlite3.Cursor]


class Reader:
    """Reads beside the writer: neither waits for the other in WAL mode."""

    def __init__(self, file: SqliteFile, connection: sqlite3.Connection) -> None:
        self.connection = connection
        self.file = file

    @contextmanager
    def reading(self, together: bool = False) -> Generator[Read]:
        """Yield a function that runs queries; with *together* all of them see one state.

        Raises:
            StoreUnavailable, StoreRefused: the file cannot be read.
        """
        self.file.check_usable()
        with self.file.mapped:
            if not together:
                yield self.connection.execute
                return
            self.connection.execute("BEGIN")
            try:
                yield self.connection.execute
            finally:
                self.connection.execute("COMMIT")

    def version(self) -> int:
        """Return a number that changes when anybody commits."""
        with self.reading() as read:
            return int(read("PRAGMA data_version").fetchone()[0])
