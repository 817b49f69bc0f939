"""Receiving with credit: one `Receiver.receive` is always outstanding, and can be asked anew at any time."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from datetime import timedelta

from tidewire.model import Delivery, LaneEvent
from tidewire.protocols import Receiver

__all__ = ["Intake"]

_WAIT = timedelta(seconds=30)


class Intake:
    """The one caller of `Receiver.receive`. Runs in one task, which `interrupt` may be called beside."""

    def __init__(self, receiver: Receiver) -> None:
        self._receiver = receiver
        self._task: asyncio.Task[object] | None = None
        self._limit: int | None = None
        self._interrupted = False

    @property
    def starved(self) -> bool:
        """Whether the outstanding call asks for no deliveries."""
        return self._limit == 0

    @property
    def asks(self) -> bool:
        """Whether the outstanding call asks for deliveries."""
        return bool(self._limit)

    async def receive(self, limit: int) -> Sequence[Delivery | LaneEvent]:
        """Return what the broker hands out, or nothing after `interrupt`; cancelling loses nothing by contract."""
        self._task = asyncio.current_task()
        self._limit = limit
        try:
            return await self._receiver.receive(limit, _WAIT)
        except asyncio.CancelledError:
            if not self._interrupted or self._task is None or self._task.uncancel() > 0:
                raise
            return ()
        finally:
            self._limit = None
            self._interrupted = False

    def interrupt(self) -> None:
        """End the outstanding call, so that it can be made anew with another limit; nothing if there is none."""
        if self._limit is not None and not self._interrupted and self._task is not None:
            self._interrupted = True
            self._task.cancel()
