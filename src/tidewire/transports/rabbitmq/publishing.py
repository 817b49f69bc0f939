"""Handing messages to the broker: routed to lanes by us, mandatory, and confirmed."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from contextlib import suppress
from itertools import count

import msgspec

from tidewire.chance import Ids
from tidewire.errors import TransportClosed, TransportError, TransportRefused, TransportUnavailable
from tidewire.kit.sizes import carried_size
from tidewire.model import Address, DeadChannel, InboxChannel, Message, Receipt, Topic
from tidewire.protocols import Clock
from tidewire.rules.letters import topic_of
from tidewire.transports.rabbitmq.catalogue import Catalogue
from tidewire.transports.rabbitmq.dealing import tier_for
from tidewire.transports.rabbitmq.frames import HEADERS_BYTES_MAX, Parcel
from tidewire.transports.rabbitmq.line import open_line
from tidewire.transports.rabbitmq.names import dead_queue, inbox_queue, lane_of
from tidewire.transports.rabbitmq.outlet import Confirm, Outlet, open_outlet
from tidewire.transports.rabbitmq.topology import Topology
from tidewire.transports.rabbitmq.wire import message_properties

__all__ = ["Copy", "Publisher"]


class Copy(msgspec.Struct, frozen=True, gc=False):
    """A message to be published. *lane*: where it must go, if it is not for us to say · *spent*: attempts of earlier
    copies · *of_topic*: it is on its way to the topic though it waits in the inbox channel."""

    message: Message
    lane: int | None = None
    spent: int = 0
    of_topic: bool = False


class _Lot:
    """The messages of one call, and what becomes of them."""

    def __init__(self, copies: Sequence[Copy]) -> None:
        self.copies = copies
        self.receipts: dict[int, Receipt] = {}
        self.failed: set[tuple[Address, str]] = set()

    def put(self, place: int, receipt: Receipt) -> None:
        self.receipts[place] = receipt
        message = self.copies[place].message
        if not receipt.ok and message.key is not None:
            self.failed.add((message.to, message.key))


class Publisher:
    """The connection by which a transport publishes: one of its own, since an alarm of the broker's stops it whole."""

    def __init__(self, catalogue: Catalogue, topology: Topology, *, clock: Clock, ids: Ids) -> None:
        self._catalogue = catalogue
        self._topology = topology
        self._clock = clock
        self._settings = catalogue.desk.settings
        self._name = ids.event_id().replace("-", "")[-12:]
        self._last_at = 0
        self._turn = count()
        self._outlet: Outlet | None = None
        self._opening = asyncio.Lock()
        self._closed = False

    def name(self) -> str:
        """Return a name for a copy: when it was given away, later than any before, and by whom."""
        self._last_at = max(self._last_at + 1, self._clock.now_us())
        return f"{self._last_at}.{self._name}"

    async def publish(self, copies: Sequence[Copy]) -> list[Receipt]:
        """Publish *copies* and say what became of each.

        Where a topic has a cap the copies of a key go one at a time: behind one that is refused nothing may be stored.
        Else all go at once: a broker that refuses one of them has lost its queue.

        Raises:
            TransportUnavailable: nothing was handed over.
        """
        await self._catalogue.know({copy.message.to for copy in copies})
        lot = _Lot(copies)
        left = list(range(len(copies)))
        while left:
            batch: dict[int, Parcel] = {}
            busy: set[tuple[Address, str]] = set()
            later: list[int] = []
            for place in left:
                message = copies[place].message
                series = None if message.key is None else (message.to, message.key)
                if series is not None and series in lot.failed:
                    lot.put(place, Receipt(message.id, "rejected", "after_failure"))
                elif series is not None and series in busy:
                    later.append(place)
                else:
                    parcel = await self._parcel(copies[place])
                    if isinstance(parcel, Receipt):
                        lot.put(place, parcel)
                        continue
                    batch[place] = parcel
                    if series is not None and self._is_capped(message.to):
                        busy.add(series)
            if batch:
                await self._send(lot, batch)
            left = later
        return [lot.receipts[place] for place in range(len(copies))]

    def _is_capped(self, to: Address) -> bool:
        return isinstance(to, Topic) and self._catalogue.topics[to.name].size_bytes_max is not None

    async def _send(self, lot: _Lot, batch: Mapping[int, Parcel]) -> None:
        some = any(receipt.ok or receipt.status == "unknown" for receipt in lot.receipts.values())
        confirms: list[Confirm]
        try:
            outlet = await self._open()
            await outlet.line.unblocked()
            confirms = await outlet.post(list(batch.values()), self._settings.timeout)
        except TransportUnavailable:
            if not some:
                raise
            confirms = ["unknown" for _ in batch]
        gaps: set[tuple[Address, str | None]] = set()
        for place, confirm in zip(batch, confirms, strict=True):
            message = lot.copies[place].message
            receipt = self._receipt(message, confirm)
            if (message.to, message.key) in gaps:  # it was on its way already
                receipt = Receipt(message.id, "unknown", "after_failure", "one before it was not stored")
            elif not receipt.ok and message.key is not None:
                gaps.add((message.to, message.key))
            lot.put(place, receipt)
        if self._outlet is not None and self._outlet.pipe.is_closed and self._outlet.line.is_open:
            with suppress(TransportError):  # a channel ends so for an exchange that is not there
                await self._catalogue.verify({topic_of(lot.copies[place].message.to) for place in batch})

    def _receipt(self, message: Message, confirm: Confirm) -> Receipt:
        if confirm == "ack":
            return Receipt(message.id, "stored")
        if confirm == "returned":
            return Receipt(message.id, "rejected", "unknown_topic", f"no queue takes what goes to {message.to}")
        if confirm == "unknown":
            return Receipt(message.id, "unknown", "no_answer", "the broker has not confirmed it")
        groups = self._catalogue.groups_on(topic_of(message.to))
        if isinstance(message.to, Topic) and self._is_capped(message.to) and len(groups) == 1:
            return Receipt(message.id, "rejected", "full", f"held back by {groups[0]}")
        return Receipt(message.id, "unknown", "refused", f"the broker refused it for some of {', '.join(groups)}")

    async def _parcel(self, copy: Copy) -> Parcel | Receipt:
        """Return a copy as it travels, or why it cannot."""
        message, most = copy.message, self._settings.message_bytes_max
        if not self._catalogue.knows(message.to):
            return Receipt(message.id, "rejected", "unknown_topic", f"there is no {message.to}")
        name = self.name()
        try:
            size = carried_size(message, most)
            properties = message_properties(message, name, spent=copy.spent, of_topic=copy.of_topic)
        except ValueError as error:
            return Receipt(message.id, "rejected", "invalid", f"a key or a header cannot be carried: {error}")
        if size > most:
            return Receipt(message.id, "rejected", "too_large", f"{size} bytes with headers; at most {most}")
        if len(properties) > HEADERS_BYTES_MAX:
            detail = f"{len(properties)} bytes of headers; at most {HEADERS_BYTES_MAX}"
            return Receipt(message.id, "rejected", "too_large", detail)
        try:
            exchange, key = await self._route(copy)
        except TransportRefused as error:
            return Receipt(message.id, "rejected", "forbidden", str(error))
        return Parcel(exchange, key, properties, message.body, name)

    async def _route(self, copy: Copy) -> tuple[str, str]:
        """Return exchange and routing key."""
        message = copy.message
        to = message.to
        if isinstance(to, DeadChannel):
            return "", dead_queue(to.topic, to.group)
        number = copy.lane
        if number is None:
            lanes = self._catalogue.topics[topic_of(to)].lanes
            number = lane_of(message.key, lanes) if message.key is not None else next(self._turn) % lanes
        if message.not_before is not None:
            tier = tier_for(message.not_before - self._clock.now_us())
            if tier is not None:
                exchange = await self._topology.tier(to, tier)
                return exchange, str(number)
        if isinstance(to, InboxChannel):
            return "", inbox_queue(to.topic, to.group, number)
        return to.name, str(number)

    async def _open(self) -> Outlet:
        if self._outlet is not None and self._outlet.is_open:
            return self._outlet
        async with self._opening:  # it bounds its own waiting
            if self._closed:
                raise TransportClosed(f"{self._settings.what} is closed")
            if self._outlet is None or not self._outlet.is_open:
                old, self._outlet = self._outlet, None
                if old is not None:
                    await old.line.close()
                line = await open_line(self._settings, f"{self._catalogue.desk.name}-publisher")
                self._outlet = await open_outlet(line)
            return self._outlet

    async def close(self) -> None:
        """End the connection."""
        self._closed = True
        if self._outlet is not None:
            await self._outlet.line.close()
