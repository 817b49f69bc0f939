"""What both tests need: programs as processes whose lines are read, a till's day, and the books of the service."""

from __future__ import annotations

import json
import os
import queue
import shutil
import sqlite3
import subprocess
import sys
import threading
import time
import uuid
from collections import defaultdict
from collections.abc import Generator, Mapping, Sequence
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import pytest

HOME = Path(__file__).parent.parent
SECONDS = 90.0
LINES = 7
TIDEWIRE = (sys.executable, "-m", "tidewire.cli")


class Program:
    """A process whose lines are heard as they come."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self.process = process
        self.told: list[str] = []
        self._lines: queue.SimpleQueue[str | None] = queue.SimpleQueue()
        self._listening = threading.Thread(target=self._listen, daemon=True)
        self._listening.start()

    def _listen(self) -> None:
        assert self.process.stdout is not None
        with self.process.stdout as lines:
            for line in lines:
                self._lines.put(line)
        self._lines.put(None)

    def end(self) -> None:
        """End the process, by force if it does not go, and hear it out."""
        self.process.terminate()
        try:
            self.process.wait(20)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
        self._listening.join(20)

    def next_line(self, end: float) -> str:
        """Return the next line; fails where the process ends first, or at *end* on the monotonic clock."""
        try:
            line = self._lines.get(timeout=max(0.0, end - time.monotonic()))
        except queue.Empty:
            line = None
        assert line is not None, f"{self.process.args}: ended with {self.process.poll()}, having said {self.told[-30:]}"
        self.told.append(line)
        return line

    def wait_for(self, text: str) -> None:
        """Wait for a line with *text*."""
        end = time.monotonic() + SECONDS
        while text not in self.next_line(end):
            pass


@contextmanager
def started(
    environment: Mapping[str, str], *command: str, cwd: Path = HOME, hear_errors: bool = False
) -> Generator[Program]:
    """A program that is ended with the block; with *hear_errors* what it writes to standard error is heard too."""
    errors = subprocess.STDOUT if hear_errors else None
    process = subprocess.Popen(
        command, env={**os.environ, **environment}, cwd=cwd, text=True, stdout=subprocess.PIPE, stderr=errors
    )
    program = Program(process)
    try:
        yield program
    finally:
        program.end()


def ran(environment: Mapping[str, str], *command: str, given: str = "", cwd: Path = HOME) -> str:
    """Run a program to its good end, and return what it wrote."""
    everything = {**os.environ, **environment}
    done = subprocess.run(
        command, input=given, env=everything, cwd=cwd, capture_output=True, text=True, timeout=SECONDS, check=False
    )
    assert 0 == done.returncode, (command, done.stdout, done.stderr)
    return done.stdout


class Day:
    """What a till says on one day: five orders of several lines each, some of it twice, some of it unreadable.

    Its orders have names of their own, since a broker may remember another day.
    """

    def __init__(self) -> None:
        run = uuid.uuid4().hex[:8]
        self.orders = [f"{run}-{number}" for number in range(5)]
        first = [self._said(order, line) for line in range(1, LINES) for order in self.orders]
        nobody = {key: value for key, value in self._said(self.orders[0], LINES).items() if key != "id"}
        unwanted = {"id": f"{run}-drawer", "kind": "drawer-opened", "till": "till-3"}
        last = [self._said(order, LINES) for order in self.orders]
        self.said = [*first, *first[:10], nobody, unwanted, *last]

    def _said(self, order: str, line: int) -> dict[str, Any]:
        at = f"2026-11-28T09:00:{line:02}+01:00"
        data = {"order_id": order, "line": line, "cents": 100 * line}
        return {"id": f"{order}/{line}", "kind": "placed", "till": "till-3", "at": at, "order": data}

    @property
    def as_lines(self) -> str:
        """The day as a foreign producer reads it."""
        return "".join(json.dumps(one) + "\n" for one in self.said)

    @property
    def expected(self) -> dict[str, list[int]]:
        """Each order's lines, in order, each once."""
        return {order: list(range(1, LINES + 1)) for order in self.orders}

    def seen_by(self, reader: Program) -> list[dict[str, Any]]:
        """Return the payments of this day as a foreign reader prints them, when it has the last of each order."""
        found: list[dict[str, Any]] = []
        end = time.monotonic() + SECONDS
        left = set(self.orders)
        while left:
            payment = json.loads(reader.next_line(end))
            if payment["data"]["order_id"] in self.orders:
                found.append(payment)
                if payment["data"]["line"] == LINES:
                    left.discard(payment["data"]["order_id"])
        return found


def by_order(payments: Sequence[Mapping[str, Any]]) -> dict[str, list[int]]:
    """Return the lines of each order, as they came."""
    found: dict[str, list[int]] = defaultdict(list)
    for payment in payments:
        found[payment["order_id"]].append(payment["line"])
    return dict(found)


def books(store: Path) -> list[dict[str, Any]]:
    """Return the payments in the service's own database, in the order in which they were taken."""
    with closing(sqlite3.connect(store)) as connection:
        connection.row_factory = sqlite3.Row
        return [dict(row) for row in connection.execute("select till, order_id, line from payments order by number")]


def letters(environment: Mapping[str, str], day: Day) -> list[tuple[str, str]]:
    """Return reason and detail of the dead letters with a key of this day."""
    listed = json.loads(ran(environment, *TIDEWIRE, "dlq", "list", "--group", "billing", "--json"))["letters"]
    return [(letter["reason"], letter["detail"]) for letter in listed if letter["key"] in day.orders]


def environment_of(broker: str, folder: Path) -> dict[str, str]:
    """Return what the service runs by."""
    return {
        "TIDEWIRE_BROKER": broker,
        "TIDEWIRE_STORE": f"sqlite:///{folder / 'billing.db'}",
        "TIDEWIRE_PROVISION": "true",
        "PYTHONPATH": str(HOME),
        "PYTHONUNBUFFERED": "1",
    }


def program_of(name: str) -> str:
    """Return the path of a program; skips where it is not there."""
    path = shutil.which(name)
    if path is None:
        pytest.skip(f"not proven: needs {name}, to run programs that know nothing of tidewire")
    return path
