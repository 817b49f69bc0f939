"""Work in forked children that are thrown away: what it changes in memory is gone, and what hangs is ended."""

from __future__ import annotations

import gc
import logging
import os
import selectors
import signal
import sys
from collections.abc import Callable, Generator, Iterable
from itertools import islice
from typing import Generic, TypeVar

from tidewire.testing.simulation.crashtest.guard import shut_in

__all__ = ["forked"]

T = TypeVar("T")
_SECONDS_MAX = 60


def forked(tasks: Iterable[T], work: Callable[[T], bytes], *, jobs: int = 1) -> Generator[tuple[T, bytes]]:
    """Do *work* on each of *tasks* in a child of its own, *jobs* at a time; give each with its answer, as it comes.

    The answer is empty where the child died or took longer than a minute. Children that still run when the caller
    stops asking are killed.
    """
    waiting = iter(tasks)
    children: dict[int, _Child[T]] = {}
    with selectors.DefaultSelector() as selector:
        try:
            while True:
                for task in islice(waiting, jobs - len(children)):
                    child = _Child(task, work)
                    children[child.pipe] = child
                    selector.register(child.pipe, selectors.EVENT_READ)
                if not children:
                    return
                for key, _ in selector.select():
                    child = children[key.fd]
                    if child.read():
                        selector.unregister(key.fd)
                        del children[key.fd]
                        yield child.task, child.close()
        finally:
            for child in children.values():
                child.kill()


class _Child(Generic[T]):
    """One forked process with one task."""

    def __init__(self, task: T, work: Callable[[T], bytes]) -> None:
        self.task = task
        self._read: list[bytes] = []
        self.pipe, write = os.pipe()
        sys.stdout.flush()
        sys.stderr.flush()
        self._pid = os.fork()
        if self._pid == 0:
            _do(task, work, write)
        os.close(write)

    def read(self) -> bool:
        """Take in what has come; True at its end."""
        data = os.read(self.pipe, 1 << 16)
        self._read.append(data)
        return not data

    def close(self) -> bytes:
        """Reap it and return its answer."""
        os.close(self.pipe)
        _, status = os.waitpid(self._pid, 0)
        return b"".join(self._read) if status == 0 else b""

    def kill(self) -> None:
        """End it."""
        os.kill(self._pid, signal.SIGKILL)
        self.close()


def _do(task: T, work: Callable[[T], bytes], pipe: int) -> None:
    """Do the task in this child and leave, without a single destructor; what it prints goes nowhere."""
    status = 1
    try:
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        signal.alarm(_SECONDS_MAX)
        gc.disable()
        logging.disable(logging.CRITICAL)
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, 1)
        os.dup2(nowhere, 2)
        shut_in()
        answer = work(task)
        while answer:
            answer = answer[os.write(pipe, answer) :]
        status = 0
    finally:
        os._exit(status)
