"""A stream that is read from its beginning and knows its end: each record is a chunk of its own."""

from __future__ import annotations

import asyncio

from aiormq.abc import ArgumentsType, DeliveredMessage
from aiormq.exceptions import ChannelNotFoundEntity

from tidewire.errors import TransportRefused, TransportUnavailable
from tidewire.transports.rabbitmq.frames import ack_frames, bare
from tidewire.transports.rabbitmq.library import Pipe
from tidewire.transports.rabbitmq.line import Line
from tidewire.transports.rabbitmq.outlet import open_outlet

__all__ = ["Journal"]

_PREFETCH = 2_000


class Journal:
    """The records of one stream, read on from where the last look ended."""

    def __init__(self, stream: str, timeout: float) -> None:
        self._stream = stream
        self._timeout = timeout
        self._next = 0

    async def make(self, line: Line) -> None:
        """Create it, with a first record that says nothing: an empty stream has no end that could be asked for."""
        async with line.a_pipe() as pipe:
            arguments: ArgumentsType = {"x-queue-type": "stream"}
            await line.ask(pipe.queue_declare(self._stream, durable=True, arguments=arguments))
        await self.append(line, b"")

    async def append(self, line: Line, record: bytes) -> None:
        """Store *record*. Only who holds the lock may: of two that are written at once the end is not certain."""
        outlet = await open_outlet(line)
        try:
            parcel = bare("", self._stream, body=record, name="record")
            if await outlet.post([parcel], self._timeout) != ["ack"]:
                raise TransportUnavailable(f"{line.what}: {self._stream} did not take a record")
        finally:
            await line.close_pipe(outlet.pipe)

    async def read_on(self, line: Line) -> list[tuple[int, bytes]] | None:
        """Return the records that were added since the last time, with their numbers; None if there is no stream."""
        async with line.a_pipe() as pipe:
            await line.ask(pipe.basic_qos(prefetch_count=_PREFETCH))
            try:
                last = await self._consume(line, pipe, "last", until=None)
            except TransportRefused as error:
                if isinstance(error.__cause__, ChannelNotFoundEntity):
                    return None
                raise
            end = last[0][0]
            found = await self._consume(line, pipe, self._next, until=end) if end >= self._next else []
            self._next = end + 1
        return [(offset, body) for offset, body in found if body and offset <= end]

    async def _consume(self, line: Line, pipe: Pipe, start: str | int, *, until: int | None) -> list[tuple[int, bytes]]:
        """Read from *start* to the record *until*, or just one."""
        done: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        found: list[tuple[int, bytes]] = []

        def take(message: DeliveredMessage) -> None:
            offset = (message.header.properties.headers or {}).get("x-stream-offset")
            assert isinstance(offset, int), "a stream says where a record lies"
            found.append((offset, message.body))
            if len(found) % (_PREFETCH // 2) == 0:
                line.write(ack_frames(pipe.number, message.delivery_tag or 0, ()))
            if (until is None or offset >= until) and not done.done():
                done.set_result(None)

        tag = f"from-{start}"
        await line.ask(pipe.give(self._stream, take, tag=tag, start=start))
        await line.ask(done)
        pipe.takers.pop(tag)
        return found
