"""Opening an SQLite file so that what is committed stays, whoever else has it open and whatever dies.

WAL with ``synchronous=FULL``, read back. Every write, checkpoint and close happens inside the *write turn*, and
SQLite never checkpoints by itself, so that writing and checkpointing never overlap (this also keeps out the
WAL-reset bug of older versions). A file is refused, with a hint, if it is a symbolic link, lies on a network
file system or one without ``flock``, belongs to another program, was written by a newer schema, or is damaged.
"""

from __future__ import annotations

import errno
import logging
import os
import sqlite3
import stat
import sys
from collections.abc import Callable, Generator, Sequence
from contextlib import closing, contextmanager
from datetime import timedelta
from pathlib import Path
from typing import NamedTuple, TypeVar
from urllib.parse import quote

from tidewire.errors import TidewireError
from tidewire.kit.flock import WriteTurn
from tidewire.kit.mounts import file_system, is_network
from tidewire.kit.sqlite_errors import FileErrors, Mapped, failed_sync, is_failed_sync, old_version, typed_error

__all__ = ["FileKind", "SqliteFile", "look_into", "open_sqlite_file", "refuse_lone_log"]

_log = logging.getLogger(__name__)
T = TypeVar("T")
_MAGIC = b"SQLite format 3\x00"
_HEADER_BYTES = 100
_warned: set[str] = set()


class FileKind(NamedTuple):
    """What a file is: its *noun* in messages, its ``application_id``, its schema, its errors.

    *migrations* are lists of statements: number n brings the file from version n to n + 1.
    """

    noun: str
    application_id: int
    migrations: Sequence[Sequence[str]]
    errors: FileErrors


class _Forks:
    """How many forks lie between the first process and this one: asked before every statement, so no system call."""

    seen = 0

    @classmethod
    def count(cls) -> None:
        cls.seen += 1


os.register_at_fork(after_in_child=_Forks.count)


