"""One table from SQLite's result codes to typed errors, and what is known of old SQLite versions."""

from __future__ import annotations

import sqlite3
from collections.abc import Callable
from types import TracebackType
from typing import NamedTuple

from tidewire.errors import TidewireError

__all__ = ["FileErrors", "Mapped", "failed_sync", "is_failed_sync", "is_full", "old_version", "typed_error"]


class FileErrors(NamedTuple):
    """The classes that an adapter raises: time cures *unavailable*, a person *refused*, a programmer *closed*."""

    unavailable: type[TidewireError]
    refused: type[TidewireError]
    closed: type[TidewireError]


# Primary result code → (does time cure it, what it means, what to do).
_TABLE: dict[int, tuple[bool, str, str]] = {
    sqlite3.SQLITE_BUSY: (True, "is locked by another program", "close the program that keeps it open for writing"),
    sqlite3.SQLITE_LOCKED: (True, "is locked by another connection of this process", ""),
    sqlite3.SQLITE_FULL: (True, "cannot grow: the disk or the quota is full", "free disk space; it goes on by itself"),
    sqlite3.SQLITE_IOERR: (True, "cannot be read or written (input/output error)", "look at the disk and its limits"),
    sqlite3.SQLITE_NOMEM: (True, "needs more memory than there is", ""),
    sqlite3.SQLITE_CANTOPEN: (True, "cannot be opened", "look at its permissions and at the limit of open files"),
    sqlite3.SQLITE_PROTOCOL: (True, "is locked by another program", ""),
    sqlite3.SQLITE_INTERRUPT: (True, "was interrupted", ""),
    sqlite3.SQLITE_SCHEMA: (True, "has just changed its schema", ""),
    sqlite3.SQLITE_READONLY: (False, "cannot be written: it is read-only", "make the file and its directory writable"),
    sqlite3.SQLITE_PERM: (False, "may not be accessed", "look at the permissions of the file and its directory"),
    sqlite3.SQLITE_AUTH: (False, "may not be accessed", ""),
    sqlite3.SQLITE_CORRUPT: (False, "is damaged", "restore a backup; `sqlite3 FILE .recover` reads what is readable"),
    sqlite3.SQLITE_NOTADB: (False, "is not an SQLite database", "give another path, or move that file away"),
    sqlite3.SQLITE_FORMAT: (False, "is not an SQLite database of a known format", "give another path"),
    sqlite3.SQLITE_NOLFS: (False, "is too large for this file system", ""),
}
_OTHERWISE = (False, "was refused a statement", "the file was changed by another program, or this is a bug")


class Mapped:
    """A context manager that lets no `sqlite3.Error` out: each becomes what *typed* makes of it."""

    __slots__ = ("_typed",)

    def __init__(self, typed: Callable[[sqlite3.Error], TidewireError]) -> None:
        self._typed = typed

    def __enter__(self) -> None:
        return None

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if isinstance(error, sqlite3.Error):
            raise self._typed(error) from error


def typed_error(error: sqlite3.Error, what: str, errors: FileErrors) -> TidewireError:
    """Return the typed error that says what *error* means for the file that *what* names: ``broker /var/shop.db``."""
    code = getattr(error, "sqlite_errorcode", None)
    if code is None and isinstance(error, sqlite3.ProgrammingError):
        return errors.closed(f"{what} is closed")
    if is_failed_sync(error):
        return failed_sync(what, errors)
    curable, meaning, hint = _TABLE.get((code or 0) & 0xFF, _OTHERWISE)
    name = getattr(error, "sqlite_errorname", type(error).__name__)
    return (errors.unavailable if curable else errors.refused)(f"{what} {meaning} ({name}: {error})", hint=hint)


def is_full(error: BaseException | None) -> bool:
    """Say whether *error* is SQLite's word for a full disk, quota or file limit."""
    code = getattr(error, "sqlite_errorcode", 0)
    # A write past RLIMIT_FSIZE or a quota ends as IOERR_WRITE, not as FULL.
    return code & 0xFF == sqlite3.SQLITE_FULL or code == sqlite3.SQLITE_IOERR_WRITE


def failed_sync(what: str, errors: FileErrors) -> TidewireError:
    """Return the error that ends the use of a file in this process: the kernel may have dropped what it held."""
    return errors.refused(
        f"{what}: a sync to the disk failed; what the disk holds is known only after opening the file anew",
        hint="look at the disk (dmesg), then start the process again",
    )


def is_failed_sync(error: BaseException | None) -> bool:
    """Say whether a sync to disk failed: then the kernel may have dropped pages, and trying again proves nothing."""
    return getattr(error, "sqlite_errorcode", 0) in (sqlite3.SQLITE_IOERR_FSYNC, sqlite3.SQLITE_IOERR_DIR_FSYNC)


def old_version(version: tuple[int, ...] = sqlite3.sqlite_version_info) -> str:
    """Return what to tell a person about an SQLite with the WAL-reset bug, or nothing.

    The write turn keeps the bug out (writes and checkpoints never overlap), so this is a warning, not a refusal.
    """
    fixed = version >= (3, 51, 3) or (3, 50, 7) <= version < (3, 51) or (3, 44, 6) <= version < (3, 45)
    if fixed or version < (3, 7, 0):
        return ""
    number = ".".join(map(str, version))
    return (
        f"SQLite {number} has the WAL-reset bug; tidewire's write turn keeps it out as long as no other program "
        "writes the file. SQLite 3.51.3 or newer has it fixed: use a Python that is linked to such a version"
    )
