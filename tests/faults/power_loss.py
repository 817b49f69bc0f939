"""Power loss, enumerated: every write path is recorded, cut at every step, and what the disk may hold is opened.

Each state is opened with the real open function and held against what the process saw and said until then:
- it opens, and SQLite finds no damage;
- its content is one that the process committed, no older than its last word (acked ⊆ present; a transaction is all
  there or not at all);
- every promise made until then holds;
- a fresh runtime drains it.
"""

from __future__ import annotations

import asyncio
import hashlib
import os
import random
import shutil
import sqlite3
import sys
import tempfile
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from disk_drain import drains
from disk_model import Disk, State
from disk_scripts import SCRIPTS, prepare_upgrade
from disk_trace import Op, record
from fault_rounds import Round

from tidewire.errors import TidewireError
from tidewire.kit.sqlite_file import FileKind, open_sqlite_file
from tidewire.stores.sqlite.schema import STORE
from tidewire.transports.sqlite.schema import BROKER

KINDS: dict[str, FileKind] = {"broker.db": BROKER, "store.db": STORE}
FRAME_HEADER = 24
LARGE_BYTES = 1 << 18  # to drain a state larger than this takes long
Dump = tuple[str, ...]


@dataclass
class Result:
    """What one recording gave."""

    script: str
    seed: int
    steps: int = 0
    states: int = 0
    distinct: int = 0
    drained: int = 0
    violations: Counter[str] = field(default_factory=Counter)
    examples: list[str] = field(default_factory=list)

    def wrong(self, kind: str, detail: str) -> None:
        """Count a violation and keep the first few."""
        self.violations[kind] += 1
        if len(self.examples) < 10:
            self.examples.append(f"{self.script} seed {self.seed}: {kind}: {detail}")


@contextmanager
def workplace() -> Iterator[Path]:
    """Give a directory in memory where there is one: the states are opened by the thousand."""
    memory = Path("/dev/shm")
    place = Path(tempfile.mkdtemp(prefix="tidewire-disk-", dir=memory if memory.is_dir() else None))
    try:
        yield place
    finally:
        shutil.rmtree(place)


def enumerate_states(script: str, *, seed: int, most: int, plant: str = "", enough: int = 1_000) -> Result:
    """Record *script* and open about *most* states of its disk; *enough* violations end it early."""
    with workplace() as place:
        root = place / "disk"
        root.mkdir()
        if script == "upgrade":
            prepare_upgrade(root)
        before = {str(path): path.read_bytes() for path in root.iterdir()}
        command = [sys.executable, str(Path(__file__).parent / "disk_scripts.py"), script, str(root)]
        ops = record([*command, plant] if plant else command, root, place / "trace")
        (place / "trace").unlink()
        return Enumeration(Disk(str(root), before), ops, Result(script, seed), place / "state").run(most, enough)


