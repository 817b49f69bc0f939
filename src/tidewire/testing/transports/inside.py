"""What a site needs whose broker lives in the test's own process: its clock, refusals, and a busy client."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from datetime import datetime, timedelta

from tidewire.clock import SystemClock, microseconds
from tidewire.model import Message
from tidewire.protocols import Transport

__all__ = ["JumpingClock", "Refusals", "publish_slowly"]


class JumpingClock(SystemClock):
    """The machine's clocks, with a wall time that can be moved."""

    def __init__(self) -> None:
        self._shift = timedelta(0)

    def now(self) -> datetime:
        """Return the moved wall time."""
        return super().now() + self._shift

    def now_us(self) -> int:
        """Return the moved wall time in microseconds."""
        return microseconds(self.now())

    def jump(self, by: timedelta) -> None:
        """Move the wall time."""
        self._shift += by


class Refusals:
    """The ids of messages of which each is to be refused once."""

    def __init__(self) -> None:
        self._ids: set[str] = set()

    def add(self, name: str) -> None:
        """Let the broker refuse the message with this id."""
        self._ids.add(name)

    def reason(self, message: Message) -> str | None:
        """Return why *message* is refused, if so."""
        if message.id not in self._ids:
            return None
        self._ids.discard(message.id)
        return "invalid"


async def publish_slowly(transport: Transport, messages: Sequence[Message]) -> None:
    """Publish one by one, with time for others between them."""
    for one in messages:
        await transport.publish([one])
        await asyncio.sleep(0.0005)
