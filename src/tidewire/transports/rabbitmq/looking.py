"""Reading all of a queue: it shows a message only by handing it out, so all are taken for a moment and given back.

Such a queue has a single active consumer: whoever comes second gets nothing before the first has given all back. That
a consumer is exclusive would not do, since quorum queues let everybody in all the same.

Who looks writes a mark behind the last message, to know when it has seen all, and acks each mark that it sees, also
those of looks that broke off. So it may take away the mark of one who waits for its turn: that one writes another.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from itertools import takewhile

from aiormq.abc import DeliveredMessage

from tidewire.errors import TransportUnavailable
from tidewire.kit.waits import happens
from tidewire.transports.rabbitmq.frames import Parcel, ack_frames, entry, properties
from tidewire.transports.rabbitmq.library import on_end
from tidewire.transports.rabbitmq.line import Line
from tidewire.transports.rabbitmq.outlet import Outlet, open_outlet
from tidewire.transports.rabbitmq.wire import name_of

__all__ = ["look_at"]

_SEEN_MAX = 65_535
"""More are not given to one who acks nothing: without saying so, RabbitMQ would stop at 2000."""
_MARK = "mark"
"""The content type of a mark."""
_ACKS_MAX = 24
"""A channel of RabbitMQ passes on 32 acks that no answer has come for. What is above waits in it, and is lost when the
channel is closed. All up to one message are one ack."""
_SOON, _LATEST = 0.05, 2.0
"""Seconds after which who has not seen its mark writes another: at first, and at last."""


async def look_at(
    line: Line, queue: str, *, name: str, seconds: float, remove: Callable[[DeliveredMessage], bool]
) -> tuple[list[DeliveredMessage], list[DeliveredMessage]]:
    """Take all of *queue*, ack what is to be removed, give back the rest; return it all in order, and what was acked.

    More than 65,535 are not seen: what lies behind them is, when some of these are removed. Where much is to be removed
    that does not lie at the front, it is not all acked: look again.

    *name* is one that nothing else has.

    Raises:
        TransportUnavailable: somebody else has been looking for too long, or the connection is gone.
        TransportRefused: there is no such queue.
    """
    outlet = await open_outlet(line)
    look = _Look(outlet, queue, name)
    try:
        await line.ask(outlet.pipe.basic_qos(prefetch_count=_SEEN_MAX))
        await line.ask(outlet.pipe.give(queue, look.take, tag="look"), queue=queue)
        try:
            async with asyncio.timeout(seconds):
                await look.until_all_is_here(seconds)
        except TimeoutError:
            raise TransportUnavailable(f"somebody else has been looking at {queue} for too long") from None
        marks = [one for one in look.taken if one.header.properties.content_type == _MARK and not one.body]
        found = [one for one in look.taken if one not in marks]
        gone = {_tag(one) for one in (*marks, *(one for one in found if remove(one)))}
        front = list(takewhile(gone.__contains__, map(_tag, look.taken)))
        ours = set(map(_tag, marks))  # first of all, or they would be counted
        single = sorted(gone.difference(front), key=lambda tag: (tag not in ours, tag))[:_ACKS_MAX]
        line.write(ack_frames(outlet.pipe.number, front[-1] if front else 0, single))
        acked = {*front, *single}
        return found, [one for one in found if _tag(one) in acked]
    finally:
        await line.close_pipe(outlet.pipe)  # which gives back what was not acked, and does so after the acks


def _tag(message: DeliveredMessage) -> int:
    return message.delivery_tag or 0


class _Look:
    """What was taken so far, and the mark that will be the last of it."""

    def __init__(self, outlet: Outlet, queue: str, name: str) -> None:
        self.taken: list[DeliveredMessage] = []
        self._outlet = outlet
        self._queue = queue
        self._name = name
        self._marks = 0
        self._begun = asyncio.Event()
        self._done = asyncio.Event()
        on_end(outlet.pipe, self._ended)

    def take(self, message: DeliveredMessage) -> None:
        """Take what is given."""
        self.taken.append(message)
        self._begun.set()
        if name_of(message.header.properties) == self._newest or len(self.taken) >= _SEEN_MAX:
            self._done.set()

    @property
    def _newest(self) -> str:
        return f"{self._name}-{self._marks}"

    def _ended(self) -> None:
        self._begun.set()
        self._done.set()

    async def until_all_is_here(self, seconds: float) -> None:
        """Write marks, each when the one before may have been taken away, until the newest has come.

        Raises:
            TransportUnavailable: the connection is gone, or the queue takes nothing.
        """
        pause = _SOON
        while not self._done.is_set():
            ours = self._begun.is_set()  # it is our turn: what is written now comes to us
            self._marks += 1
            mark = properties(entry("tw-at", self._newest.encode()), _MARK, "")
            if await self._outlet.post([Parcel("", self._queue, mark, b"", self._newest)], seconds) != ["ack"]:
                raise TransportUnavailable(f"{self._outlet.line.what}: {self._queue} takes nothing")
            if ours or await happens(self._begun, pause):
                await happens(self._done, seconds if ours else _SOON)
            pause = min(2 * pause, _LATEST)
        if not self._outlet.is_open:
            raise TransportUnavailable(f"{self._outlet.line.what}: the connection is gone")
