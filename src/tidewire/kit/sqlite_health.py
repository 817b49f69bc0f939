"""How a file of a broker or a store is, and the place where it lies: looked at from outside, nothing is changed."""

from __future__ import annotations

import fcntl
import os
import shutil
import sqlite3
import stat
from pathlib import Path

from tidewire.errors import TidewireError
from tidewire.kit.mounts import file_system, is_network
from tidewire.kit.sqlite_file import FileKind, look_into, refuse_lone_log
from tidewire.rules.findings import Section

__all__ = ["examine_file"]

_MIB = 1 << 20
_FREE_LEAST = 100 * _MIB
_FREE_ENOUGH = 1_024 * _MIB
_LOG_MUCH = 64 * _MIB
_CHECKED_MAX = 256 * _MIB
_ACROSS_CLOCKS_US = 2_000_000


def examine_file(path: Path | str, kind: FileKind, *, section: Section, now_us: int, full: bool = False) -> bool:
    """Look at the file of *kind* at *path*, note in *section* what is found, and say whether it can be read. Blocks.

    A file above 256 MiB is checked for damage only with *full*. *now_us*: the wall time, in µs since 1970.
    """
    place = Path(os.path.abspath(path))
    section.fact("file", place)
    _examine_place(_existing(place.parent), section)
    try:
        if not os.path.lexists(place):
            refuse_lone_log(place, kind)
            section.fact("state", "not there yet: the first service that starts makes it")
            return False
        status = os.lstat(place)
        _examine_access(place, status, section)
        _examine_log(Path(f"{place}-wal"), section)
        if status.st_mtime_ns // 1_000 > now_us + _ACROSS_CLOCKS_US:
            what = (
                "the file was last changed in the future: the wall clock has been put back, or differs from its host's"
            )
            section.error("clock-behind", what, fix="set the clock (NTP); until then delays and ages are wrong")
        checked = full or status.st_size <= _CHECKED_MAX
        version, damage = look_into(place, kind, read=_check if checked else _read_version)
    except TidewireError as error:
        section.error("file-refused", error.message, fix=error.hint)
        return False
    except OSError as error:
        section.error("file-refused", f"{place}: {error.strerror}", fix="look at the path and its permissions")
        return False
    section.fact("size", _size(status.st_size))
    section.fact("schema", f"{version} of {len(kind.migrations)}")
    section.fact("damage", "none found" if checked else f"not looked for above {_size(_CHECKED_MAX)}: --full does")
    if damage:
        section.fact("damage", damage)
        section.error("file-damaged", damage, fix="restore a backup; `sqlite3 FILE .recover` reads what is readable")
    return not damage


def _check(connection: sqlite3.Connection) -> tuple[int, str]:
    found = [str(row[0]) for row in connection.execute("PRAGMA quick_check(3)")]
    return _read_version(connection)[0], "" if found == ["ok"] else "; ".join(found)


def _read_version(connection: sqlite3.Connection) -> tuple[int, str]:
    return int(connection.execute("PRAGMA user_version").fetchone()[0]), ""


def _existing(folder: Path) -> Path:
    """Return the nearest folder above that is there."""
    while not folder.is_dir() and folder != folder.parent:
        folder = folder.parent
    return folder


def _examine_place(folder: Path, section: Section) -> None:
    """Look at the folder: its file system, its locks, its room, and whether this user may write."""
    system = file_system(folder)
    section.fact("file system", system or "unknown")
    if is_network(system):
        section.error(
            "network-file-system", f"{folder} lies on a network file system ({system})", fix="use a local disk"
        )
    if not _knows_flock(folder):
        section.error("no-flock", f"the file system of {folder} does not know flock", fix="use a local disk")
    free = shutil.disk_usage(folder).free
    section.fact("free", _size(free))
    if free < _FREE_LEAST:
        what = f"{_size(free)} are free under {folder}: publishing stops when it is full, and waits for room"
        section.error("disk-full", what, fix="free disk space")
    elif free < _FREE_ENOUGH:
        section.warning("disk-low", f"{_size(free)} are free under {folder}", fix="free disk space")
    if not os.access(folder, os.W_OK | os.X_OK):
        what = f"this user may not write in {folder}, where the log and the lock files of the file are"
        section.error("folder-not-writable", what, fix="run as the services' user, or change the folder's permissions")


def _knows_flock(folder: Path) -> bool:
    """Try it on the folder itself, shared and without waiting: nobody is kept from anything."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except OSError:
        return False
    finally:
        os.close(descriptor)
    return True


def _examine_access(place: Path, status: os.stat_result, section: Section) -> None:
    section.fact("mode", f"{stat.filemode(status.st_mode)}, owner {status.st_uid}")
    if not os.access(place, os.R_OK | os.W_OK):
        what = f"this user may not read and write {place}"
        section.error("file-not-writable", what, fix="run as the services' user, or change the file's permissions")
    if stat.S_IMODE(status.st_mode) & 0o077:
        section.warning("file-open-to-others", f"other users may read {place}", fix=f"chmod 600 {place}")


def _examine_log(log: Path, section: Section) -> None:
    size = log.stat().st_size if log.exists() else 0
    section.fact("log", _size(size))
    if size > _LOG_MUCH:
        what = (
            f"its log has {_size(size)}: a long reader or a process that stands still keeps it from being copied back"
        )
        section.warning("log-large", what, fix="look for a stopped process, or a backup that never ends")


def _size(count: int) -> str:
    for unit, length in (("GiB", 1 << 30), ("MiB", _MIB), ("KiB", 1_024)):
        if count >= length:
            return f"{count / length:.1f} {unit}"
    return f"{count} B"
