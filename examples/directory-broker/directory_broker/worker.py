"""The thread in which all blocking work is done, one thing after another, and when it may no longer be asked."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import ParamSpec, TypeVar

from tidewire.errors import TransportClosed, TransportUnavailable

__all__ = ["Worker"]

Given = ParamSpec("Given")
Result = TypeVar("Result")


class Worker:
    """One thread of one process, until it is closed. *what* names the broker in errors."""

    def __init__(self, what: str) -> None:
        self._what = what
        self._thread = ThreadPoolExecutor(1, "directory-broker")
        self._process = os.getpid()
        self._closed = False

    def submit(self, act: Callable[Given, Result], *given: Given.args, **named: Given.kwargs) -> asyncio.Future[Result]:
        """Do something in the thread, behind what was asked before; errors of the file system become ours."""
        self.check()

        def run() -> Result:
            try:
                return act(*given, **named)
            except OSError as error:
                raise TransportUnavailable(f"{error.filename or self._what}: {error.strerror}") from error

        return asyncio.get_running_loop().run_in_executor(self._thread, run)

    async def run(self, act: Callable[Given, Result], *given: Given.args, **named: Given.kwargs) -> Result:
        """Do something in the thread and wait for it. Cancelled, it has happened, will happen, or does not."""
        return await self.submit(act, *given, **named)

    def check(self) -> None:
        """Raise `TransportClosed` where it was closed, or belongs to the process that was forked."""
        if self._closed or os.getpid() != self._process:
            raise TransportClosed(f"{self._what} is closed here")

    async def close(self) -> None:
        """Refuse what is asked from now on, and wait for what was asked before."""
        self._closed = True
        await asyncio.to_thread(self._thread.shutdown)
