"""Work in a thread that a cancel may not cut in half: opening and closing files."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from concurrent.futures import Executor, ThreadPoolExecutor
from typing import TypeVar

__all__ = ["apart", "to_the_end"]

T = TypeVar("T")


async def to_the_end(
    function: Callable[[], T],
    undo: Callable[[T], object] | None = None,
    *,
    executor: Executor | None = None,
    hurry: Callable[[], object] | None = None,
) -> T:
    """Run *function* in a thread (of *executor*, or of the loop's) and return its result.

    A cancel rises when it has ended; *undo* gets its result then. *hurry* is called at once, to let it end sooner.

    Raises:
        Whatever *function* raises, unless cancelled meanwhile.
    """
    running = asyncio.get_running_loop().run_in_executor(executor, function)
    cancelled = False
    while not running.done():
        try:
            await asyncio.wait([running])
        except asyncio.CancelledError:
            cancelled = True
            if hurry is not None:
                hurry()
    if not cancelled:
        return running.result()
    if running.exception() is None and undo is not None:
        undo(running.result())
    raise asyncio.CancelledError


async def apart(function: Callable[[], T]) -> T:
    """Run *function* to its end as `to_the_end` does, in a thread of its own, which nobody else's work can fill."""
    with ThreadPoolExecutor(1, "tidewire-apart") as one:
        return await to_the_end(function, executor=one)
