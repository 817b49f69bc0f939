"""Sending to an SQS-like broker: at most ten at a time, of each key one, and each with a name it is recognised by."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from datetime import timedelta
from typing import TypeVar

import msgspec

from tidewire.model import DeadChannel, Message, Receipt, Topic
from tidewire.testing.simulation.models.common import size_of
from tidewire.testing.simulation.models.links import Disconnected, Link, Refusal
from tidewire.testing.simulation.models.queues import send_by_key
from tidewire.testing.simulation.models.sqs import topology
from tidewire.testing.simulation.models.sqs.server import BATCH_MAX, BYTES_MAX, Entry, Sent, SqsServer

__all__ = ["Copy", "Sender", "tens"]

T = TypeVar("T")


class Copy(msgspec.Struct, frozen=True):
    """A message to send. *name*: what a repetition of this very sending is recognised by; *spent*: attempts before."""

    message: Message
    name: str
    spent: int = 0


class Sender:
    """What one client sends."""

    def __init__(self, server: SqsServer, link: Link, *, fifo: bool) -> None:
        self._server = server
        self._link = link
        self._fifo = fifo
        self._names = 0
        server.members += 1
        self._client = server.members

    def name(self) -> str:
        """Return a name that nothing else has."""
        self._names += 1
        return f"c{self._client}-{self._names}"

    async def send(self, copies: Sequence[Copy]) -> list[Receipt]:
        """Send *copies*, of each key one at a time: an entry may fail while a later one of its batch does not.

        Raises:
            TransportUnavailable: nothing was handed over.
        """
        return await send_by_key(copies, self._send)

    async def _send(self, batch: Sequence[Copy], some: bool) -> list[Receipt]:
        """Send one of each key, destination by destination; *some*: others have been sent before."""
        receipts: dict[int, Receipt] = {}
        places: dict[tuple[bool, str], list[tuple[int, Entry]]] = {}
        for place, copy in enumerate(batch):
            found = self._entry(copy)
            if isinstance(found, Receipt):
                receipts[place] = found
            else:
                places.setdefault(found[0], []).append((place, found[1]))
        for (is_topic, name), entries in places.items():
            for chunk in tens(entries, _weight):
                try:
                    call = self._server.publish if is_topic else self._server.send
                    sent = await self._link.call(call, name, [entry for _, entry in chunk])
                except Refusal as error:
                    sent = [Sent(error.code)] * len(chunk)
                except Disconnected as error:
                    if not error.sent and not some and not any(one.ok for one in receipts.values()):
                        raise
                    sent = [Sent("unknown")] * len(chunk)
                some = some or any(one.code in ("", "unknown") for one in sent)
                for (place, _), one in zip(chunk, sent, strict=True):
                    receipts[place] = _receipt(batch[place].message, one)
        return [receipts[place] for place in range(len(batch))]

    def _entry(self, copy: Copy) -> Receipt | tuple[tuple[bool, str], Entry]:
        """Return where a copy goes and as what, or why it cannot."""
        message = copy.message
        most = self._server.message_bytes_max
        size = size_of(message)
        body = topology.packed(message, spent=copy.spent)
        if size > most or len(body) > BYTES_MAX:
            return Receipt(message.id, "rejected", "too_large", f"{size} bytes with headers; at most {most}")
        to = message.to
        if isinstance(to, Topic):
            name = topology.digest("event", message.source, message.id) if message.id else copy.name
            return (True, to.name), self._plain(message, body, name if self._fifo else "")
        if isinstance(to, DeadChannel):
            # Each letter is a group of its own: all of them can be taken at once.
            return (False, topology.dead(to.topic, to.group)), Entry(body=body, group=copy.name, dedup=copy.name)
        wait = topology.due_in(message, self._server.clock.now_us())
        if wait > timedelta(0):
            delay = min(wait, self._server.delay_max).total_seconds()
            return (False, topology.waiting(to.topic, to.group)), Entry(body=body, delay=delay)
        return (False, topology.main(to.topic, to.group, fifo=self._fifo)), self._plain(message, body, copy.name)

    def _plain(self, message: Message, body: str, name: str) -> Entry:
        if not self._fifo:
            return Entry(body=body)
        group = self.name() if message.key is None else topology.digest("key", message.key)
        return Entry(body=body, group=group, dedup=name)


def _receipt(message: Message, sent: Sent) -> Receipt:
    if sent.code == "unknown":
        return Receipt(message.id, "unknown", detail="no answer came")
    if sent.code in ("QueueDoesNotExist", "NotFound"):
        return Receipt(message.id, "rejected", "unknown_topic", f"there is no {message.to}")
    if sent.code:
        return Receipt(message.id, "rejected", "invalid", sent.code)
    return Receipt(message.id, "duplicate" if sent.duplicate else "stored")


def tens(entries: Sequence[T], weigh: Callable[[T], int] = lambda one: 0) -> Iterator[Sequence[T]]:
    """Give *entries* in batches that a call may have: ten, and not too many bytes."""
    batch: list[T] = []
    size = 0
    for one in entries:
        weight = weigh(one)
        if batch and (len(batch) == BATCH_MAX or size + weight > BYTES_MAX):
            yield batch
            batch, size = [], 0
        batch.append(one)
        size += weight
    if batch:
        yield batch


def _weight(one: tuple[int, Entry]) -> int:
    return len(one[1].body)
