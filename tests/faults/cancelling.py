"""Cancelling a coroutine at its k-th `await`, for every k: before what it waits for is there, and just after."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Coroutine, Generator
from typing import Any, Literal

Moment = Literal["before", "after"]
STEPS_MAX = 500


class Cut:
    """Runs *coroutine* and cancels the running task when it waits for the *step*-th time.

    *before*: what it waits for has not come. *after*: it has come, and the task has not yet heard of it; a result
    that gets lost then is lost for good.
    """

    def __init__(self, coroutine: Coroutine[Any, Any, Any], step: int, moment: Moment) -> None:
        self._coroutine = coroutine
        self._step = step
        self._moment = moment
        self.reached = False

    def __await__(self) -> Generator[Any, Any, Any]:
        task = asyncio.current_task()
        assert task is not None
        step, error = 0, None
        while True:
            try:
                waited = self._coroutine.send(None) if error is None else self._coroutine.throw(error)
            except StopIteration as end:
                return end.value
            step, error = step + 1, None
            if step == self._step:
                self.reached = True
                if self._moment == "after" and waited is not None:
                    waited.add_done_callback(lambda _: task.cancel())
                else:
                    task.cancel()
            try:
                yield waited
            except BaseException as thrown:
                error = thrown


async def cancelled_everywhere(
    make: Callable[[int], Coroutine[Any, Any, Any]], then: Callable[[int], Awaitable[None]]
) -> int:
    """Run *make(n)* over and over, cancelled one `await` later each time; after each, *then(n)* looks.

    Return how many times it was cancelled. *n* is another number each time.
    """
    number = cuts = 0
    moments: tuple[Moment, ...] = ("before", "after")
    for moment in moments:
        for step in range(1, STEPS_MAX):
            number += 1
            cut = Cut(make(number), step, moment)
            task = asyncio.ensure_future(_run(cut))
            await asyncio.wait([task], timeout=30)
            if not task.done():
                raise AssertionError(f"cancelled {moment} await {step}, it does not end")
            if not task.cancelled() and task.exception() is not None:
                raise AssertionError(f"cancelled {moment} await {step}") from task.exception()
            await then(number)
            if not cut.reached:
                break
            cuts += 1
        else:
            raise AssertionError(f"more than {STEPS_MAX} awaits")
    return cuts


async def _run(cut: Cut) -> Any:
    return await cut
