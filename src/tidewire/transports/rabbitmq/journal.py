"""A queue whose messages stay: records that are read from the beginning, and added under a lock."""

from __future__ import annotations

from itertools import count

from aiormq.abc import ArgumentsType, DeliveredMessage
from aiormq.exceptions import ChannelNotFoundEntity

from tidewire.errors import TransportRefused, TransportUnavailable
from tidewire.transports.rabbitmq.frames import bare
from tidewire.transports.rabbitmq.line import Line
from tidewire.transports.rabbitmq.looking import look_at
from tidewire.transports.rabbitmq.outlet import open_outlet

__all__ = ["Journal"]

_FOR_EVER = 2_147_483_647


class Journal:
    """The records of one queue, read on from where the last look ended. *name* is one that nobody else has."""

    def __init__(self, queue: str, timeout: float, *, name: str) -> None:
        self._queue = queue
        self._timeout = timeout
        self._name = name
        self._looks = count()
        self._next = 0

    async def make(self, line: Line) -> None:
        """Create it."""
        async with line.a_pipe() as pipe:
            arguments: ArgumentsType = {
                "x-queue-type": "quorum",
                "x-delivery-limit": _FOR_EVER,
                "x-single-active-consumer": True,
            }
            await line.ask(pipe.queue_declare(self._queue, durable=True, arguments=arguments))

    async def append(self, line: Line, record: bytes) -> None:
        """Store *record*. Only who holds the lock may."""
        outlet = await open_outlet(line)
        try:
            parcel = bare("", self._queue, body=record, name="record")
            if await outlet.post([parcel], self._timeout) != ["ack"]:
                raise TransportUnavailable(f"{line.what}: {self._queue} did not take a record")
        finally:
            await line.close_pipe(outlet.pipe)

    async def read_on(self, line: Line) -> list[tuple[int, bytes]] | None:
        """Return the records that were added since the last time, with their numbers; None if there is no queue."""
        name = f"{self._name}-{next(self._looks)}"
        try:
            found, _ = await look_at(line, self._queue, name=name, seconds=self._timeout, remove=_none)
        except TransportRefused as error:
            if isinstance(error.__cause__, ChannelNotFoundEntity):
                return None
            raise
        start, self._next = self._next, max(self._next, len(found))
        return [(number, one.body) for number, one in enumerate(found[start:], start + 1)]


def _none(message: DeliveredMessage) -> bool:
    return False
