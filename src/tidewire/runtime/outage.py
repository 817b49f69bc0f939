"""Something that everybody needs is down: wait, longer each time, and try again. Nobody's failure."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable

from tidewire.chance import Jitter
from tidewire.errors import StoreRefused, TidewireError, TransportRefused
from tidewire.rules.retry import outage_delay

__all__ = ["Outage"]

_logger = logging.getLogger("tidewire.consumer")


class Outage:
    """Whether a consumer is paused, since a store, broker or registry is down. *ended* is called when it may go on."""

    def __init__(self, group: str, jitter: Jitter, ended: Callable[[], None]) -> None:
        self.paused = False
        self._group = group
        self._jitter = jitter
        self._ended = ended
        self._in_a_row = 0
        self._over = asyncio.Event()
        self.stopped = False
        self.count = 0

    def begin(self, error: BaseException) -> None:
        """Pause, unless paused already; it ends by itself, and the next thing that runs finds out whether it is up.

        Raises:
            StoreRefused, TransportRefused: *error* itself, if it is one: waiting does not cure it.
        """
        if isinstance(error, (StoreRefused, TransportRefused)):
            raise error
        if self.paused:
            return
        self.paused = True
        self.count += 1
        self._over.clear()
        seconds = outage_delay(self._in_a_row, self._jitter).total_seconds()
        self._in_a_row += 1
        # The text of our own errors names files and hosts; that of others may hold anything.
        detail = error.message if isinstance(error, TidewireError) else ""
        fields = {"group": self._group, "delay_s": seconds, "error_type": type(error).__name__, "detail": detail}
        _logger.warning("tidewire.consumer.paused", extra=fields)
        asyncio.get_running_loop().call_later(seconds, self._end)

    def forget(self) -> None:
        """Something got through to the end: the next outage starts with the shortest delay."""
        self._in_a_row = 0

    def stop(self) -> None:
        """Let nobody wait for the end any more."""
        self.stopped = True
        self._over.set()

    async def over(self) -> None:
        """Return when nothing is known to be down, or after `stop`."""
        while self.paused and not self.stopped:
            await self._over.wait()

    def _end(self) -> None:
        self.paused = False
        self._over.set()
        self._ended()
