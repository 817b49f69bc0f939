"""Power loss on the ground of files: what was synced is kept; of the rest anything, nothing, or any of its sectors.

Nothing is written between two statements, so what is at risk is what a statement has written and not synced: frames
of SQLite's log (all that is committed with ``synchronous=FULL`` is certain; with ``NORMAL`` only what was there at the
last checkpoint), the content of a new file and its name, until somebody has synced them.
"""

from __future__ import annotations

import os
import random
import sqlite3
import struct
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any, Protocol, runtime_checkable

__all__ = ["Disk", "Powered", "open_files"]

_SECTOR = 512
_HEADER, _FRAME = 32, 24


@runtime_checkable
class Powered(Protocol):
    """A broker of a simulation that can lose its power."""

    def power_loss(self) -> None:
        """Keep what is durable and forget the rest. Every process is dead when this is called."""
        ...


class Disk:
    """What the files in *directory* have of what was asked of them for certain. It begins empty, or with *kept*."""

    def __init__(self, directory: Path, chance: random.Random) -> None:
        self.directory = directory
        self._chance = chance
        self._unsure: dict[str, int] = {}  # the log of this file is certain up to here; others all that is committed
        self._synced: set[int] = set()
        self._named = {path.name for path in directory.iterdir()}
        self._synced |= {path.stat().st_ino for path in directory.iterdir()}

    def watch(self, module: ModuleType, is_full: Callable[[], bool]) -> None:
        """Let *module*, which opens and syncs files, do so under our eyes: it gets its own ``sqlite3`` and ``os``."""

        def fsync(descriptor: int) -> None:
            os.fsync(descriptor)
            self.synced(descriptor)

        open_files(module, is_full, disk=self)
        vars(module)["os"] = _copy_of(os, fsync=fsync)

    def committed(self, connection: sqlite3.Connection) -> None:
        """A transaction has ended: synced if the connection syncs."""
        path, level = _place(connection)
        if level >= 2:
            self._unsure.pop(path, None)
        elif path not in self._unsure:
            self._unsure[path] = _ends(_read(f"{path}-wal"))[0]

    def checkpointed(self, connection: sqlite3.Connection) -> None:
        """The log was synced, copied into the file, and that was synced too, unless the connection never syncs."""
        path, level = _place(connection)
        if level >= 1:
            self._unsure.pop(path, None)
            self._synced.add(os.stat(path).st_ino)

    def synced(self, descriptor: int) -> None:
        """Somebody has synced a file, or the names in a directory."""
        found = os.fstat(descriptor)
        self._synced.add(found.st_ino)
        if self.directory.exists() and found.st_ino == self.directory.stat().st_ino:
            self._named |= {path.name for path in self.directory.iterdir()}

    def survivors(self) -> Iterator[tuple[str, bytes]]:
        """Give the names and contents of the files that are there when the power is back."""
        for path in sorted(self.directory.glob("*.db")):
            if path.name not in self._named and self._chance.random() < 0.5:
                continue
            data, log = path.read_bytes(), _read(f"{path}-wal")
            yield path.name, data if path.stat().st_ino in self._synced else self._torn(data)
            certain = self._unsure.get(str(path), _ends(log)[1])
            yield f"{path.name}-wal", log[:certain] + self._torn(log[certain:])

    def _torn(self, data: bytes) -> bytes:
        """Return what may be there of *data* that was written and not synced."""
        sectors = [data[at : at + _SECTOR] for at in range(0, len(data), _SECTOR)]
        match self._chance.randrange(4):
            case 0:
                return b""
            case 1:
                return data
            case 2:
                return b"".join(sectors[: self._chance.randint(0, len(sectors))])
            case _:
                return b"".join(one if self._chance.random() < 0.5 else bytes(len(one)) for one in sectors)


def open_files(module: ModuleType, is_full: Callable[[], bool], *, disk: Disk | None = None) -> None:
    """Let *module* have its own ``sqlite3``, whose commits find no room when *is_full* says so and tell *disk*."""

    class Watched(sqlite3.Connection):
        def execute(self, sql: str, parameters: Any = (), /) -> sqlite3.Cursor:
            if sql == "COMMIT" and is_full():
                super().execute("ROLLBACK")
                error = sqlite3.OperationalError("database or disk is full")
                error.sqlite_errorcode = sqlite3.SQLITE_FULL
                raise error
            within = self.in_transaction
            cursor = super().execute(sql, parameters)
            if disk is not None and within and not self.in_transaction:
                disk.committed(self)
            elif disk is not None and sql.startswith("PRAGMA wal_checkpoint"):
                disk.checkpointed(self)
            return cursor

    def connect(database: str, **options: Any) -> sqlite3.Connection:
        return sqlite3.connect(database, factory=Watched, **options)

    vars(module)["sqlite3"] = _copy_of(sqlite3, connect=connect)


def _place(connection: sqlite3.Connection) -> tuple[str, int]:
    path = connection.cursor().execute("PRAGMA database_list").fetchone()[2]
    return path, connection.cursor().execute("PRAGMA synchronous").fetchone()[0]


def _read(path: str) -> bytes:
    try:
        return Path(path).read_bytes()
    except FileNotFoundError:
        return b""


def _ends(log: bytes) -> tuple[int, int]:
    """Return where in a log of SQLite the last commit but one and the last commit end."""
    if len(log) < _HEADER:
        return 0, 0
    page = struct.unpack_from(">I", log, 8)[0]
    salts = log[16:24]
    before = last = at = _HEADER
    while at + _FRAME + page <= len(log) and log[at + 8 : at + 16] == salts:
        size = struct.unpack_from(">I", log, at + 4)[0]
        at += _FRAME + page
        if size:
            before, last = last, at
    return before, last


def _copy_of(module: ModuleType, **changed: Any) -> ModuleType:
    copy = ModuleType(module.__name__, module.__doc__)
    vars(copy).update(vars(module) | changed)
    return copy