class SqliteFile:
    """An SQLite file that is safe to use. Made by `open_sqlite_file`; `close` it last, after its connections."""

    def __init__(self, path: Path, kind: FileKind, turn: WriteTurn) -> None:
        self.path = path
        self.kind = kind
        self.turn = turn
        self.what = f"{kind.noun} {path}"
        self.mapped = Mapped(self.typed)
        self._forks = _Forks.seen
        self._written = 0
        self._closed = False
        self._failed_sync = False
        self._log_size = 0

    def check_usable(self) -> None:
        """Raise the *closed* error in a forked child (a connection does not survive ``fork``), and the *refused* one
        after a failed sync: the next one may succeed although data of the failed one is gone."""
        if self._forks != _Forks.seen:
            raise self.kind.errors.closed(
                f"{self.what} was opened before fork()", hint="open it in the process that uses it"
            )
        if self._failed_sync:
            raise failed_sync(self.what, self.kind.errors)

    def typed(self, error: sqlite3.Error) -> TidewireError:
        """Return the typed error for *error*; a failed sync is remembered."""
        self._failed_sync = self._failed_sync or is_failed_sync(error)
        return typed_error(error, self.what, self.kind.errors)

    def connect(self, *, read_only: bool = False, cache_bytes: int = 8 << 20) -> sqlite3.Connection:
        """Return a new connection in autocommit mode, usable by any one thread at a time; the caller closes it.

        A writer's settings are read back. Writing needs the turn and ``BEGIN IMMEDIATE``.

        Raises:
            The *unavailable* and *refused* errors of the file's kind.
        """
        self.check_usable()
        with self.mapped:
            connection = _connect(self.path, "ro" if read_only else "rw")
            try:
                self._configure(connection, cache_bytes)
            except BaseException:
                connection.close()
                raise
        return connection

    def close_connection(self, connection: sqlite3.Connection) -> None:
        """Close *connection* inside the turn: the last one to close checkpoints."""
        self.check_usable()
        got = self.turn.acquire(timedelta(seconds=5))
        try:
            with self.mapped:
                connection.close()
        finally:
            if got:
                self.turn.release()

    @contextmanager
    def writing(self, longest: timedelta = timedelta(seconds=30)) -> Generator[None]:
        """Hold the write turn; blocks, for threads only.

        Raises:
            The *unavailable* error: another process kept the turn for *longest*.
        """
        self.check_usable()
        if not self.turn.acquire(longest):
            raise self.kind.errors.unavailable(
                f"{self.what}: another process has been writing for {longest.total_seconds():g} s",
                hint="a process that is stopped (SIGSTOP, a debugger) while it writes holds up all others",
            )
        try:
            yield
        finally:
            self.turn.release()

    def committed(self, connection: sqlite3.Connection, *, size: int) -> None:
        """Note a commit of about *size* bytes; after 4 MiB copy the log into the file. Inside the turn.

        The size is a guess, so a log that has outgrown what SQLite keeps of it by as much is copied as well.
        Never raises: the commit stands, whatever becomes of the copy. A sync that fails in it is remembered.
        """
        self._written += size
        log_size = self._size_of_log()
        self._log_size = min(self._log_size, log_size)
        if self._written >= _LOG_BYTES or log_size >= max(self._log_size, _LOG_BYTES) + _LOG_BYTES:
            self._written = 0
            try:
                connection.execute("PRAGMA wal_checkpoint(PASSIVE)").fetchall()
            except sqlite3.Error as error:
                fields = {"file": self.what, "error_type": type(self.typed(error)).__name__}
                _log.warning("tidewire.sqlite.checkpoint", extra=fields)
            self._log_size = log_size

    @property
    def untidy(self) -> bool:
        """Whether there is enough in the log for `tidy`."""
        return self._written >= _UNTIDY_BYTES

    def _size_of_log(self) -> int:
        try:
            return os.stat(f"{self.path}-wal").st_size
        except OSError:
            return 0

    def tidy(self, connection: sqlite3.Connection, *, keep: int = 16 << 20) -> bool:
        """Copy the whole log into the file, when idle and inside the turn; a log above *keep* bytes is cut.

        False if a long reader was in the way: try again later.
        """
        self._written = 0
        if self._size_of_log() <= keep:
            busy, _, _ = connection.execute("PRAGMA wal_checkpoint(PASSIVE)").fetchone()
        else:
            # TRUNCATE would wait for readers, with the turn held: it may not.
            connection.execute("PRAGMA busy_timeout=0")
            try:
                busy, _, _ = connection.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()
            finally:
                connection.execute(f"PRAGMA busy_timeout={_BUSY_MS}")
        self._log_size = self._size_of_log()
        return not busy

    def close(self) -> None:
        """Close the lock files; twice is harmless, and so is a forked child."""
        if not self._closed:
            self._closed = True
            self.turn.close()

    def _configure(self, connection: sqlite3.Connection, cache_bytes: int) -> None:
        for name, wanted in _SETTINGS:
            connection.execute(f"PRAGMA {name}={wanted}").fetchall()
        connection.execute(f"PRAGMA cache_size=-{cache_bytes >> 10}")
        if sys.platform == "darwin":
            connection.execute("PRAGMA fullfsync=ON")
            connection.execute("PRAGMA checkpoint_fullfsync=ON")
        effective = {name: connection.execute(f"PRAGMA {name}").fetchone() for name in ("journal_mode", "synchronous")}
        if effective != {"journal_mode": ("wal",), "synchronous": (2,)}:
            raise self.kind.errors.refused(
                f"{self.what}: SQLite does not keep the settings that make commits durable: {effective}",
                hint="use a local file system and a plain SQLite build",
            )


_BUSY_MS = 5_000
_LOOKS_MAX = 8
_LOG_BYTES, _UNTIDY_BYTES = 4 << 20, 1 << 20
_SETTINGS = (
    # Two connections that recover or close at once wait for each other; writers have the turn.
    ("busy_timeout", _BUSY_MS),
    ("synchronous", "FULL"),
    ("wal_autocheckpoint", 0),
    ("journal_size_limit", _LOG_BYTES),  # overwriting a log is quicker than growing one
    ("mmap_size", 0),
    ("cell_size_check", "ON"),
    ("trusted_schema", "OFF"),
    ("temp_store", "MEMORY"),
)


def open_sqlite_file(path: Path | str, kind: FileKind, *, quick_check_bytes: int = 8 << 20) -> SqliteFile:
    """Open, and where missing create, the file of *kind* at *path*, and bring its schema up to date. Blocks.

    A file of up to *quick_check_bytes* is checked for damage. A new one appears under its name only when it is
    complete and durable; its directory, if missing, is made with mode 0700, the file with 0600.

    Raises:
        The *unavailable* and *refused* errors of *kind*.
    """
    place = Path(os.path.abspath(path))
    what = f"{kind.noun} {place}"
    turn: WriteTurn | None = None
    try:
        if not place.parent.is_dir():
            place.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            _sync_directory(place.parent.parent)
        _check_place(place, what, kind.errors)
        turn = WriteTurn(place)
        if not turn.supported():
            raise kind.errors.refused(f"{what}: its file system does not know flock", hint="use a local disk")
        file = SqliteFile(place, kind, turn)
        with file.writing():
            _prepare(file, quick_check_bytes)
    except BaseException as error:
        if turn is not None:
            turn.close()
        if isinstance(error, OSError):
            raise _from_os(error, what, kind.errors) from error
        raise
    _warn_of_old_version(what)
    return file


