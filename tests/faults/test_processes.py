"""Real processes that are stopped, continued, ended, starved, and told a wrong time: all effects once, none lost."""

from __future__ import annotations

import asyncio
import fcntl
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from datetime import timedelta
from functools import partial
from pathlib import Path

import pytest
from process_world import LEASE, OPTIONS, effects, publish, rows, unsettled

from tidewire.errors import TransportUnavailable
from tidewire.testing.transports.clients import wait_until_stopped

SCRIPT = str(Path(__file__).parent / "process_world.py")
PATIENCE = 30.0
LONG = timedelta(seconds=10)  # a lease that a process which is kept from running for a while does not lose
ROOT = os.geteuid() == 0 if hasattr(os, "geteuid") else False


class Process:
    """A billing service in a process of its own, and what it has said."""

    def __init__(
        self, directory: Path, seconds: float, *, lease: timedelta = LEASE, env: dict[str, str] | None = None
    ) -> None:
        command = [sys.executable, SCRIPT, str(directory), str(seconds), str(lease.total_seconds())]
        self.popen = subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env={**os.environ, **(env or {})}
        )
        self.hears("open")

    def hears(self, beginning: str) -> str:
        """Read until it says a line that begins so."""
        assert self.popen.stdout is not None
        for line in self.popen.stdout:
            if line.startswith(beginning):
                return line.strip()
        raise AssertionError(f"it ended without saying {beginning!r}: {self.last_words()}")

    def last_words(self) -> str:
        """Return what it wrote to standard error."""
        return self.popen.communicate()[1][-2_000:]

    def signal(self, number: int) -> None:
        """Send a signal."""
        self.popen.send_signal(number)

    def ends(self, seconds: float) -> int:
        """Wait for its end."""
        self.popen.communicate(timeout=seconds)
        return self.popen.returncode


Start = Callable[..., Process]


@pytest.fixture
def start() -> Iterator[Start]:
    """A function that starts a service; whatever still runs in the end is killed."""
    with ExitStack() as stack:

        def run(*arguments: object, **options: object) -> Process:
            process = Process(*arguments, **options)  # type: ignore[arg-type]
            stack.callback(process.popen.communicate)
            stack.callback(process.popen.kill)
            return process

        yield run


def until(true: Callable[[], object], what: str) -> None:
    """Wait until *true* holds."""
    end = time.monotonic() + PATIENCE
    while not true():
        assert time.monotonic() < end, what
        time.sleep(0.02)


def turn_is_free(path: Path) -> bool:
    """Whether nobody is inside the write turn of a file: who is stopped there stops every writer."""
    descriptor = os.open(f"{path}-lock", os.O_RDWR | os.O_CLOEXEC)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    finally:
        os.close(descriptor)
    return True


def stop_outside_turns(process: Process, directory: Path) -> None:
    """Stop a process, where it holds nothing that all others need."""
    for _ in range(100):
        process.signal(signal.SIGSTOP)
        wait_until_stopped(process.popen.pid)
        if turn_is_free(directory / "broker.db") and turn_is_free(directory / "billing.db"):
            return
        process.signal(signal.SIGCONT)
        time.sleep(0.01)
    raise AssertionError("it never leaves its turn")


def once(directory: Path, ids: Sequence[str]) -> None:
    """Each of *ids* has taken effect once, and nothing else has."""
    assert Counter(ids) == Counter(name for name, _ in effects(directory))


def test_a_zombie_commits_nothing_and_settles_nothing(start: Start, tmp_path: Path) -> None:
    """Stopped in a handler beyond its lease, and continued: what it does then counts for nothing (R3, SQ11)."""
    ids = [f"o{number}" for number in range(6)]
    asyncio.run(publish(tmp_path, ids))
    zombie = start(tmp_path, 0.5)
    zombie.hears("begin")
    stop_outside_turns(zombie, tmp_path)
    heir = start(tmp_path, 0.0)
    until(lambda: {name for name, _ in effects(tmp_path)} == set(ids), "nobody takes the stopped one's lanes over")
    zombie.signal(signal.SIGCONT)
    assert zombie.hears("end")  # it finds its handler's end, too late
    asyncio.run(publish(tmp_path, ["late"]))
    until(lambda: "late" in dict(effects(tmp_path)), "nothing goes on")
    for process in (zombie, heir):
        process.signal(signal.SIGTERM)
        assert 0 == process.ends(PATIENCE)
    once(tmp_path, [*ids, "late"])
    assert [(0,)] == rows(tmp_path, "SELECT count(*) FROM dead", "broker.db")


