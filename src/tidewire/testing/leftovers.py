"""Running one case alone, and demanding that it leaves nothing behind: no task, no thread, no open file."""

from __future__ import annotations

import asyncio
import gc
import os
import threading
from collections.abc import Callable, Coroutine, Iterator, Sequence
from pathlib import Path

__all__ = ["CASE_SECONDS_MAX", "run_alone"]

CASE_SECONDS_MAX = 60.0
"""No case needs a tenth of it; it ends one that hangs."""


def run_alone(case: Callable[[], Coroutine[None, None, None]]) -> None:
    """Run *case* on an event loop of its own.

    Raises:
        AssertionError: a task outlives it, or a thread or a file descriptor that was not there before.
        TimeoutError: it took longer than `CASE_SECONDS_MAX`.
    """
    before = _held()
    with asyncio.Runner() as runner:
        try:
            runner.run(_limited(case))
        except ExceptionGroup as group:
            raise _only(group) from None  # a task group around one failure, or one skip, says nothing more
    leaked: set[str] = set()
    for patience in range(50):
        leaked = _held() - before
        if not leaked:
            return
        gc.collect()
        threading.Event().wait(0.01 * (patience > 0))  # a thread that has been told to end may need a moment
    raise AssertionError(f"left behind: {sorted(leaked)}")


def _only(error: Exception) -> Exception:
    inner: Sequence[Exception] = getattr(error, "exceptions", ())
    return _only(inner[0]) if len(inner) == 1 else error


async def _limited(case: Callable[[], Coroutine[None, None, None]]) -> None:
    async with asyncio.timeout(CASE_SECONDS_MAX):
        await case()
    tasks = asyncio.all_tasks() - {asyncio.current_task()}
    assert set() == tasks, f"tasks that outlive the case: {tasks}"


def _held() -> set[str]:
    """Return what this process holds: its threads and, where the system tells, its open files."""
    threads = {f"thread {thread.name} {thread.ident}" for thread in threading.enumerate()}
    return threads | set(_open_files())


def _open_files() -> Iterator[str]:
    directory = Path("/proc/self/fd")
    if not directory.is_dir():
        return
    for number in os.listdir(directory):
        try:
            yield f"file descriptor {number} {os.readlink(directory / number)}"
        except FileNotFoundError:
            continue  # the one that listed the directory