def look_into(path: Path | str, kind: FileKind, *, read: Callable[[sqlite3.Connection], T]) -> T:
    """Return what *read* finds in the file of *kind* at *path*, and change nothing: no lock file is made, no log, no
    migration; of a file in use, a reader stands in SQLite's shared memory meanwhile. What others commit may be seen
    or not; *read* may be called more than once. Blocks.

    Raises:
        The *unavailable* error of *kind*: the file is not there, or changed all the time.
        Its *refused* error: it is not what it should be.
    """
    place = Path(os.path.abspath(path))
    what = f"{kind.noun} {place}"
    mapped = Mapped(lambda error: typed_error(error, what, kind.errors))
    for _ in range(_LOOKS_MAX):
        try:
            _check_place(place, what, kind.errors)
            before = os.stat(place)
            log = Path(f"{place}-wal")
            live = log.exists()
            _check_header(place, kind, size=before.st_size, log_size=log.stat().st_size if live else 0)
        except FileNotFoundError:
            refuse_lone_log(place, kind)
            raise kind.errors.unavailable(f"there is no {what} yet") from None
        except OSError as error:
            raise _from_os(error, what, kind.errors) from error
        # Without a log nobody writes, and opening the file as one that may change would make a log.
        try:
            with mapped, closing(_connect(place, "ro" if live else "ro&immutable=1")) as connection:
                connection.execute(f"PRAGMA busy_timeout={_BUSY_MS}")
                _version(connection, kind, what)
                found = read(connection)
        except TidewireError:
            if live or _is_still(place, before):
                raise
            continue
        if live or _is_still(place, before):
            return found
    raise kind.errors.unavailable(f"{what} was opened and closed all the time: try again")


def _is_still(place: Path, before: os.stat_result) -> bool:
    """Whether the file is as it was, and nobody has begun to write."""
    try:
        now = os.stat(place)
    except FileNotFoundError:
        return False
    same = (before.st_mtime_ns, before.st_size, before.st_ino) == (now.st_mtime_ns, now.st_size, now.st_ino)
    return same and not os.path.lexists(f"{place}-wal")


def refuse_lone_log(place: Path, kind: FileKind) -> None:
    """Refuse a file that is not there while its log is: somebody has moved it, and a new one would be the wrong one.

    Raises:
        The *refused* error of *kind*.
    """
    log = Path(f"{place}-wal")
    if log.exists() and log.stat().st_size:
        raise kind.errors.refused(
            f"{kind.noun} {place} is missing, but its log {log.name} is there",
            hint="put the file back beside its log, or move the log away",
        )


def _from_os(error: OSError, what: str, errors: FileErrors) -> TidewireError:
    message = f"{what} cannot be used: {error.strerror or error}"
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return errors.unavailable(message, hint="free disk space")
    if error.errno in (errno.EMFILE, errno.ENFILE, errno.EIO, errno.ENOMEM, errno.EINTR):
        return errors.unavailable(message)
    hint = "symbolic links are refused" if error.errno == errno.ELOOP else "look at the path and its permissions"
    return errors.refused(message, hint=hint)


def _check_place(path: Path, what: str, errors: FileErrors) -> None:
    if is_network(system := file_system(path.parent)):
        raise errors.refused(f"{what} lies on a network file system ({system})", hint="use a local disk")
    for name in (path, Path(f"{path}-wal"), Path(f"{path}-shm")):
        try:
            mode = os.lstat(name).st_mode
        except FileNotFoundError:
            continue
        if not stat.S_ISREG(mode):
            raise errors.refused(
                f"{what}: {name.name} is not a regular file", hint="give another path; symbolic links are refused"
            )


def _prepare(file: SqliteFile, quick_check_bytes: int) -> None:
    """Create the file or check the one that is there, and migrate it. The caller has the turn."""
    size = file.path.stat().st_size if file.path.exists() else 0
    if not size:
        refuse_lone_log(file.path, file.kind)
        _create(file)
        return
    log = Path(f"{file.path}-wal")
    log_size = log.stat().st_size if log.exists() else 0
    _check_header(file.path, file.kind, size=size, log_size=log_size)
    connection = file.connect()
    try:
        with file.mapped:
            version = _version(connection, file.kind, file.what)
            if size <= quick_check_bytes:
                _check_pages(file, connection)
            _migrate(connection, file.kind, version)
    finally:
        connection.close()


