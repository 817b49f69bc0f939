"""What every server of one's own needs: a free port, a process with a log, and an end that is not forgotten."""

from __future__ import annotations

import contextlib
import ctypes
import os
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import AbstractContextManager
from functools import partial
from pathlib import Path
from typing import NamedTuple, Protocol, TypeVar

__all__ = [
    "OURSELVES",
    "Account",
    "NoServer",
    "OwnProcess",
    "Server",
    "ended",
    "free_port",
    "given_or",
    "is_alive",
    "launched",
    "started",
    "wait_until_gone",
    "wait_until_heard",
    "wait_until_ready",
]


class NoServer(Exception):
    """A server cannot be had here; the text says what is missing."""


class Server(Protocol):
    """One server in a folder of its own; `create` comes before the first `start`."""

    folder: Path

    @property
    def pid(self) -> int:
        """The process that has started all others of the server, while it runs."""
        ...

    @property
    def url(self) -> str:
        """The URL by which tidewire opens it."""
        ...

    def create(self) -> None:
        """Make its folder and what it needs there."""
        ...

    def start(self, *, outlives: bool = False) -> None:
        """Start it and wait until it takes connections. Unless it *outlives* us, it ends with this process."""
        ...

    def remove(self) -> None:
        """End it and delete everything; harmless if it does not run."""
        ...


S = TypeVar("S", bound=Server)


class Account(NamedTuple):
    """Whom a child runs as; None means as we do."""

    user: str | None = None
    group: str | None = None
    groups: Sequence[str] | None = None


OURSELVES = Account()


def free_port() -> int:
    """Return a port of 127.0.0.1 that nobody has now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def is_alive(pid: int) -> bool:
    """Whether the process *pid* runs; one that has ended and waits for its parent does not."""
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except (FileNotFoundError, ProcessLookupError):
        return False
    return state != "Z"


def wait_until_gone(pids: Sequence[int], seconds: float) -> None:
    """Wait until none of *pids* runs, for so many *seconds* at most."""
    deadline = time.monotonic() + seconds
    while any(is_alive(pid) for pid in pids) and time.monotonic() < deadline:
        time.sleep(0.01)


def wait_until_heard(pid: int, number: signal.Signals, *, seconds: float = 30.0) -> None:
    """Wait until the process *pid* was interrupted by a signal it has been sent: two that wait at once are one.

    Raises:
        TimeoutError: it does not take it in so many *seconds*.
    """
    deadline = time.monotonic() + seconds
    while _waits(pid, number):
        if time.monotonic() > deadline:
            raise TimeoutError(f"process {pid} takes no {number.name}")
        time.sleep(0.01)


def _waits(pid: int, number: signal.Signals) -> bool:
    """Whether a signal is on its way to a process; never where it has ended, or there is no ``/proc``."""
    try:
        lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    except (FileNotFoundError, ProcessLookupError):
        return False
    pending = [int(line.split()[1], 16) for line in lines if line.startswith(("SigPnd:", "ShdPnd:"))]
    return any(mask >> (number - 1) & 1 for mask in pending)


def launched(
    command: Sequence[str],
    folder: Path,
    *,
    end_by: signal.Signals | None,
    environment: Mapping[str, str] | None = None,
    account: Account = OURSELVES,
) -> subprocess.Popen[bytes]:
    """Start *command* in *folder*, which gets its ``log``, in a session of its own.

    With *end_by* Linux sends it that signal when the *thread* that calls this has ended, not only when the process
    has: call it from a thread that lasts as long as the server shall. With None it outlives us.
    """
    with (folder / "log").open("ab") as log:
        return subprocess.Popen(  # noqa: S603 - the server that was found
            command,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            cwd=folder,
            start_new_session=True,
            preexec_fn=None if end_by is None else partial(_end_with_parent, end_by),
            env=environment,
            user=account.user,
            group=account.group,
            extra_groups=account.groups,
        )


def _end_with_parent(how: signal.Signals) -> None:
    """Ask Linux to send *how* to this process when the thread that started it is gone."""
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None).prctl(1, how)


def wait_until_ready(
    process: subprocess.Popen[bytes], ready: Callable[[], bool], *, name: str, folder: Path, seconds: float
) -> None:
    """Wait until *ready* says so.

    Raises:
        NoServer: the process has ended, or it takes longer than *seconds*; the end of its log is in the text.
    """
    deadline = time.monotonic() + seconds
    while not ready():
        if process.poll() is not None or time.monotonic() > deadline:
            raise NoServer(f"{name} did not start:\n{(folder / 'log').read_text()[-2000:]}")
        time.sleep(0.02)


def ended(process: subprocess.Popen[bytes], how: signal.Signals, *, seconds: float = 20.0) -> None:
    """End *process* by the signal *how*, paused or not; kill it if it has not ended after so many *seconds*."""
    if process.poll() is None:
        process.send_signal(how)
        if how is not signal.SIGKILL:
            process.send_signal(signal.SIGCONT)
    try:
        process.wait(seconds)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


class OwnProcess:
    """A server that is one process of ours, whose *folder* holds all that it has. Starting it sets `_process`."""

    folder: Path
    _process: subprocess.Popen[bytes] | None

    @property
    def pid(self) -> int:
        """The process that runs."""
        assert self._process is not None, "it does not run"
        return self._process.pid

    def stop(self) -> None:
        """End it in good order; nothing if it does not run."""
        self._end(signal.SIGTERM)

    def kill(self) -> None:
        """Kill it as a crash would."""
        self._end(signal.SIGKILL)

    def pause(self) -> None:
        """Let it stand still; every thread of it does on return."""
        pid = self.pid
        os.kill(pid, signal.SIGSTOP)
        for task in Path(f"/proc/{pid}/task").glob("*/stat"):
            while task.read_text().rpartition(")")[2].split()[0] != "T":
                time.sleep(0.001)

    def resume(self) -> None:
        """Let it go on."""
        os.kill(self.pid, signal.SIGCONT)

    def remove(self) -> None:
        """Kill it and delete everything."""
        self.kill()
        shutil.rmtree(self.folder, ignore_errors=True)

    def _end(self, how: signal.Signals) -> None:
        if self._process is not None:
            ended(self._process, how)
            self._process = None


def started(kind: str, make: Callable[[Path], S], *, outlives: bool = False) -> S:
    """Start the server that *make* makes of a temporary folder; nothing is left of one that does not start.

    The folder is not inside the repository, which another account may not be able to enter.
    """
    folder = Path(tempfile.mkdtemp(prefix=f"tidewire-{kind}-"))
    with contextlib.ExitStack() as undo:
        undo.callback(shutil.rmtree, folder, ignore_errors=True)
        server = make(folder)
        undo.callback(server.remove)
        server.create()
        server.start(outlives=outlives)
        undo.pop_all()
    return server


@contextlib.contextmanager
def given_or(variable: str, private: Callable[[], AbstractContextManager[Server]]) -> Generator[str]:
    """Yield the URL that the environment's *variable* holds, else that of a *private* server while the block lasts."""
    if given := os.environ.get(variable):
        yield given
        return
    with private() as server:
        yield server.url