class Enumeration:
    """One recording, cut at every step."""

    def __init__(self, disk: Disk, ops: list[Op], result: Result, place: Path) -> None:
        self.disk, self.ops, self.result, self.place = disk, ops, result, place
        self.chance = random.Random(f"{result.script} {result.seed}")
        self.acks: list[str] = []
        self.rules: list[str] = []
        self.views: list[Dump] = []  # what the process saw, without repetitions
        self.floor = 0
        self._commits: set[str] = set()  # logs of which the next write ends a commit
        self._opened: dict[bytes, Dump] = {}
        self._kept: set[tuple[Dump, int, int]] = set()
        self._drained: set[Dump] = set()

    def run(self, most: int, enough: int) -> Result:
        """Go through the trace; the states are spread over its steps."""
        steps = sum(op.kind not in ("said", "syncing") for op in self.ops)
        share = most / max(1, steps)
        self._saw(self._open(self.disk.live(), "at the beginning"))
        for number, op in enumerate(self.ops):
            if sum(self.result.violations.values()) >= enough:
                break
            if op.kind == "said":
                self._heard(op.text)
            elif self.disk.do(op):
                self.result.steps += 1
                where = f"after step {number}, {op.kind} {os.path.basename(op.path)}"
                if self._shows(op):
                    self._saw(self._open(self.disk.live(), where))
                if self.chance.random() < share:
                    for state in self.disk.crashes(self.chance, max(1, round(share))):
                        self._check(state, where)
        return self.result

    def _shows(self, op: Op) -> bool:
        """Whether a step may change what the process sees: frames of SQLite's log do with the last of a commit."""
        if op.kind != "write":
            return True
        if not op.path.endswith("-wal"):
            return not self.disk.exists(f"{op.path}-wal")  # what is copied into the file is seen already
        shows = op.path in self._commits
        self._commits.discard(op.path)
        if len(op.data) == FRAME_HEADER and any(op.data[4:8]):
            self._commits.add(op.path)
        return shows

    def _heard(self, text: str) -> None:
        kind, _, sql = text.partition(" ")
        if kind == "ACK":
            self.acks.append(sql)
            self.floor = len(self.views) - 1
        elif kind == "ALWAYS":
            self.rules.append(sql)

    def _saw(self, dump: Dump) -> None:
        if not self.views or self.views[-1] != dump:
            self.views.append(dump)

    def _check(self, state: State, where: str) -> None:
        self.result.states += 1
        before = len(self.result.examples), sum(self.result.violations.values())
        dump = self._open(state, where)
        if sum(self.result.violations.values()) > before[1]:
            return
        window = self.views[self.floor :]
        for place, content in enumerate(dump):
            if content not in {view[place] for view in window}:
                older = any(view[place] == content for view in self.views[: self.floor])
                kind = "acked lost" if older else "torn transaction"
                self.result.wrong(kind, f"{where}: {sorted(KINDS)[place]}")
        self._promises(dump, state, where)

    def _promises(self, dump: Dump, state: State, where: str) -> None:
        key = (dump, len(self.acks), len(self.rules))
        if key in self._kept:
            return
        self._kept.add(key)
        self._write(state)
        for kind in KINDS:
            self._file_at(kind, state)  # bring it up to today's schema
        for name, broken in broken_promises(self._files(state), self.acks, self.rules):
            self.result.wrong(name, f"{where}: {broken}")
        large = sum(map(len, state.values())) > LARGE_BYTES
        if dump not in self._drained and (not large or self.chance.random() < 0.05):
            self._drained.add(dump)
            self._write(state)
            problem = asyncio.run(drains(self._files(state)))
            self.result.drained += 1
            if problem:
                self.result.wrong("not drained", f"{where}: {problem}")

    def _open(self, state: State, where: str) -> Dump:
        """Return the content of the files in *state*, opened as a service would open them."""
        digest = hashlib.blake2b(digest_size=16)
        for path in sorted(state):
            digest.update(path.encode() + b"\0" + hashlib.blake2b(state[path]).digest())
        key = digest.digest()
        if key not in self._opened:
            self.result.distinct += 1
            self._write(state)
            self._opened[key] = tuple(self._content(name, state, where) for name in sorted(KINDS))
        return self._opened[key]

    def _content(self, name: str, state: State, where: str) -> str:
        path = self._file_at(name, state)
        if path is None:
            return "absent"
        kind = KINDS[name]
        try:
            file = open_sqlite_file(path, kind)
            connection = file.connect()
        except TidewireError as error:
            self.result.wrong("does not open", f"{where}: {error}")
            return "does not open"
        try:
            found = [row[0] for row in connection.execute("PRAGMA integrity_check")]
            if found != ["ok"]:
                self.result.wrong("corrupt", f"{where}: {found[:3]}")
            return content_of(connection)
        finally:
            connection.close()
            file.close()

    def _file_at(self, name: str, state: State) -> Path | None:
        for path in self.ops_paths(name):
            relative = os.path.relpath(path, self.disk.root)
            if any(one == path or one.startswith(f"{path}-") for one in state) or path == str(
                Path(self.disk.root) / name
            ):
                return self.place / relative
        return None

    def ops_paths(self, name: str) -> list[str]:
        """Return where in the trace a file of this name lies."""
        return sorted({op.other or op.path for op in self.ops if os.path.basename(op.other or op.path) == name})

    def _files(self, state: State) -> dict[str, Path]:
        places = {name: self._file_at(name, state) for name in KINDS}
        return {name: place for name, place in places.items() if place is not None}

    def _write(self, state: State) -> None:
        shutil.rmtree(self.place, ignore_errors=True)
        self.place.mkdir()
        for path, data in state.items():
            place = self.place / os.path.relpath(path, self.disk.root)
            place.parent.mkdir(parents=True, exist_ok=True)
            place.write_bytes(data)
            if path.endswith("-wal") and self.chance.random() < 0.2:  # shared memory survives as anything
                Path(f"{str(place)[:-4]}-shm").write_bytes(self.chance.randbytes(32_768))


def content_of(connection: sqlite3.Connection) -> str:
    """Return a digest of every row of every table."""
    digest = hashlib.blake2b(digest_size=16)
    tables = connection.execute("SELECT name, sql FROM sqlite_master ORDER BY name").fetchall()
    for name, sql in tables:
        digest.update(f"{name} {sql}\n".encode())
        if sql is not None and sql.lstrip().upper().startswith("CREATE TABLE"):
            for row in connection.execute(f'SELECT * FROM "{name}"'):
                digest.update(repr(row).encode())
    return digest.hexdigest()


def broken_promises(files: dict[str, Path], acks: list[str], rules: list[str]) -> Iterator[tuple[str, str]]:
    """Return what was promised and is not so. A rule about a table that is not there yet says nothing."""
    connection = sqlite3.connect(":memory:", isolation_level=None)
    try:
        for name, path in files.items():
            connection.execute("ATTACH ? AS " + name.removesuffix(".db"), (str(path),))
        for sql in acks:
            if not holds(connection, sql, absent=False):
                yield "acked lost", sql
        for sql in rules:
            if not holds(connection, sql, absent=True):
                yield "half a transaction", sql
    finally:
        connection.close()


def holds(connection: sqlite3.Connection, sql: str, *, absent: bool) -> bool:
    """Say whether *sql* gives true."""
    try:
        row = connection.execute(sql).fetchone()
    except sqlite3.OperationalError as error:
        if not str(error).startswith("no such table"):
            raise
        return absent
    return row is not None and bool(row[0])


def one_round(seed: int) -> Round:
    """Record every write path once and open about a thousand states of each; for `make faults`."""
    results = [enumerate_states(script, seed=seed, most=1_000) for script in SCRIPTS]
    figures: Counter[str] = Counter()
    for result in results:
        figures += Counter(
            {
                "power-loss states": result.states,
                "distinct contents opened": result.distinct,
                "drained by a fresh runtime": result.drained,
                "recordings": 1,
            }
        )
    return Round(figures, [example for result in results for example in result.examples])
