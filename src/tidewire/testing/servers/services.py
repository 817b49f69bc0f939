"""Servers that outlive the command that starts them: what runs, and the file that tells a shell where it is."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple
from urllib.parse import urlsplit

from tidewire.testing.servers.processes import Server, wait_until_gone

__all__ = ["Running", "Service", "obeyed"]

_ENVIRONMENT = "build/services.env"


class Running(NamedTuple):
    """A server that runs: its folder, its process and its URL."""

    folder: Path
    pid: int
    url: str


@dataclass(frozen=True)
class Service:
    """A server that stays, at most one of its *name* under *root*. The file *record* of ``build`` says what runs.

    *lines* are what it has in ``build/services.env``, with ``{folder}`` and ``{url}`` to be filled in. A line there
    that begins like one of them is ours; what others wrote stays.
    """

    name: str
    root: Path
    record: str
    lines: Sequence[str]

    @property
    def _record(self) -> Path:
        return self.root / "build" / self.record

    @property
    def _environment(self) -> Path:
        return self.root / _ENVIRONMENT

    def running(self) -> Running | None:
        """Return what `up` started, if it still runs and is that server: its command line names its folder."""
        try:
            folder, pid, url = self._record.read_text().splitlines()
            command = Path(f"/proc/{pid}/cmdline").read_bytes()
        except (OSError, ValueError):
            return None
        return Running(Path(folder), int(pid), url) if folder.encode() in command else None

    def up(self, start: Callable[[], Server]) -> str:
        """Let *start* start one that outlives us, unless one runs; write where it is, and return that for people.

        Raises:
            NoServer: it cannot be started.
        """
        running = self.running()
        said = f"{self.name} runs already, pid {running.pid}; {_ENVIRONMENT} says where" if running else ""
        if running is None:
            server = start()
            running = Running(server.folder, server.pid, server.url)
            self._record.parent.mkdir(parents=True, exist_ok=True)
            self._record.touch(0o600)
            self._record.write_text("".join(f"{value}\n" for value in running))
            address = urlsplit(server.url).netloc.rpartition("@")[2]
            said = f"{self.name} on {address}; source {_ENVIRONMENT}"
        self._tell([line.format_map(running._asdict()) for line in self.lines])
        return said

    def down(self, end_by: signal.Signals, seconds: float) -> int | None:
        """End what runs by the signal *end_by*, and remove its folder; return the pid it had, None if nothing ran."""
        running = self.running()
        if running is not None:
            with contextlib.suppress(ProcessLookupError):
                os.kill(running.pid, end_by)
            wait_until_gone([running.pid], seconds)
            shutil.rmtree(running.folder, ignore_errors=True)
        self._record.unlink(missing_ok=True)
        self._tell([])
        return None if running is None else running.pid

    def _tell(self, ours: Sequence[str]) -> None:
        """Put *ours* into the environment file in the place of our lines there; without any line the file goes."""
        file, beginnings = self._environment, tuple(line.partition("{")[0] for line in self.lines)
        there = file.read_text().splitlines() if file.exists() else []
        lines = [*(line for line in there if not line.startswith(beginnings)), *ours]
        if lines:
            file.parent.mkdir(exist_ok=True)
            file.write_text("\n".join(lines) + "\n")
            file.chmod(0o600)
        else:
            file.unlink(missing_ok=True)


def obeyed(
    service: Service,
    word: str,
    *,
    start: Callable[[], Server],
    end_by: signal.Signals = signal.SIGTERM,
    seconds: float = 60.0,
    idle: str = "",
) -> str:
    """Do what *word* says, ``up`` or ``down``, and return that for people; *idle* is said where nothing ran.

    Raises:
        NoServer: it cannot be started.
    """
    if word == "up":
        return service.up(start)
    pid = service.down(end_by, seconds)
    if pid is None:
        return idle or f"no {service.name} runs"
    return f"{service.name} (pid {pid}) has ended"
