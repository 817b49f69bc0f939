"""How fast one relay empties an outbox: to the embedded broker, and to a client that costs nothing."""

from __future__ import annotations

import asyncio
import statistics
import tempfile
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any

from benchmarks.measure import Figure, Sample
from benchmarks.share import Nothing
from benchmarks.throughput import counted
from benchmarks.work import order, shop
from tidewire import Service
from tidewire.runtime.serve import relay_once
from tidewire.stores.sqlite import open_sqlite_store
from tidewire.transports.sqlite import open_sqlite_transport

__all__ = ["Opened", "embedded_broker", "null_publisher", "relay"]

Opened = Callable[[Path], AbstractAsyncContextManager[Any]]
_LONGEST = timedelta(seconds=120)


def relay(rounds: int, scale: float) -> list[Figure]:
    """Drain an outbox that another process has filled: nothing of it is in memory."""
    count = max(512, int(20_000 * scale))
    figures: list[Figure] = []
    for name, opened, least in (
        ("to the embedded broker", embedded_broker, 5_200),
        ("to a null publisher", null_publisher, 20_000),
    ):
        samples = [asyncio.run(_drain(opened, count)) for _ in range(rounds)]
        rate = statistics.median(sample.rate for sample in samples)
        cpu = statistics.median(sample.cpu_us for sample in samples)
        figures.append(
            Figure(
                f"relay {name}",
                "events/s",
                f"> {least:,}/s",
                round(rate),
                cpu_us_per_event=round(cpu, 1),
                rounds=rounds,
                met=rate > least,
            )
        )
    return figures


async def _drain(opened: Opened, count: int) -> Sample:
    with tempfile.TemporaryDirectory() as directory:
        path = Path(directory)
        await _fill(path, count)
        async with open_sqlite_store(path / "store.db") as store, opened(path) as transport:

            async def work() -> None:
                assert await relay_once(store, transport, owner="bench", longest=_LONGEST, provision=True) == 0

            return await counted(count, work)


async def _fill(path: Path, count: int) -> None:
    async with shop(path, Service("bench")) as (app, _, _), open_sqlite_store(path / "store.db") as store:
        await app.publisher.publish(order(0))  # makes the topic
        for start in range(0, count, 512):
            unit = store.unit()
            numbers = range(start, min(start + 512, count))
            await store.outbox.put(unit, [app.publisher.message(order(number)) for number in numbers])
            await (await unit.seal())


@asynccontextmanager
async def embedded_broker(path: Path) -> AsyncIterator[Any]:
    """Open an embedded broker in the folder *path*."""
    async with open_sqlite_transport(path / "broker.db") as transport:
        yield transport


@asynccontextmanager
async def null_publisher(path: Path) -> AsyncIterator[Any]:
    """Open what takes everything and keeps nothing."""
    yield Nothing()
