"""The write turn: nobody who stands still keeps the others from writing, unless he was writing himself."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path

import pytest

from tidewire.kit.flock import WriteTurn

# Takes one lock of the file as a process in line (the gate) or at work (the turn) has it, and stands still.
STANDS_STILL = """
import fcntl, os, signal, sys
descriptor = os.open(sys.argv[1], os.O_RDWR | os.O_CREAT, 0o600)
fcntl.flock(descriptor, fcntl.LOCK_EX)
os.kill(os.getpid(), signal.SIGSTOP)
"""


@contextmanager
def standing_still(lock: str) -> Iterator[int]:
    """Return the id of a stopped process that holds *lock*; it is killed at the end."""
    process = subprocess.Popen([sys.executable, "-c", STANDS_STILL, lock])
    try:
        _, status = os.waitpid(process.pid, os.WUNTRACED)
        assert os.WIFSTOPPED(status)
        yield process.pid
    finally:
        process.kill()
        process.wait()


@pytest.fixture
def turn(tmp_path: Path) -> Iterator[WriteTurn]:
    """A turn on a file of the test's own."""
    opened = WriteTurn(tmp_path / "file")
    yield opened
    opened.close()


def test_a_process_stopped_in_line_is_passed_by(tmp_path: Path, turn: WriteTurn) -> None:
    """Who is stopped while waiting keeps the gate; the turn is to be had all the same, again and again."""
    with standing_still(f"{tmp_path}/file-gate"):
        for _ in range(2):
            assert turn.acquire(timedelta(seconds=20))
            turn.release()


def test_a_process_stopped_at_work_keeps_the_turn_until_it_is_killed(tmp_path: Path, turn: WriteTurn) -> None:
    """Two never write at once: a stopped writer is waited for, in bounded time, and its death frees the turn."""
    with standing_still(f"{tmp_path}/file-lock") as writer:
        assert not turn.acquire(timedelta(milliseconds=300))
        os.kill(writer, signal.SIGKILL)
        assert turn.acquire(timedelta(seconds=20))
        turn.release()
