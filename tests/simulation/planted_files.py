"""Bugs on purpose that only the ground of files shows, most of them when the power fails."""

from __future__ import annotations

from typing import Any

from planting import patch, plant

from tidewire.kit import sqlite_file

FAILING_POWER = {"power": 1.0, "crash_every": 300.0}


@plant("PB-6 SQ1", ground="sqlite", faults=FAILING_POWER)
def commits_are_not_synced() -> None:
    """The files are opened with ``synchronous=NORMAL``, and nobody reads it back."""

    def configure(self: Any, connection: Any, cache_bytes: int) -> None:
        for name, wanted in sqlite_file._SETTINGS:
            connection.execute(f"PRAGMA {name}={'NORMAL' if name == 'synchronous' else wanted}").fetchall()

    patch(sqlite_file.SqliteFile, "_configure", configure)


@plant("PB-5 SQ13", ground="sqlite", faults=FAILING_POWER)
def new_files_are_not_synced() -> None:
    """A new file gets its name before its content is on the disk."""
    sync: Any = sqlite_file._sync
    patch(sqlite_file, "_sync", lambda path, flags: None if path.is_file() else sync(path, flags))


@plant("PB-5 SQ13", ground="sqlite", faults=FAILING_POWER)
def new_names_are_not_synced() -> None:
    """The directory of a new file is never synced."""
    patch(sqlite_file, "_sync_directory", lambda path: None)
