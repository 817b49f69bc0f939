"""Reading all of a queue: it shows a message only by handing it out, so all are taken for a moment and given back."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from aiormq.abc import DeliveredMessage
from aiormq.exceptions import ChannelAccessRefused

from tidewire.errors import TransportRefused, TransportUnavailable
from tidewire.transports.rabbitmq.frames import Parcel, ack_frames, entry, properties
from tidewire.transports.rabbitmq.line import Line
from tidewire.transports.rabbitmq.outlet import open_outlet
from tidewire.transports.rabbitmq.wire import name_of

__all__ = ["look_at"]

_AGAIN = 0.02
_SEEN_MAX = 65_535
"""More are not given to one who acks nothing: without saying so, RabbitMQ would stop at 2000."""
_MARK = "mark"
"""The content type of what a look writes behind the last message, to know when it has seen all."""


async def look_at(
    line: Line, queue: str, *, name: str, seconds: float, remove: Callable[[DeliveredMessage], bool]
) -> list[DeliveredMessage]:
    """Take all of *queue*, ack what is to be removed, give back the rest, and return it all in order.

    More than 65,535 are not seen: what lies behind them is, when some of these are removed.

    *name* is one that nothing else has.

    Raises:
        TransportUnavailable: somebody else has been looking for too long.
        TransportRefused: there is no such queue.
    """
    for _ in range(int(seconds / _AGAIN) + 1):
        found = await _look(line, queue, name=name, seconds=seconds, remove=remove)
        if found is not None:
            return found
        await asyncio.sleep(_AGAIN)
    raise TransportUnavailable(f"somebody else has been looking at {queue} for too long")


async def _look(
    line: Line, queue: str, *, name: str, seconds: float, remove: Callable[[DeliveredMessage], bool]
) -> list[DeliveredMessage] | None:
    """Look once; None if somebody else is looking."""
    outlet = await open_outlet(line)
    taken: list[DeliveredMessage] = []
    done: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    def take(message: DeliveredMessage) -> None:
        taken.append(message)
        if (name_of(message.header.properties) == name or len(taken) >= _SEEN_MAX) and not done.done():
            done.set_result(None)

    pipe = outlet.pipe
    try:
        await line.ask(pipe.basic_qos(prefetch_count=_SEEN_MAX))
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
        marks = [one for one in taken if one.header.properties.content_type == _MARK and not one.body]
        found = [one for one in taken if one not in marks]
        gone = [*marks, *(one for one in found if remove(one))]
        line.write(ack_frames(pipe.number, 0, [one.delivery_tag or 0 for one in gone]))
        return found
    finally:
        await line.close_pipe(pipe)  # which gives back what was not acked, and does so after the acks
