"""What the tests of ``tidewire dev`` share: a run of it, a project to run it on, and looks at what came of it."""

from __future__ import annotations

import json
import os
import signal
import sqlite3
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

COMMAND = [sys.executable, "-m", "tidewire.cli"]


class Dev:
    """One run of ``tidewire dev --json``, with what it has told so far."""

    def __init__(self, folder: Path, *arguments: str, environ: Mapping[str, str] | None = None) -> None:
        self.folder = folder
        self.told: list[dict[str, Any]] = []
        usual = {name: value for name, value in os.environ.items() if name != "PYTHONUNBUFFERED"}
        self.process = subprocess.Popen(
            [*COMMAND, "dev", "--json", *arguments],
            cwd=folder,
            env={**usual, "PYTHONDONTWRITEBYTECODE": "1", **(environ or {})},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            stdin=subprocess.DEVNULL,
            text=True,
        )
        self._reader = threading.Thread(target=self._read)
        self._reader.start()

    def _read(self) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            self.told.append(json.loads(line))

    def events(self, event: str, service: str = "") -> list[dict[str, Any]]:
        """Return what was told of an event, by anybody or by one service."""
        return [one for one in tuple(self.told) if one["event"] == event and service in ("", one["service"])]

    def until(self, condition: Callable[[], object], what: str) -> None:
        """Wait, for a minute at most, until *condition* holds; dev has to live meanwhile."""
        deadline = time.monotonic() + 60
        while not condition():
            assert self.process.poll() is None, f"dev ended: {self.told[-5:]}"
            assert time.monotonic() < deadline, f"waited in vain: {what}; {self.told[-8:]}"
            time.sleep(0.02)

    def up(self, *services: str, times: int = 1) -> None:
        """Wait until each of *services* has started that many times."""
        for service in services:
            started = lambda: len(self.events("tidewire.service.started", service)) >= times  # noqa: B023, E731
            self.until(started, f"{service} to start {times} times")

    def processes(self, service: str) -> list[int]:
        """Return the processes that have run *service*, in order."""
        return [one["process"] for one in self.events("tidewire.service.started", service)]

    def end(self, number: int = signal.SIGTERM) -> int:
        """Send a signal, wait, and return the exit code."""
        self.process.send_signal(number)
        code = self.process.wait(60)
        self._reader.join()
        return code

    def close(self) -> None:
        """Leave nobody behind."""
        if self.process.poll() is None:
            self.process.kill()
        self._reader.join()
        assert self.process.stdout is not None
        assert self.process.stderr is not None
        self.process.stdout.close()
        self.process.stderr.close()
        self.process.wait()


def made(folder: Path, template: str = "multi-service") -> Path:
    """Return a project called shop, made by ``tidewire new``."""
    subprocess.run([*COMMAND, "new", "shop", "--template", template], cwd=folder, check=True, capture_output=True)
    return folder / "shop"


def run(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run a command that is expected to end by itself."""
    return subprocess.run(
        [*COMMAND, *arguments],
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
        stdin=subprocess.DEVNULL,
    )


def publish(folder: Path, order: str, total: str = "9.90") -> None:
    """Publish an order, as a person does beside a running dev."""
    data = json.dumps({"order_id": order, "total": total})
    sent = run(folder, "publish", "shop.events:OrderPlaced", "--data", data)
    assert 0 == sent.returncode, sent.stderr


def rows(store: Path, query: str) -> list[tuple[Any, ...]]:
    """Return what a service has in its own database, nothing where it has no such table yet."""
    if not store.exists():
        return []
    connection = sqlite3.connect(store, timeout=10)
    try:
        return connection.execute(query).fetchall()
    except sqlite3.OperationalError:
        return []
    finally:
        connection.close()


def edit(path: Path, old: str, new: str) -> None:
    """Replace text in a file, in one step, as editors do."""
    text = path.read_text("utf-8")
    assert old in text
    beside = path.with_suffix(".new")
    beside.write_text(text.replace(old, new), "utf-8")
    beside.replace(path)


def alive(process: int) -> bool:
    """Say whether a process lives; a zombie does not."""
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    stat = Path(f"/proc/{process}/stat")
    return not (stat.exists() and stat.read_text().rpartition(")")[2].split()[0] == "Z")