def test_sigterm_at_any_time_spends_nothing(start: Start, tmp_path: Path) -> None:
    """Ended at random, once or twice in a row: it ends in time, no attempt is spent, nothing repeats (AS4)."""
    chance = random.Random()
    ids = [f"o{number}" for number in range(80)]
    asyncio.run(publish(tmp_path, ids))
    for _ in range(8):
        process = start(tmp_path, 0.05, lease=LONG)
        process.hears("begin")
        time.sleep(chance.uniform(0, 0.2))
        process.signal(signal.SIGTERM)
        twice = chance.random() < 0.5
        if twice:
            time.sleep(chance.uniform(0, 0.1))
            process.signal(signal.SIGTERM)
        # A second one that comes when everything is settled and the files are being closed ends it as such.
        assert process.ends(OPTIONS.grace.total_seconds() + 10) in ((0, -signal.SIGTERM) if twice else (0,))
        if len(effects(tmp_path)) == len(ids):
            break
    last = start(tmp_path, 0.0, lease=LONG)
    last.hears("up")
    until(lambda: len(effects(tmp_path)) >= len(ids), "it is not worked off")
    until(lambda: not asyncio.run(unsettled(tmp_path)), "it is not settled")
    last.signal(signal.SIGTERM)
    assert 0 == last.ends(PATIENCE)
    once(tmp_path, ids)
    assert {1} == {attempt for _, attempt in effects(tmp_path)}
    assert [] == rows(tmp_path, "SELECT * FROM tidewire_attempt")


def test_without_file_descriptors_it_goes_on(tmp_path: Path) -> None:
    """What is open works on, what is to be opened is refused with a typed error, and nothing is lost."""
    command = [sys.executable, SCRIPT, str(tmp_path), "starved"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=PATIENCE * 2, check=False)
    assert 0 == done.returncode, done.stderr
    assert "no descriptor left" in done.stdout.splitlines()
    assert "opened" not in done.stdout.splitlines()
    assert "ready True" in done.stdout.splitlines()
    once(tmp_path, [f"fd-{turn}-{number}" for turn in range(3) for number in range(10)])


FAKETIME = next(iter(sorted(Path("/usr/lib").glob("*/faketime/libfaketimeMT.so.1"))), None)


