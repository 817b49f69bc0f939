"""Dead letters, as they are shown and removed."""

from __future__ import annotations

from collections.abc import Collection

import msgspec
from aiormq.abc import DeliveredMessage

from tidewire.model import Browsed, DeadChannel
from tidewire.transports.rabbitmq.desk import Desk
from tidewire.transports.rabbitmq.looking import look_at
from tidewire.transports.rabbitmq.names import dead_queue
from tidewire.transports.rabbitmq.wire import read_message

__all__ = ["letters"]


async def letters(desk: Desk, channel: DeadChannel, name: str, *, remove: Collection[str] = ()) -> list[Browsed]:
    """Take all dead letters, ack those to *remove*, give back the rest, and return them all in order.

    *name* is one that nothing else has.

    Raises:
        TransportUnavailable: somebody else has been looking for too long.
    """

    def letter(message: DeliveredMessage) -> Browsed:
        read = read_message(channel, message.header.properties, message.body)
        position = f"{read.stored_at or 0:017d}.{read.name.rpartition('.')[2] or '0'}"
        return Browsed(msgspec.structs.replace(read.message, to=channel), position, read.stored_at)

    def goes(message: DeliveredMessage) -> bool:
        return letter(message).position in remove

    queue = dead_queue(channel.topic, channel.group)
    line, seconds = await desk.line(), desk.settings.timeout
    return [letter(one) for one in await look_at(line, queue, name=name, seconds=seconds, remove=goes)]
