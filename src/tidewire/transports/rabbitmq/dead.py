"""Dead letters, as they are shown and removed."""

from __future__ import annotations

from collections.abc import Callable, Collection

import msgspec
from aiormq.abc import DeliveredMessage

from tidewire.model import Browsed, DeadChannel
from tidewire.transports.rabbitmq.desk import Desk
from tidewire.transports.rabbitmq.looking import look_at
from tidewire.transports.rabbitmq.names import dead_queue
from tidewire.transports.rabbitmq.wire import read_message

__all__ = ["letters", "removed"]


async def letters(desk: Desk, channel: DeadChannel, name: str) -> list[Browsed]:
    """Take all dead letters, give them back, and return them in order.

    *name* is one that nothing else has.

    Raises:
        TransportUnavailable: somebody else has been looking for too long.
    """
    found, _ = await _look(desk, channel, name, remove=())
    return found


async def removed(desk: Desk, channel: DeadChannel, names: Callable[[], str], *, wanted: Collection[str]) -> int:
    """Remove the dead letters at the positions *wanted*, and return how many there were. *names* makes names that
    nothing else has.

    Raises:
        TransportUnavailable: somebody else has been looking for too long; some may be gone.
    """
    count = 0
    for _ in range(len(wanted) + 1):  # each look removes one at least, where one is there
        found, gone = await _look(desk, channel, names(), remove=wanted)
        count += len(gone)
        if len(gone) == sum(one.position in wanted for one in found):
            break
    return count


async def _look(
    desk: Desk, channel: DeadChannel, name: str, *, remove: Collection[str]
) -> tuple[list[Browsed], list[Browsed]]:
    def letter(message: DeliveredMessage) -> Browsed:
        read = read_message(channel, message.header.properties, message.body)
        position = f"{read.stored_at or 0:017d}.{read.name.rpartition('.')[2] or '0'}"
        return Browsed(msgspec.structs.replace(read.message, to=channel), position, read.stored_at)

    def goes(message: DeliveredMessage) -> bool:
        return letter(message).position in remove

    queue = dead_queue(channel.topic, channel.group)
    line, seconds = await desk.line(), desk.settings.timeout
    found, gone = await look_at(line, queue, name=name, seconds=seconds, remove=goes)
    return [letter(one) for one in found], [letter(one) for one in gone]
