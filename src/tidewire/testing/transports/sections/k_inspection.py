"""Section K: inspection."""

# ruff: noqa: SIM300  (the expected value stands on the left)

from __future__ import annotations

import asyncio

import msgspec

from tidewire.errors import TransportRefused
from tidewire.model import Stats
from tidewire.testing.transports.bench import Bench, eventually, raises


def _four(stats: Stats) -> tuple[int | None, ...]:
    return stats.ready, stats.in_flight, stats.delayed, stats.dead


async def _expect(bench: Bench, wanted: tuple[int, int, int, int], *, group: str = "billing") -> None:
    """Demand that ready, in flight, delayed and dead are as *wanted*, soon."""
    seen: list[tuple[int | None, ...]] = []

    async def right() -> bool:
        seen.append(_four(await bench.stats(group)))
        return wanted == seen[-1]

    await eventually(right, f"the counts are {wanted}", seen=seen, within=5.0)


async def test_stats_match_known_state(bench: Bench) -> None:
    """CF-108: after a script of publishes, settles, delays and dead letters the counts are exact."""
    await bench.provision("billing", "shipping", lanes=2)
    await _expect(bench, (0, 0, 0, 0))
    inbox = bench.inbox()
    await bench.publish(bench.messages(10, keys=["a", "b", "c"]))
    await bench.publish(bench.messages(2, to=inbox))
    await bench.publish(bench.messages(1, to=inbox, due=bench.now_us() + 60_000_000))
    await _expect(bench, (12, 0, 1, 0))
    await _expect(bench, (10, 0, 0, 0), group="shipping")
    async with bench.member() as reader:
        found = await reader.take(6)
        await _expect(bench, (6, 6, 1, 0))
        await reader.ack(found[:2])
        await reader.move(found[2], [msgspec.structs.replace(found[2].message, to=bench.dead())])
        await _expect(bench, (6, 3, 1, 1))
        await reader.release(found[3:4], counted=False)
        await _expect(bench, (7, 2, 1, 1))
    await _expect(bench, (9, 0, 1, 1))
    await _expect(bench, (10, 0, 0, 0), group="shipping")


async def test_stats_none_when_unknown_never_negative(bench: Bench) -> None:
    """CF-109: a count is a number from 0 up or None, whatever was settled twice, released or left."""
    await bench.provision()
    await bench.publish(bench.messages(3))
    async with bench.member() as reader:
        found = await reader.take(3)
        await reader.receiver.settle(ack=[*found, *found])
        await reader.receiver.settle(ack=found)
    for number in (*_four(await bench.stats()), (await bench.stats()).oldest_ready):
        assert number is None or number >= 0
    assert (await bench.stats()).oldest_ready is None
    with raises(TransportRefused):
        await bench.stats("nobody")


async def test_stats_cheap(bench: Bench) -> None:
    """CF-110: the counts of a topic with a backlog take less than 50 ms and do not disturb a member."""
    await bench.provision()
    for _ in range(5):
        await bench.publish(bench.messages(1000, keys=["a", "b", "c", "d", "e"]))
    loop = asyncio.get_running_loop()
    async with bench.member() as reader:
        found = await reader.take(100)
        took: list[float] = []
        for _ in range(5):
            start = loop.time()
            stats = await bench.stats()
            took.append(loop.time() - start)
            assert (4900, 100) == (stats.ready, stats.in_flight)
        await reader.ack(found)
    assert sorted(took)[2] < 0.05, f"{took}"


async def test_oldest_ready_age(bench: Bench) -> None:
    """CF-111: the age of the oldest ready message is that of the first one that nobody has."""
    await bench.provision(lanes=1)
    before = bench.now_us()
    await bench.publish(bench.messages(1))
    middle = bench.now_us()
    await asyncio.sleep(0.05)
    await bench.publish(bench.messages(1))
    after = bench.now_us()
    oldest = (await bench.stats()).oldest_ready
    assert oldest is not None
    assert before <= oldest <= middle
    async with bench.member() as reader:
        found = await reader.take(1)
        oldest = (await bench.stats()).oldest_ready
        assert oldest is not None
        assert middle <= oldest <= after
        await reader.release(found)
        assert before <= ((await bench.stats()).oldest_ready or 0) <= middle
