"""Faults planted on purpose into a recorded process, to see that the enumeration of disk states bites."""

from __future__ import annotations

import os
import sqlite3
import threading
from collections.abc import Callable
from typing import Any

from tidewire.kit import sqlite_file
from tidewire.kit.sqllog import receiver, writer
from tidewire.kit.sqllog.home import Connection
from tidewire.stores.sqlite.inbox import SqliteInbox


def _after_settings(statement: str) -> Callable[[], None]:
    """Return a plant that runs *statement* on every connection behind the settings that make commits durable."""

    def plant() -> None:
        configure = sqlite_file.SqliteFile._configure

        def planted(self: Any, connection: sqlite3.Connection, cache_bytes: int) -> None:
            configure(self, connection, cache_bytes)
            connection.execute(statement).fetchall()

        sqlite_file.SqliteFile._configure = planted  # type: ignore[method-assign]

    return plant


def _unsynced_draft() -> None:
    """A new file gets its name before its content is on the disk."""
    sqlite_file._sync = lambda path, flags: None


def _settle_in_two() -> None:
    """A move is two transactions: the delivery is settled, then its messages are stored."""
    move_cursor = receiver.move_cursor

    def planted(connection: Connection, *arguments: Any) -> bool:
        moved = move_cursor(connection, *arguments)
        connection.execute("COMMIT")
        connection.execute("BEGIN IMMEDIATE")
        return moved

    receiver.move_cursor = planted


def _ack_first() -> None:
    """The writer answers, and only then commits."""
    said, write = threading.Event(), os.write

    def telling(descriptor: int, data: bytes) -> int:
        written = write(descriptor, data)
        if descriptor == 1:
            said.set()
        return written

    def planted(self: Any, batch: Any) -> None:
        def early(connection: Any) -> None:
            self.topics, self.subs = set(), set()
            results = writer._run(connection, [entry.job for entry in batch])
            said.clear()
            self._loop.call_soon_threadsafe(writer._resolve, batch, results)
            said.wait(0.5)  # until the caller has believed it, if it is one who says so

        self._home.write(early)

    os.write = telling
    writer.Writer._commit = planted  # type: ignore[method-assign]


def _mark_apart() -> None:
    """An inbox mark is committed by itself, before the effect it belongs to."""
    mark = SqliteInbox.mark

    async def planted(self: Any, unit: Any, *arguments: Any) -> None:
        own = type(unit)(unit.turns, None, "", {})
        await mark(self, own, *arguments)
        await (await own.seal())

    SqliteInbox.mark = planted  # type: ignore[method-assign]


PLANTS: dict[str, Callable[[], None]] = {
    "normal": _after_settings("PRAGMA synchronous=NORMAL"),
    "off": _after_settings("PRAGMA synchronous=OFF"),
    "unsynced-draft": _unsynced_draft,
    "settle-in-two": _settle_in_two,
    "ack-first": _ack_first,
    "mark-apart": _mark_apart,
}