@pytest.mark.skipif(FAKETIME is None, reason="wall clocks that jump: faketime is not installed")
@pytest.mark.parametrize("when", ["+20d", "-20d", "@2038-01-19 03:14:05", "@1970-01-02 00:00:00"])
def test_a_wrong_wall_clock_changes_nothing(start: Start, tmp_path: Path, when: str) -> None:
    """Leases, take-overs and order do not care (R11); within the dedup window, which the wall clock tells, nothing
    repeats either."""
    ids = [f"o{number}" for number in range(10)]
    asyncio.run(publish(tmp_path, ids))
    preload = {"LD_PRELOAD": str(FAKETIME), "FAKETIME": when, "FAKETIME_DONT_FAKE_MONOTONIC": "1"}
    wrong = start(tmp_path, 0.0, env=preload)
    until(lambda: len(effects(tmp_path)) >= len(ids), "it is not worked off")
    right = start(tmp_path, 0.0)
    more = [f"p{number}" for number in range(10)]
    asyncio.run(publish(tmp_path, more))
    until(lambda: {*ids, *more} <= dict(effects(tmp_path)).keys(), "the two do not get on")
    wrong.signal(signal.SIGKILL)
    asyncio.run(publish(tmp_path, ["last-0", "last-1", "last-2"]))
    until(lambda: "last-2" in dict(effects(tmp_path)), f"no lanes are taken over after {LEASE}")
    until(lambda: {"last-0", "last-1"} <= dict(effects(tmp_path)).keys(), "a lane is not taken over")
    right.signal(signal.SIGTERM)
    assert 0 == right.ends(PATIENCE)
    if when.endswith("20d"):
        once(tmp_path, [*ids, *more, "last-0", "last-1", "last-2"])
    assert {*ids, *more, "last-0", "last-1", "last-2"} == dict(effects(tmp_path)).keys()


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 16 MiB."""
    if not ROOT or shutil.which("mount") is None:
        pytest.skip("a full disk and a read-only one: only root may mount a small file system")
    place = tmp_path / "disk"
    place.mkdir()
    done = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=16m", "tidewire-test", str(place)], capture_output=True)
    if done.returncode:
        pytest.skip(f"a full disk and a read-only one: {done.stderr.decode().strip()}")
    yield place
    subprocess.run(["umount", "-l", str(place)], check=True)


def fill(place: Path, leave: int) -> Path:
    """Fill the file system but for *leave* bytes; return the file that does."""
    filler = place / "filler"
    with open(filler, "wb", buffering=0) as file:
        try:
            while True:
                file.write(b"\0" * 4_096)
        except OSError:
            size = file.tell()
        os.ftruncate(file.fileno(), max(0, size - leave))
    return filler


def test_a_full_disk_loses_nothing_and_is_got_over(start: Start, small_disk: Path) -> None:
    """Full or nearly: what was stored takes effect once, and all goes on when there is room (SQ6, R14)."""
    service = start(small_disk, 0.0)
    stored: list[str] = []
    for turn, leave in enumerate((0, 4_096, 20_000, 100_000, 0)):
        stored += asyncio.run(publish(small_disk, [f"before-{turn}-{number}" for number in range(10)]))
        filler = fill(small_disk, leave)
        stored += asyncio.run(during_full_disk(small_disk, turn))
        filler.unlink()
        stored += asyncio.run(publish(small_disk, [f"after-{turn}"]))
        until(partial(all_there, small_disk, stored), f"turn {turn}: not all took effect")
        assert service.popen.poll() is None
    service.signal(signal.SIGTERM)
    assert 0 == service.ends(PATIENCE)
    found = Counter(name for name, _ in effects(small_disk))
    assert {1} == set(found.values())
    assert set(stored) <= found.keys()
    assert [(0,)] == rows(small_disk, "SELECT count(*) FROM dead", "broker.db")
    assert [("ok",)] == rows(small_disk, "PRAGMA integrity_check", "broker.db")
    assert [("ok",)] == rows(small_disk, "PRAGMA integrity_check")


def all_there(directory: Path, ids: Sequence[str]) -> bool:
    """Whether all of *ids* have taken effect."""
    return set(ids) <= dict(effects(directory)).keys()


async def during_full_disk(directory: Path, turn: int) -> list[str]:
    """Try to publish on a full disk; opening may be refused as well."""
    try:
        return await publish(directory, [f"during-{turn}-{number}" for number in range(30)])
    except TransportUnavailable:
        return []


def test_a_read_only_disk_is_refused_by_name(start: Start, small_disk: Path) -> None:
    """A file system that became read-only ends a start with a sentence, and changes nothing; later all is there."""
    asyncio.run(publish(small_disk, ["o1"]))
    subprocess.run(["mount", "-o", "remount,ro", str(small_disk)], check=True)
    command = [sys.executable, SCRIPT, str(small_disk), "0", str(LEASE.total_seconds())]
    done = subprocess.run(command, capture_output=True, text=True, timeout=PATIENCE, check=False)
    subprocess.run(["mount", "-o", "remount,rw", str(small_disk)], check=True)
    assert done.returncode != 0
    assert "TransportRefused" in done.stderr
    service = start(small_disk, 0.0)
    until(lambda: [("o1", 1)] == effects(small_disk), "it is not worked off")
    service.signal(signal.SIGTERM)
    assert 0 == service.ends(PATIENCE)
