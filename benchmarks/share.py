"""The framework's own share: what one event costs above a client that costs nothing."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from datetime import timedelta
from typing import Any

from benchmarks.measure import Figure
from benchmarks.throughput import counted
from benchmarks.work import Counter, OrderPlaced, OrderSeen, order
from tidewire import Options, Service, running
from tidewire.clock import SystemClock
from tidewire.model import (
    Capabilities,
    Change,
    Delivery,
    LaneEvent,
    Message,
    Move,
    Receipt,
    Release,
    Settlement,
    Subscription,
    Topic,
)
from tidewire.runtime.notes import Notes
from tidewire.runtime.work import Work

__all__ = ["share"]

_CAPABILITIES = Capabilities(
    order=True,
    fencing=True,
    atomic=True,
    dedup=None,
    native_attempts=True,
    replay=False,
    delay_max=None,
    lease=True,
    batch_max=None,
    durability="none",
    message_bytes_max=1 << 20,
    settle_window=None,
)


class Nothing:
    """A transport that costs nothing: it hands out what it was given, and believes whatever it is told."""

    def __init__(self) -> None:
        self.capabilities = _CAPABILITIES
        self.waiting: list[Delivery] = []
        self.published = 0

    async def provision(self, topics: Sequence[Any], groups: Sequence[Any], *, dry_run: bool = False) -> list[Change]:
        return []

    async def publish(self, messages: Sequence[Message]) -> list[Receipt]:
        self.published += len(messages)
        return [Receipt(message.id, "stored") for message in messages]

    @asynccontextmanager
    async def subscribe(self, subscription: Subscription) -> AsyncIterator[Nothing]:
        self._events: list[Delivery | LaneEvent] = [LaneEvent("assigned", "bench.order/0", 1)]
        yield self

    async def receive(self, limit: int, wait: timedelta) -> list[Delivery | LaneEvent]:
        found, self._events = self._events, []
        if not found and limit and self.waiting:
            found, self.waiting = list(self.waiting[:limit]), self.waiting[limit:]
        if not found:
            await asyncio.sleep(0.0005)
        return found

    async def settle(
        self, *, ack: Sequence[Delivery] = (), release: Sequence[Release] = (), move: Sequence[Move] = ()
    ) -> list[Settlement]:
        return [Settlement(delivery, "settled") for delivery in ack]

    async def steer(self, **lanes: Any) -> None:
        return None


def share(rounds: int, scale: float) -> list[Figure]:
    """Consume and publish above the raw client, with decoding and encoding taken off."""
    count = int(20_000 * scale)
    consume = min(asyncio.run(_consume(count)) for _ in range(rounds))
    publish = min(asyncio.run(_publish(count)) for _ in range(rounds))
    unheard = min(asyncio.run(_unheard(count)) for _ in range(rounds))
    return [
        Figure("framework's share, consume", "µs CPU", "<= 10 µs", round(consume, 2), rounds=rounds, met=consume <= 10),
        Figure("framework's share, publish", "µs CPU", "<= 8 µs", round(publish, 2), rounds=rounds, met=publish <= 8),
        Figure("facts that nobody hears", "µs CPU", "<= 1.5 µs", round(unheard, 2), rounds=rounds, met=unheard <= 1.5),
    ]


async def _consume(count: int) -> float:
    service, counter = Service("bench"), Counter()

    @service.on(OrderPlaced, on_dead_letter="continue")
    async def handle(placed: OrderPlaced) -> None:
        counter.add()

    nothing: Any = Nothing()
    async with running(service, transport=nothing, options=Options(relay=False)) as app:
        messages = [app.publisher.message(order(n)) for n in range(count)]
        nothing.waiting = [Delivery(message, "bench.order/0", 1, n) for n, message in enumerate(messages)]

        async def work() -> None:
            await counter.reach(count)

        whole = await counted(count, work)
        decode = await _plain(count, lambda: _codec().decode(messages[0].body))
    return whole.cpu_us - decode


async def _publish(count: int) -> float:
    nothing: Any = Nothing()
    async with running(Service("bench"), transport=nothing, options=Options(relay=False)) as app:
        event = OrderSeen("order-1")
        codec = _codec(OrderSeen)

        async def work() -> None:
            for _ in range(count // 100):
                await app.publisher.publish_all([event] * 100)

        whole = await counted(count, work)
        encode = await _plain(count, lambda: codec.encode(event))
    return whole.cpu_us - encode


async def _unheard(count: int) -> float:
    """What the consumer's notes of one event cost while no observer listens."""
    notes = Notes(None, SystemClock(), "bench")
    works = [Work(Delivery(_message(), "bench.order/0", 1, 1), None)]

    def note() -> None:
        notes.note("processed", works[0], seconds=0.1)
        notes.settled(works)

    return await _plain(count, note) - await _plain(count, lambda: None)


def _message() -> Message:
    return Message(Topic("bench.order"), "id", "bench", None, {}, b"")


async def _plain(count: int, step: Any) -> float:
    async def work() -> None:
        for _ in range(count):
            step()

    return (await counted(count, work)).cpu_us


def _codec(cls: type = OrderPlaced) -> Any:
    from tidewire.codecs.json import json_codec

    found = _codecs.get(cls)
    if found is None:
        found = _codecs[cls] = json_codec(cls)
    return found


_codecs: dict[type, Any] = {}
