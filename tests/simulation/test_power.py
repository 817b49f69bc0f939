"""Power loss in the simulation: all die at once, what was not synced is lost, and every promise is kept."""

from __future__ import annotations

import os
import random
import sqlite3
from contextlib import closing
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from planting import changed

from tidewire.testing.simulation import drawn_world
from tidewire.testing.simulation.campaign import Totals, run_worlds
from tidewire.testing.simulation.power import Disk


@pytest.mark.parametrize(("ground", "worlds"), [("memory", 60), ("sqlite", 16)])
def test_what_was_accepted_survives_power_losses(ground: str, worlds: int) -> None:
    """All die at once, again and again, and the broker starts again with what is durable: nothing is lost."""
    totals = Totals()
    drawn = (drawn_world(seed, ground=ground, size="small") for seed in range(500, 500 + worlds))
    dying = (changed(world, power=0.8, crash_every=300.0) for world in drawn)
    run_worlds(dying, totals.add, jobs=os.cpu_count() or 1)
    assert [] == [(one.world.seed, one.violations) for one in totals.failures]
    assert totals.faults["power loss"] > worlds


def rows_after(disk: Disk, place: Path) -> int | None:
    """Return how many rows a file has that survived, None where it is not a file of SQLite any more."""
    place.mkdir()
    for name, data in disk.survivors():
        (place / name).write_bytes(data)
    if not (place / "one.db").is_file():
        return None
    with closing(sqlite3.connect(place / "one.db")) as connection:
        try:
            assert [("ok",)] == connection.execute("PRAGMA integrity_check").fetchall()
            return int(connection.execute("SELECT count(*) FROM t").fetchone()[0])
        except sqlite3.Error:
            return None


@pytest.mark.parametrize(
    ("level", "sync", "least", "most"), [("FULL", True, 5, 5), ("NORMAL", True, 2, 5), ("FULL", False, None, 5)]
)
def test_a_disk_keeps_what_was_synced_and_maybe_more(
    level: str, sync: bool, least: int | None, most: int, tmp_path: Path
) -> None:
    """A commit with FULL is certain, with NORMAL the last checkpoint; a new file is, when its directory was synced."""
    place = tmp_path / "disk"
    place.mkdir()
    disk, module = Disk(place, random.Random(7)), ModuleType("opening")
    disk.watch(module, lambda: False)
    opening: Any = module
    with closing(opening.sqlite3.connect(str(place / "one.db"), isolation_level=None)) as connection:
        for sql in ("journal_mode=WAL", f"synchronous={level}", "wal_autocheckpoint=0"):
            connection.execute(f"PRAGMA {sql}").fetchall()
        connection.execute("BEGIN")
        connection.execute("CREATE TABLE t (body BLOB)")
        connection.execute("COMMIT")
        for number in range(5):
            if number == 2 and sync:
                connection.execute("PRAGMA wal_checkpoint(PASSIVE)").fetchall()
            connection.execute("BEGIN")
            connection.execute("INSERT INTO t VALUES (zeroblob(9000))")
            connection.execute("COMMIT")
        if sync:
            directory = os.open(place, os.O_RDONLY | os.O_DIRECTORY)
            opening.os.fsync(directory)
            os.close(directory)
        found = {rows_after(disk, tmp_path / str(number)) for number in range(40)}
    assert most in found
    assert least in found
    assert found <= {None, *range(5 if least is None else least, most + 1)}
