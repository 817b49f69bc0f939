"""Section Q: a whole service on the transport, with the real runtime: order behind its scheduler, and its drain."""

# ruff: noqa: S311, SIM300  (seeded chance; the expected value stands on the left)

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from datetime import timedelta

import msgspec

from tidewire.protocols import Transport
from tidewire.rules.events import event
from tidewire.runtime.context import Context
from tidewire.runtime.serve import Options, Running, running
from tidewire.runtime.service import Service
from tidewire.testing.transports.bench import LEASE, Bench, eventually


class _Log(msgspec.Struct):
    """What handlers saw, in the order in which they ended, and how many keys were in progress at once."""

    handled: list[tuple[str, int, int]] = msgspec.field(default_factory=list[tuple[str, int, int]])
    active: set[str] = msgspec.field(default_factory=set[str])
    overlap: int = 0
    clashes: list[str] = msgspec.field(default_factory=list[str])


class _Numbered(msgspec.Struct, frozen=True):
    key: str
    number: int


def _service(bench: Bench, log: _Log, *, seconds: float) -> tuple[Service, type[_Numbered]]:
    """Return a service that takes its time and notes everything, and the class of its event."""

    @event(f"{bench.topic}.numbered", key="key")
    class Numbered(_Numbered, frozen=True):
        pass

    service = Service(bench.name("billing"), concurrency=32)
    chance = random.Random(30)

    @service.on(Numbered, ordering="key" if bench.capabilities.order else "none", on_dead_letter="continue")
    async def handle(one: _Numbered, context: Context) -> None:
        if one.key in log.active:
            log.clashes.append(one.key)
        log.active.add(one.key)
        log.overlap = max(log.overlap, len(log.active))
        await asyncio.sleep(chance.uniform(0.0, seconds))
        log.active.discard(one.key)
        log.handled.append((one.key, one.number, context.attempt))

    return service, Numbered


@asynccontextmanager
async def _run(service: Service, transport: Transport) -> AsyncGenerator[Running]:
    options = Options(lease=LEASE, grace=timedelta(seconds=5), relay=False)
    async with running(service, transport=transport, options=options) as app:
        yield app


async def test_key_order_with_concurrency(bench: Bench) -> None:
    """CF-30: with 32 handlers at once each key is handled one after another, in order, and different keys overlap."""
    bench.need(order=bench.capabilities.order)
    log = _Log()
    service, made = _service(bench, log, seconds=0.01)
    async with _run(service, bench.transport) as app:
        await app.publisher.publish_all([made(key=f"k{number % 10}", number=number) for number in range(200)])

        async def complete() -> bool:
            return len(log.handled) >= 200

        await eventually(complete, "all are handled")
    assert [] == log.clashes
    assert 1 < log.overlap
    for key in {key for key, _, _ in log.handled}:
        numbers = [number for other, number, _ in log.handled if other == key]
        assert sorted(numbers) == numbers


async def test_stop_loses_nothing_and_counts_nothing(bench: Bench) -> None:
    """CF-122: a service that is stopped in the middle and started again handles each event once, at attempt 1."""
    log = _Log()
    service, made = _service(bench, log, seconds=0.02)
    async with _run(service, bench.transport) as app:
        await app.publisher.publish_all([made(key=f"k{number % 25}", number=number) for number in range(100)])

        async def begun() -> bool:
            return len(log.handled) >= 20

        await eventually(begun, "some are handled")
    stopped = len(log.handled)
    async with _run(service, await bench.open()):

        async def complete() -> bool:
            return len(log.handled) >= 100

        await eventually(complete, "the rest is handled")
    assert stopped < 100, "it was stopped in the middle"
    assert list(range(100)) == sorted(number for _, number, _ in log.handled)
    assert {1} == {attempt for _, _, attempt in log.handled}