def _check_header(path: Path, kind: FileKind, *, size: int, log_size: int) -> None:
    """Refuse, before SQLite touches it, what is not ours, or is shorter than it says."""
    with open(path, "rb", opener=_no_follow) as raw:
        header = raw.read(_HEADER_BYTES)
    what, errors, hint = f"{kind.noun} {path}", kind.errors, "give another path, or move that file away"
    if header[:16] != _MAGIC:
        raise errors.refused(f"{what} is not an SQLite database", hint=hint)
    owner = int.from_bytes(header[68:72], "big")
    if owner != kind.application_id:
        raise errors.refused(f"{what} belongs to another program (application id {owner:#x})", hint=hint)
    page = int.from_bytes(header[16:18], "big")
    page = 1 << 16 if page == 1 else page
    pages = int.from_bytes(header[28:32], "big")
    # With a log, the missing pages may still be in there.
    if not log_size and size < pages * page:
        raise errors.refused(
            f"{what} is damaged: it has {size} bytes and should have {pages * page}",
            hint="restore a backup; `sqlite3 FILE .recover` reads what is readable",
        )


def _no_follow(path: str, flags: int) -> int:
    return os.open(path, flags | os.O_NOFOLLOW | os.O_CLOEXEC)


def _check_pages(file: SqliteFile, connection: sqlite3.Connection) -> None:
    found = [row[0] for row in connection.execute("PRAGMA quick_check(3)")]
    if found != ["ok"]:
        raise file.kind.errors.refused(
            f"{file.what} is damaged: {'; '.join(found)}",
            hint="restore a backup; `sqlite3 FILE .recover` reads what is readable",
        )


def _version(connection: sqlite3.Connection, kind: FileKind, what: str) -> int:
    version: int = connection.execute("PRAGMA user_version").fetchone()[0]
    if version > len(kind.migrations):
        raise kind.errors.refused(
            f"{what} has schema version {version}; this tidewire knows up to {len(kind.migrations)}",
            hint="use the newer tidewire that wrote it",
        )
    return version


def _migrate(connection: sqlite3.Connection, kind: FileKind, version: int) -> None:
    """Bring the schema up to date: one transaction per migration, its version written last."""
    for number, statements in enumerate(kind.migrations[version:], version + 1):
        connection.execute("BEGIN IMMEDIATE")
        try:
            for statement in statements:
                connection.execute(statement)
            connection.execute(f"PRAGMA user_version={number}")
            connection.execute("COMMIT")
        except BaseException:
            if connection.in_transaction:
                connection.execute("ROLLBACK")
            raise


def _create(file: SqliteFile) -> None:
    """Make the file under another name, complete; then give it its own. A crash leaves the old state or the new."""
    draft = file.path.with_name(f"{file.path.name}-new")
    for leftover in (draft, Path(f"{draft}-journal"), Path(f"{draft}-wal"), Path(f"{draft}-shm")):
        leftover.unlink(missing_ok=True)
    os.close(os.open(draft, os.O_CREAT | os.O_EXCL | os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600))
    with file.mapped:
        connection = _connect(draft, "rw")
        try:
            connection.execute("PRAGMA synchronous=OFF")
            connection.execute(f"PRAGMA application_id={file.kind.application_id}")
            _migrate(connection, file.kind, 0)
            connection.execute("PRAGMA journal_mode=WAL").fetchall()
        finally:
            connection.close()
    _sync(draft, os.O_RDWR)
    os.replace(draft, file.path)
    _sync_directory(file.path.parent)


def _connect(path: Path, mode: str) -> sqlite3.Connection:
    return sqlite3.connect(
        f"file://{quote(os.fsencode(path))}?mode={mode}",  # with the slashes "//tmp" is a path too, not a host
        uri=True,
        isolation_level=None,
        check_same_thread=False,
        cached_statements=256,
    )


def _sync_directory(path: Path) -> None:
    _sync(path, os.O_RDONLY | os.O_DIRECTORY)


def _sync(path: Path, flags: int) -> None:
    descriptor = os.open(path, flags | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _warn_of_old_version(what: str) -> None:
    """Say it once in a process, whatever the number of files."""
    if (said := old_version()) and said not in _warned:
        _warned.add(said)
        _log.warning("tidewire.sqlite.old_version", extra={"file": what, "detail": said})
