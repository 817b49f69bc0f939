"""A parent and its worker processes: started, restarted, drained, given up, never left behind."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import pytest

PARENT = """
import asyncio, logging, sys
from datetime import timedelta
from tidewire.cli.processes import Patience
from tidewire.cli.workers import supervise
logging.basicConfig(level="INFO", format="%(message)s")
patience = Patience(timedelta(seconds=float(sys.argv[3])), timedelta(seconds=0.3), timedelta(milliseconds=10))
sys.exit(asyncio.run(supervise([sys.executable, "-c", sys.argv[2]], count=int(sys.argv[1]), patience=patience)))
"""

# A worker that drains at the first SIGTERM (it says so in a file) and stops at once at the second.
WORKER = """
import os, pathlib, signal, time
from datetime import timedelta
from tidewire.cli.processes import follow_parent
told = []
signal.signal(signal.SIGTERM, lambda *_: told.append(1))
follow_parent(timedelta(seconds=1))
pathlib.Path(f"started-{os.getpid()}").touch()
while not told:
    time.sleep(0.01)
"""
DRAINS = WORKER + "pathlib.Path(f'drained-{os.getpid()}').touch()\n"
NEEDS_TWO = WORKER + "pathlib.Path(f'draining-{os.getpid()}').touch()\nwhile len(told) < 2:\n    time.sleep(0.01)\n"
DEAF = WORKER + "while True:\n    time.sleep(1)\n"
CRASHES_ONCE = (
    "import pathlib\nif not pathlib.Path('once').exists():\n    pathlib.Path('once').touch(); exit(9)\n" + DRAINS
)
COUNTS = "import os, pathlib\npathlib.Path(f'run-{os.getpid()}').touch()\n"


Start = Callable[..., "subprocess.Popen[str]"]


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Start]:
    """Return a function that starts a parent with workers; whoever is left at the end is killed."""
    parents: list[subprocess.Popen[str]] = []

    def begin(count: int, worker: str, *, grace: float = 30) -> subprocess.Popen[str]:
        command = [sys.executable, "-c", PARENT, str(count), worker, str(grace)]
        parent = subprocess.Popen(command, cwd=tmp_path, stderr=subprocess.PIPE, text=True)
        parents.append(parent)
        return parent

    yield begin
    for parent in parents:
        if parent.poll() is None:
            parent.kill()
        parent.communicate()


def files(folder: Path, prefix: str) -> list[int]:
    """Return the process ids that workers have left behind in file names."""
    return sorted(int(path.name.rpartition("-")[2]) for path in folder.glob(f"{prefix}-*"))


def until(condition: Callable[[], object], what: str) -> None:
    """Wait, for 20 s at most, until *condition* holds."""
    deadline = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < deadline, f"waited in vain: {what}"
        time.sleep(0.01)


def gone(processes: Sequence[int]) -> bool:
    """Say whether none of *processes* lives; a zombie whose parent died first is as good as gone."""
    return not any(_alive(process) for process in processes)


def _alive(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    stat = Path(f"/proc/{process}/stat")
    return not (stat.exists() and stat.read_text().rpartition(")")[2].split()[0] == "Z")


def test_sigterm_drains_every_worker(start: Start, tmp_path: Path) -> None:
    """The parent passes SIGTERM on, waits for every worker and exits 0."""
    parent = start(2, DRAINS)
    until(lambda: len(files(tmp_path, "started")) == 2, "two workers")
    parent.send_signal(signal.SIGTERM)
    assert 0 == parent.wait(20)
    assert files(tmp_path, "started") == files(tmp_path, "drained")


def test_the_second_signal_reaches_the_workers(start: Start, tmp_path: Path) -> None:
    """Workers that are draining hear the second signal and stop at once."""
    parent = start(1, NEEDS_TWO)
    until(lambda: files(tmp_path, "started"), "a worker")
    parent.send_signal(signal.SIGINT)
    until(lambda: files(tmp_path, "draining"), "the worker to hear the first")
    parent.send_signal(signal.SIGINT)
    assert 0 == parent.wait(20)


def test_a_crashed_worker_is_started_again(start: Start, tmp_path: Path) -> None:
    """A worker that dies is replaced, and the whole still drains with exit 0."""
    parent = start(1, CRASHES_ONCE)
    until(lambda: files(tmp_path, "started"), "the second life of the worker")
    parent.send_signal(signal.SIGTERM)
    assert 0 == parent.wait(20)
    assert "tidewire.workers.exited" in str(parent.stderr.read() if parent.stderr else "")


def test_a_killed_worker_is_replaced_by_another_process(start: Start, tmp_path: Path) -> None:
    """``kill -9`` of one worker brings a new process; the others go on."""
    parent = start(2, DRAINS)
    until(lambda: len(files(tmp_path, "started")) == 2, "two workers")
    victim = files(tmp_path, "started")[0]
    os.kill(victim, signal.SIGKILL)
    until(lambda: len(files(tmp_path, "started")) == 3, "a third process")
    parent.send_signal(signal.SIGTERM)
    assert 0 == parent.wait(20)
    assert set(files(tmp_path, "started")) - {victim} == set(files(tmp_path, "drained"))


def test_a_worker_that_keeps_crashing_is_given_up(start: Start, tmp_path: Path) -> None:
    """Five quick crashes in a row end the parent with exit 1, and the trouble is not hidden in a loop."""
    assert 1 == start(1, f"{COUNTS}exit(7)").wait(20)
    assert 5 == len(files(tmp_path, "run"))


def test_a_worker_that_waits_for_its_broker_is_tried_on(start: Start, tmp_path: Path) -> None:
    """Exit 3 says that time may help: such a worker is not given up after five tries."""
    parent = start(1, f"{COUNTS}exit(3)")
    until(lambda: len(files(tmp_path, "run")) > 6, "a seventh try")
    parent.send_signal(signal.SIGTERM)
    assert parent.wait(20) in (0, 1)


def test_a_wrong_setting_is_not_tried_twice(start: Start, tmp_path: Path) -> None:
    """Exit 2 says that a person must change something: all workers stop and the parent exits 2."""
    assert 2 == start(1, f"{COUNTS}exit(2)").wait(20)
    assert 1 == len(files(tmp_path, "run"))


def test_a_deaf_worker_is_killed_after_its_grace(start: Start, tmp_path: Path) -> None:
    """A worker that does not stop is killed, and the exit code says that the drain was not clean."""
    parent = start(1, DEAF, grace=0.3)
    until(lambda: files(tmp_path, "started"), "a worker")
    parent.send_signal(signal.SIGTERM)
    assert 1 == parent.wait(20)
    assert gone(files(tmp_path, "started"))


def test_workers_end_with_a_parent_that_was_killed(start: Start, tmp_path: Path) -> None:
    """``kill -9`` of the parent leaves nobody behind: the workers notice and drain."""
    parent = start(2, DRAINS)
    until(lambda: len(files(tmp_path, "started")) == 2, "two workers")
    parent.kill()
    until(lambda: gone(files(tmp_path, "started")), "the workers to end")
    assert files(tmp_path, "started") == files(tmp_path, "drained")


def test_deaf_workers_do_not_outlive_a_parent_that_was_killed(start: Start, tmp_path: Path) -> None:
    """``kill -9`` of the parent ends also those that do not drain, after their grace."""
    parent = start(1, DEAF)
    until(lambda: files(tmp_path, "started"), "a worker")
    parent.kill()
    until(lambda: gone(files(tmp_path, "started")), "the worker to end")


def test_whoever_inherits_a_workers_pipes_holds_nobody_up(start: Start, tmp_path: Path) -> None:
    """A worker that leaves a child behind, with its standard input open, is seen to have ended."""
    leaves = (
        "import os, subprocess, sys\n"
        "child = subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(60)'], start_new_session=True)\n"
        "open(f'left-{child.pid}', 'w').close()\nexit(2)\n"
    )
    parent = start(1, leaves)
    try:
        assert 2 == parent.wait(20)
    finally:
        for process in files(tmp_path, "left"):
            os.kill(process, signal.SIGKILL)
