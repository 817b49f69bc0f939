"""Run a coroutine inside the current task, in a context of its own.

A task per message costs 5 to 8 µs; this costs under one. Context variables that a handler sets do not leak into
the next message (hazard AS9), and `asyncio.timeout` or a cancel scope inside works, because there is a task.
"""

from __future__ import annotations

import types
from collections.abc import Callable, Coroutine, Generator
from contextvars import copy_context
from functools import partial
from typing import Any, TypeVar

__all__ = ["isolated"]

T = TypeVar("T")


@types.coroutine
def isolated(coroutine: Coroutine[Any, Any, T], on_wait: Callable[[], None]) -> Generator[Any, Any, T]:
    """Run *coroutine* and return its result; *on_wait* is called whenever it has to wait."""
    run = copy_context().run
    try:
        waited_for = run(coroutine.send, None)
    except StopIteration as stop:
        result: T = stop.value
        return result
    while True:
        on_wait()
        try:
            value = yield waited_for
        except GeneratorExit:
            run(coroutine.close)
            raise
        except BaseException as error:
            resume = partial(coroutine.throw, error)
        else:
            resume = partial(coroutine.send, value)
        try:
            waited_for = run(resume)
        except StopIteration as stop:
            result = stop.value
            return result
