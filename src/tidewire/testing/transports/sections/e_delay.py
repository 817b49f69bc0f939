"""Section E: delay."""

# ruff: noqa: SIM300  (the expected value stands on the left)

from __future__ import annotations

import asyncio
from datetime import timedelta

import msgspec

from tidewire.model import Address, Delivery, Topic
from tidewire.testing.transports.bench import Bench, bodies, eventually, ids

LATE_MAX = 1_000_000
"""Microseconds a delayed message may come after its time."""


async def test_delay_not_early(bench: Bench) -> None:
    """CF-59: a delayed message never comes early, and at most a second late, in a topic and in an inbox channel."""
    await bench.provision()
    addresses: list[Address] = [Topic(bench.topic), bench.inbox()]
    due: dict[str, int] = {}
    async with bench.member() as reader:
        await bench.publish(bench.messages(1, keys=[None]))
        await reader.consume(1)  # it has its lanes: joining a group is not to be counted as lateness
        for address in addresses:
            for milliseconds in (500, 200, 50):
                (message,) = bench.messages(1, keys=[None], to=address, due=bench.now_us() + milliseconds * 1000)
                await bench.publish([message])
                due[message.id] = message.not_before or 0
        while due:
            (one,) = await reader.consume(1)
            lateness = bench.now_us() - due.pop(one.message.id)
            assert 0 <= lateness <= LATE_MAX, f"{lateness} µs after its time"


async def test_delay_short_after_long(bench: Bench) -> None:
    """CF-60: a message with a short delay does not wait behind one with a long delay that came first."""
    await bench.provision(lanes=1)
    (long,) = bench.messages(1, to=bench.inbox(), due=bench.now_us() + 30_000_000)
    (short,) = bench.messages(1, to=bench.inbox(), due=bench.now_us() + 200_000)
    await bench.publish([long])
    await bench.publish([short])
    async with bench.member() as reader:
        assert [short.id] == ids(await reader.consume(1, within=2.0))


async def test_delay_beyond_native_max(bench: Bench) -> None:
    """CF-61: a delay longer than the broker's own longest one is kept, and the message comes once."""
    bench.need(delay_max=bench.capabilities.delay_max is not None)
    await bench.provision()
    longest = bench.capabilities.delay_max or timedelta(0)
    due = bench.now_us() + longest // timedelta(microseconds=1) + 500_000
    messages = bench.messages(1, to=bench.inbox(), due=due)
    await bench.publish(messages)
    async with bench.member() as reader:
        assert ids(messages) == ids(await reader.consume(1, within=longest.total_seconds() + 2.0))
        assert due <= bench.now_us()


async def test_delay_survives_restart(bench: Bench) -> None:
    """CF-62: what waits for its time waits on through a restart of the broker and all clients."""
    bench.need(durability=bench.capabilities.durability != "none")
    await bench.provision()
    due = bench.now_us() + 700_000
    messages = [*bench.messages(1, due=due), *bench.messages(1, to=bench.inbox(), due=due)]
    await bench.publish(messages)
    await bench.restart()
    async with bench.member() as reader:
        found = await reader.consume(2)
    assert due <= bench.now_us()
    assert sorted(ids(messages)) == sorted(ids(found))


async def test_delay_none_does_not_block_others(bench: Bench) -> None:
    """CF-63: without ordering a message that is released with a delay waits alone, and not less than its delay."""
    await bench.provision(lanes=1)
    await bench.publish(bench.messages(4))
    wanted = msgspec.structs.replace(bench.subscription(), ordering="none")
    async with bench.member(subscription=wanted) as reader:
        (first,) = await reader.take(1)
        released = bench.now_us()
        await reader.release([first], delay=timedelta(seconds=1))
        assert [b"1", b"2", b"3"] == bodies(await reader.consume(3))  # the first would come before them, or between
        (again,) = await reader.consume(1)
        assert 1_000_000 <= bench.now_us() - released <= 1_000_000 + LATE_MAX
    assert (first.message.id, 2) == (again.message.id, again.attempt)


async def test_released_delay_survives_a_handover(bench: Bench) -> None:
    """CF-63: a message that was released with a delay keeps it when its member leaves."""
    await bench.provision(lanes=1)
    await bench.publish(bench.messages(1))
    wanted = msgspec.structs.replace(bench.subscription(), ordering="none")
    async with bench.member(subscription=wanted) as reader:
        found = await reader.take(1)
        released = bench.now_us()
        await reader.release(found, delay=timedelta(milliseconds=400), counted=False)
    async with bench.member() as reader:
        (again,) = await reader.consume(1)
        assert 400_000 <= bench.now_us() - released
    assert 1 == again.attempt


async def test_delayed_visible_in_stats_delayed(bench: Bench) -> None:
    """CF-64: what waits for its time is counted as delayed, and as ready when it is due."""
    await bench.provision()
    await bench.publish(bench.messages(3, to=bench.inbox(), due=bench.now_us() + 1_500_000))
    await bench.publish(bench.messages(2))
    stats = await bench.stats()
    assert (2, 3) == (stats.ready, stats.delayed)

    async def due() -> bool:
        stats = await bench.stats()
        return (5, 0) == (stats.ready, stats.delayed)

    await eventually(due, "the delayed ones are ready")


async def test_thousand_delayed_same_instant(bench: Bench) -> None:
    """CF-65: a thousand messages that are due at one instant all arrive, and live traffic does not stall."""
    await bench.provision()
    due = bench.now_us() + 500_000
    delayed = bench.messages(1000, keys=[f"k{number}" for number in range(50)], to=bench.inbox(), due=due)
    await bench.publish(delayed)
    async with bench.member() as reader:
        live = bench.messages(20)
        loop = asyncio.get_running_loop()
        found: list[Delivery] = []
        for message in live:
            start = loop.time()
            await bench.publish([message])
            while message.id not in set(ids(found)):
                batch = await reader.poll(200)
                await reader.ack(batch)
                found += batch
                assert loop.time() - start < 2.0, "a live message stalls behind delayed ones"
        found += await reader.consume(1020 - len(found))
    assert sorted(ids([*live, *delayed])) == sorted(ids(found))


async def test_delayed_message_joins_its_key_when_due(bench: Bench) -> None:
    """CF-59: a message that waits for its time holds back no later one of its key."""
    await bench.provision(lanes=1)
    await bench.publish([*bench.messages(1, due=bench.now_us() + 300_000), *bench.messages(2)[1:]])
    async with bench.member() as reader:
        assert [b"1", b"0"] == bodies(await reader.consume(2))
