"""The connection by which a transport asks, opened anew when it is gone, and the lock of who provisions."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager

from aiormq.exceptions import ChannelLockedResource

from tidewire.errors import TransportClosed, TransportUnavailable
from tidewire.transports.rabbitmq.line import Line, open_line
from tidewire.transports.rabbitmq.names import LOCK
from tidewire.transports.rabbitmq.settings import RabbitSettings

__all__ = ["Desk"]

_AGAIN = 0.05
_PATIENCE = 10
"""Whoever has the lock may have many questions, each of which may take the whole time-out."""


class Desk:
    """One connection at a time, shared by whoever asks something."""

    def __init__(self, settings: RabbitSettings, name: str) -> None:
        self.settings = settings
        self.name = name
        self._line: Line | None = None
        self._opening = asyncio.Lock()
        self._turn = asyncio.Lock()
        self._closed = False

    async def line(self) -> Line:
        """Return the connection.

        Raises:
            TransportUnavailable: the broker cannot be reached.
            TransportRefused: it does not let us in.
            TransportClosed: the transport is closed.
        """
        if self._line is not None and self._line.is_open and not self._closed:
            return self._line
        async with self._opening:  # it bounds its own waiting
            if self._closed:
                raise TransportClosed(f"{self.settings.what} is closed")
            if self._line is None or not self._line.is_open:
                old, self._line = self._line, None
                if old is not None:
                    await old.close()
                self._line = await open_line(self.settings, self.name)
            return self._line

    @asynccontextmanager
    async def locked(self) -> AsyncGenerator[Line]:
        """Be the only one who provisions, or writes to a journal, for the length of the block.

        Raises:
            TransportUnavailable: somebody else has been at it for too long.
        """
        async with self._turn:  # the lock is the connection's: tasks of ours take turns here
            line = await self.line()
            for _ in range(int(_PATIENCE * self.settings.timeout / _AGAIN) + 1):
                if await self._lock(line):
                    break
                await asyncio.sleep(_AGAIN)
            else:
                raise TransportUnavailable(f"{line.what}: somebody else has been provisioning for too long")
            try:
                yield line
            finally:
                if line.is_open:
                    async with line.a_pipe() as pipe:
                        await line.ask(pipe.queue_delete(LOCK))

    async def _lock(self, line: Line) -> bool:
        async with line.a_pipe() as pipe:
            try:
                await line.ask(pipe.queue_declare(LOCK, exclusive=True))
            except TransportUnavailable as error:
                if isinstance(error.__cause__, ChannelLockedResource):
                    return False
                raise
        return True

    async def close(self) -> None:
        """End the connection; none is opened any more."""
        self._closed = True
        if self._line is not None:
            await self._line.close()
