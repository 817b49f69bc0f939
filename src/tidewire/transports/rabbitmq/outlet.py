"""What is published on a channel, and what the broker says of each."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Literal, TypeAlias

from aiormq.abc import DeliveredMessage

from tidewire.errors import TransportUnavailable
from tidewire.transports.rabbitmq.frames import Parcel, publish_frames
from tidewire.transports.rabbitmq.library import Pipe, on_end
from tidewire.transports.rabbitmq.line import Line
from tidewire.transports.rabbitmq.wire import name_of

__all__ = ["Confirm", "Outlet", "open_outlet"]

Confirm: TypeAlias = Literal["ack", "nack", "returned", "unknown"]
_BYTES_MAX = 1 << 20


class _Batch:
    """One call: what became of each, as it comes."""

    __slots__ = ("confirms", "done", "left")

    def __init__(self, number: int, done: asyncio.Future[None]) -> None:
        self.confirms: list[Confirm] = ["unknown"] * number
        self.left = number
        self.done = done

    def put(self, place: int, confirm: Confirm) -> None:
        self.confirms[place] = confirm
        self.left -= 1
        if not self.left and not self.done.done():
            self.done.set_result(None)


class Outlet:
    """A channel with publisher confirms. Everything is published mandatory."""

    def __init__(self, line: Line, pipe: Pipe) -> None:
        self.line = line
        self.pipe = pipe
        self._sent = 0
        self._waiting: dict[int, tuple[_Batch, int, str]] = {}  # by their tags
        self._first = 1  # of the tags that were not confirmed with all before them
        self._returned: set[str] = set()
        pipe.on_confirm = self._confirmed
        pipe.on_return = self._came_back
        on_end(pipe, self._ended)

    @property
    def is_open(self) -> bool:
        """Whether something can be published by it."""
        return self.line.is_open and not self.pipe.is_closed

    async def post(self, parcels: Sequence[Parcel], seconds: float) -> list[Confirm]:
        """Publish *parcels* in order, and wait until the broker has said of each what became of it.

        Without an answer in time the rest is unknown, and the connection is cut: what comes late means nothing then.

        Raises:
            TransportUnavailable: nothing was handed over.
        """
        batch = _Batch(len(parcels), asyncio.get_running_loop().create_future())
        start, size = 0, 0
        try:
            async with asyncio.timeout(seconds):
                for place, parcel in enumerate(parcels):
                    size += len(parcel.body)
                    if size > _BYTES_MAX:
                        self._write(batch, parcels, start, place + 1)
                        start, size = place + 1, 0
                        await self.line.flushed()
                self._write(batch, parcels, start, len(parcels))
                await self.line.flushed()
                if batch.left:
                    await batch.done
        except TimeoutError:
            self.line.cut()
        except TransportUnavailable:
            if batch.left == len(parcels) and not start:
                raise
        return batch.confirms

    def _write(self, batch: _Batch, parcels: Sequence[Parcel], start: int, end: int) -> None:
        if start == end:
            return
        part = parcels[start:end]
        self.line.write(publish_frames(self.pipe.number, part, self.line.body_max))
        for place, parcel in enumerate(part, start):
            self._sent += 1
            self._waiting[self._sent] = (batch, place, parcel.name)

    def _confirmed(self, tag: int, multiple: bool, stored: bool) -> None:
        """Tell at once, in whatever order: a queue that cannot confirm keeps nobody waiting but its own."""
        confirm: Confirm = "ack" if stored else "nack"
        if not multiple:
            self._tell(tag, confirm)
            return
        for one in range(self._first, tag + 1):
            self._tell(one, confirm)
        self._first = max(self._first, tag + 1)

    def _tell(self, tag: int, confirm: Confirm) -> None:
        waiting = self._waiting.pop(tag, None)
        if waiting is None:  # it was told
            return
        batch, place, name = waiting
        if self._returned and name in self._returned:
            self._returned.discard(name)
            confirm = "returned"
        batch.put(place, confirm)

    def _came_back(self, message: DeliveredMessage) -> None:
        self._returned.add(name_of(message.header.properties))

    def _ended(self) -> None:
        waiting, self._waiting = self._waiting, {}
        for batch, place, _ in waiting.values():
            batch.put(place, "unknown")


async def open_outlet(line: Line) -> Outlet:
    """Open a channel of *line* to publish by."""
    return Outlet(line, await line.pipe(confirms=True))
