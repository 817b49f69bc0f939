"""What grows and what must not: messages, groups, topics."""

from __future__ import annotations

import asyncio
import tempfile
import time
from datetime import timedelta
from pathlib import Path
from typing import Any

import msgspec

from benchmarks.measure import Figure
from benchmarks.throughput import counted
from benchmarks.work import OrderSeen, shop
from tidewire import Service
from tidewire.model import GroupSpec, Subscription, Topic, TopicSpec

__all__ = ["growth"]


def growth(scale: float) -> list[Figure]:
    """Append and poll at 10³ and at 10⁶ messages (scaled), 1 and 100 groups, 1 and 10,000 topics (scaled)."""
    with tempfile.TemporaryDirectory() as directory:
        small, large = asyncio.run(_messages(Path(directory), int(1_000_000 * scale)))
    append, poll = large[0] / small[0], large[1] / small[1]
    with tempfile.TemporaryDirectory() as directory:
        one, many = asyncio.run(_topics(Path(directory), max(100, int(10_000 * scale))))
    with tempfile.TemporaryDirectory() as directory:
        delivery = asyncio.run(_groups(Path(directory)))
    size = f"{int(1_000_000 * scale):,}"
    return [
        Figure(
            f"append, 1,000 → {size} messages",
            "µs/event",
            "<= 1.5x",
            large[0],
            small[0],
            round(append, 2),
            met=append <= 1.5,
        ),
        Figure(
            f"poll, 1,000 → {size} messages", "µs/event", "<= 3.5x", large[1], small[1], round(poll, 2), met=poll <= 3.5
        ),
        Figure(
            "append, 1 → many topics", "µs/event", "<= 3.5x", many, one, round(many / one, 2), met=many <= 3.5 * one
        ),
        Figure("fan-out to 100 groups", "µs CPU", "<= 0.5 µs storage a delivery", delivery, met=delivery <= 0.5),
    ]


async def _messages(directory: Path, total: int) -> tuple[tuple[float, float], tuple[float, float]]:
    """Append until there are *total*, and time batches of 100 near the start and the end; then poll likewise."""
    async with shop(directory, Service("bench")) as (app, transport, _):
        await transport.provision([TopicSpec("bench.seen")], [GroupSpec("reader", ["bench.seen"])])
        appends: list[float] = []
        for start in range(0, total, 1_000):
            messages = [app.publisher.message(OrderSeen(f"o-{n}")) for n in range(start, start + 1_000)]
            before = time.perf_counter()
            await transport.publish(messages)
            appends.append((time.perf_counter() - before) / 1_000 * 1e6)
        early, late = sorted(appends[:10])[5], sorted(appends[-10:])[5]
        subscription = Subscription("reader", ["bench.seen"], "m", prefetch=1_000)
        polls: list[float] = []
        seen = 0
        async with transport.subscribe(subscription) as receiver:
            while seen < total:
                before = time.perf_counter()
                found = [
                    item for item in await receiver.receive(1_000, timedelta(seconds=1)) if hasattr(item, "message")
                ]
                if found:
                    polls.append((time.perf_counter() - before) / len(found) * 1e6)
                    await receiver.settle(ack=found)
                    seen += len(found)
        first, last = sorted(polls[:10])[5], sorted(polls[-10:])[5]
    return (round(early, 2), round(first, 2)), (round(late, 2), round(last, 2))


async def _topics(directory: Path, many: int) -> tuple[float, float]:
    async with shop(directory, Service("bench")) as (app, transport, _):
        specs = [TopicSpec(f"topic-{n}") for n in range(many)]
        await transport.provision(specs, [])
        plain = [app.publisher.message(OrderSeen(f"o-{n}")) for n in range(20 * 1_000)]

        async def rate(topics: int) -> float:
            costs: list[float] = []
            for start in range(0, len(plain), 1_000):
                batch = [
                    msgspec.structs.replace(message, to=Topic(f"topic-{n * 7919 % topics}"), id=f"{topics}-{start}-{n}")
                    for n, message in enumerate(plain[start : start + 1_000])
                ]
                before = time.perf_counter()
                await transport.publish(batch)
                costs.append((time.perf_counter() - before) / 1_000 * 1e6)
            return round(sorted(costs)[len(costs) // 2], 2)

        await rate(1)
        return await rate(1), await rate(many)


async def _groups(directory: Path) -> float:
    """CPU per delivery of storing for 100 groups what is stored for one: cursors, no rows."""
    async with shop(directory, Service("bench")) as (app, transport, _):

        async def cost(groups: int) -> float:
            topic = f"fan-{groups}"
            specs = [GroupSpec(f"g-{groups}-{n}", [topic]) for n in range(groups)]
            await transport.provision([TopicSpec(topic)], specs)
            messages: list[Any] = [
                msgspec.structs.replace(app.publisher.message(OrderSeen(f"o-{n}")), to=Topic(topic))
                for n in range(5_000)
            ]

            async def work() -> None:
                for start in range(0, len(messages), 100):
                    await transport.publish(messages[start : start + 100])

            return (await counted(len(messages), work)).cpu_us

        await cost(1)
        one, hundred = await cost(2), await cost(100)
    return round(max(0.0, hundred - one) / 98, 3)
