"""The write turn: one writer at a time among all processes and threads that share a file, and nobody starves.

``flock`` alone lets whoever releases it take it again before a waiter wakes up. So there are two locks: whoever
wants the *turn* first takes the *gate* and keeps it until the turn is his. Whoever has just released the turn
stands behind the gate like everybody else. The kernel drops both when a process dies, however it dies.

A process that is stopped while it stands in line keeps the gate. It is passed by: the gate is for fairness, the turn
alone is for safety.
"""

from __future__ import annotations

import errno
import fcntl
import os
import threading
from datetime import timedelta
from pathlib import Path

__all__ = ["WriteTurn"]

_NO_FLOCK = frozenset({errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP, errno.ENOTSUP, errno.EINVAL})
_PAUSE_FIRST = 0.0002
_PAUSE_MAX = 0.005
# Tries, with their pauses about half a second. Whoever keeps the gate that long while waiting stands still, or is one
# of very many, where being fair has ended anyway.
_PATIENCE = 100
_FLAGS = os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW


class WriteTurn:
    """The turn to write a file at *path*, over the lock files ``path-lock`` and ``path-gate``.

    Threads of one process may share one, and several may be open on one file. Not reentrant.
    Waiting polls, so that a stopped holder cannot hang its peers for ever: a free turn costs four system calls.

    Raises:
        OSError: a lock file cannot be made, or is a symbolic link (``ELOOP``).
    """

    def __init__(self, path: Path) -> None:
        self._inside = threading.Lock()
        self._idle = threading.Event()
        self._has_gate = False
        self._queued = False
        self._refused = 0
        self._turn = os.open(f"{path}-lock", _FLAGS, 0o600)
        try:
            self._gate = os.open(f"{path}-gate", _FLAGS, 0o600)
        except OSError:
            os.close(self._turn)
            raise

    def supported(self) -> bool:
        """Say whether the file system of the lock files knows ``flock``."""
        try:
            fcntl.flock(self._turn, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
        except OSError as error:
            if error.errno in _NO_FLOCK:
                return False
            raise
        fcntl.flock(self._turn, fcntl.LOCK_UN)
        return True

    def acquire(self, longest: timedelta = timedelta(seconds=30)) -> bool:
        """Wait for the turn, at most *longest*; False if it did not come. Blocks: for threads only."""
        rest = longest.total_seconds()
        if not self._inside.acquire(timeout=rest):
            return False
        pause = _PAUSE_FIRST
        while not self._try():
            if rest <= 0:
                self._leave()
                return False
            self._idle.wait(pause)
            rest -= pause
            pause = min(pause * 1.2, _PAUSE_MAX)
        return True

    def try_acquire(self) -> bool:
        """Take the turn if it is free; never blocks, so one caller per object may poll it on an event loop.

        A failed try keeps the caller's place in line where it got one: go on until it succeeds, or `give_up`.
        """
        if not self._queued and not self._inside.acquire(blocking=False):
            return False
        taken = self._try()
        self._queued = self._has_gate
        if not taken and not self._queued:
            self._inside.release()
        return taken

    def give_up(self) -> None:
        """Leave the line after a failed `try_acquire`; harmless outside of it."""
        if self._queued:
            self._queued = False
            self._leave()

    def release(self) -> None:
        """Give the turn to whoever is next."""
        fcntl.flock(self._turn, fcntl.LOCK_UN)
        self._inside.release()

    def close(self) -> None:
        """Close the lock files, which drops what is held; the files stay. In a forked child too: no harm."""
        if self._turn >= 0:
            os.close(self._turn)
            os.close(self._gate)
            self._turn = self._gate = -1

    def _leave(self) -> None:
        self._leave_gate()
        self._inside.release()

    def _leave_gate(self) -> None:
        self._refused = 0
        if self._has_gate:
            self._has_gate = False
            fcntl.flock(self._gate, fcntl.LOCK_UN)

    def _try(self) -> bool:
        if not self._has_gate:
            self._has_gate = _flock(self._gate)
            self._refused += not self._has_gate
        if not self._has_gate and self._refused < _PATIENCE:
            return False
        if not _flock(self._turn):
            return False
        self._leave_gate()
        return True


def _flock(descriptor: int) -> bool:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True
