"""Dead letters: a queue shows a message only by handing it out, so that all are taken for a moment and given back."""

from __future__ import annotations

import asyncio
from collections.abc import Collection

import msgspec
from aiormq.abc import DeliveredMessage
from aiormq.exceptions import ChannelAccessRefused

from tidewire.errors import TransportRefused, TransportUnavailable
from tidewire.model import Browsed, DeadChannel
from tidewire.transports.rabbitmq.desk import Desk
from tidewire.transports.rabbitmq.frames import Parcel, ack_frames, entry, properties
from tidewire.transports.rabbitmq.line import Line
from tidewire.transports.rabbitmq.names import dead_queue
from tidewire.transports.rabbitmq.outlet import open_outlet
from tidewire.transports.rabbitmq.wire import name_of, read_message

__all__ = ["letters"]

_AGAIN = 0.02
_MARK = "mark"
"""The content type of what a look writes behind the last letter, to know when it has seen all."""


async def letters(desk: Desk, channel: DeadChannel, name: str, *, remove: Collection[str] = ()) -> list[Browsed]:
    """Take all dead letters, ack those to *remove*, give back the rest, and return them all in order.

    *name* is one that nothing else has.

    Raises:
        TransportUnavailable: somebody else has been looking for too long.
    """
    line = await desk.line()
    for _ in range(int(desk.settings.timeout / _AGAIN) + 1):
        found = await _look(line, channel, name, remove=remove, seconds=desk.settings.timeout)
        if found is not None:
            return found
        await asyncio.sleep(_AGAIN)
    raise TransportUnavailable(f"somebody else has been looking at {channel} for too long")


async def _look(
    line: Line, channel: DeadChannel, name: str, *, remove: Collection[str], seconds: float
) -> list[Browsed] | None:
    """Look once; None if somebody else is looking."""
    queue = dead_queue(channel.topic, channel.group)
    outlet = await open_outlet(line)
    taken: list[DeliveredMessage] = []
    done: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    def take(message: DeliveredMessage) -> None:
        taken.append(message)
        if name_of(message.header.properties) == name and not done.done():
            done.set_result(None)

    pipe = outlet.pipe
    try:
        try:
            await line.ask(pipe.give(queue, take, tag="look", exclusive=True))
        except TransportRefused as error:
            if isinstance(error.__cause__, ChannelAccessRefused) and "exclusive" in str(error.__cause__):
                return None
            raise
        mark = Parcel("", queue, properties(entry("tw-at", name.encode()), _MARK, ""), b"", name)
        if await outlet.post([mark], seconds) != ["ack"]:
            raise TransportUnavailable(f"{line.what}: {queue} takes nothing")
        await line.ask(done)
        found: list[Browsed] = []
        tags: list[int] = []
        for message in taken:
            told = message.header.properties
            tag = message.delivery_tag or 0
            if told.content_type == _MARK and not message.body:
                tags.append(tag)
                continue
            read = read_message(channel, told, message.body)
            position = f"{read.stored_at or 0:017d}.{read.name.rpartition('.')[2] or '0'}"
            found.append(Browsed(msgspec.structs.replace(read.message, to=channel), position, read.stored_at))
            if position in remove:
                tags.append(tag)
        line.write(ack_frames(pipe.number, 0, tags))
        return found
    finally:
        await line.close_pipe(pipe)  # which gives back what was not acked, and does so after the acks
