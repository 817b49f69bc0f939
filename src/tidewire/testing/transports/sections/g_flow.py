"""Section G: flow control."""

# ruff: noqa: S311, SIM300  (seeded chance; the expected value stands on the left)

from __future__ import annotations

import asyncio
import random
from contextlib import AsyncExitStack
from datetime import timedelta
from pathlib import Path
from statistics import median

import msgspec

from tidewire.model import Delivery, LaneEvent, Message, Release
from tidewire.testing.transports.bench import CALM, LEASE, Bench, Reader, by_key, ids, spread

KEYS = [f"k{number}" for number in range(20)]


async def test_receive_respects_limit_and_prefetch(bench: Bench) -> None:
    """CF-77: a receive gives no more than its limit, and no more than the prefetch is unsettled at a time."""
    await bench.provision()
    await bench.publish(bench.messages(50, keys=KEYS))
    async with bench.member(subscription=bench.subscription(prefetch=10)) as reader:
        assert 3 == len(await reader.take(3))
        await reader.take(7)
        await reader.silence(0.1)
        stats = await bench.stats()
        assert 10 == stats.in_flight
        await reader.ack(list(reader.unsettled.values())[:4])
        await reader.take(4)
        await reader.silence(0.05)


async def test_no_credit_keeps_membership(bench: Bench) -> None:
    """CF-78: a member that asks for lane events only, for three leases, stays owner and hears a revocation at once."""
    bench.need(lease=bench.capabilities.lease, lanes=bench.capabilities.lanes)
    await bench.provision(lanes=2)
    await bench.publish(bench.messages(4, keys=KEYS))
    async with bench.member(subscription=msgspec.structs.replace(bench.subscription(), grace=CALM)) as reader:
        found = await reader.take(4)
        loop = asyncio.get_running_loop()
        end = loop.time() + 3 * LEASE.total_seconds()
        while loop.time() < end:
            assert [] == await reader.poll(0, 0.2)
        assert {"assigned"} == {event.kind for event in reader.events}
        other = await bench.open()
        async with asyncio.TaskGroup() as tasks:
            heard = tasks.create_task(reader.receiver.receive(0, timedelta(seconds=5)))
            await asyncio.sleep(0.05)
            start = loop.time()
            async with bench.member(transport=other):
                events = await heard
                assert loop.time() - start < 4.0, "a revocation is heard at once"
        assert ["revoking"] == [event.kind for event in events if isinstance(event, LaneEvent)]
        await reader.ack(found)


async def test_revocation_has_a_deadline_and_drained_ends_it(bench: Bench) -> None:
    """CF-78: a revoked lane gives nothing out, may be settled until its deadline, and goes on when it is drained."""
    bench.need(lanes=bench.capabilities.lanes)
    await bench.provision(lanes=2)
    await bench.publish(bench.messages(40, keys=KEYS))
    owner = await bench.open()
    peer = await bench.open()
    async with AsyncExitStack() as stack:
        receiver = await stack.enter_async_context(owner.subscribe(bench.calm(prefetch=4)))
        await Reader(receiver).until_owner(2)
        other = await stack.enter_async_context(bench.member(transport=peer))
        deliveries: list[Delivery] = []
        revoking: list[LaneEvent] = []
        while not revoking:
            for one in await receiver.receive(4, timedelta(seconds=2)):
                if isinstance(one, Delivery):
                    deliveries.append(one)
                elif one.kind == "revoking":
                    revoking.append(one)
            await other.poll(0, 0.01)
        (event,) = revoking
        assert event.deadline is not None
        mine = [one for one in deliveries if one.lane == event.lane]
        assert ["settled"] * len(deliveries) == [one.status for one in await receiver.settle(ack=deliveries)]
        later = [one for one in await receiver.receive(4, timedelta(milliseconds=50)) if isinstance(one, Delivery)]
        assert event.lane not in {one.lane for one in later}
        await receiver.steer(drained=[event.lane])
        found = await other.take(1)
        assert event.lane == found[0].lane
        assert event.epoch < found[0].epoch
        assert not set(ids(mine)) & set(ids(found))
        late = [Release(one) for one in mine]
        assert ["lost"] * len(mine) == [one.status for one in await receiver.settle(release=late)]
        await receiver.settle(release=[Release(one) for one in later])  # else leaving would wait for them


async def test_revoked_lane_that_is_not_drained_is_lost(bench: Bench) -> None:
    """CF-78: a member that does not drain a revoked lane loses it at the deadline, and hears so."""
    bench.need(lanes=bench.capabilities.lanes)
    await bench.provision(lanes=2)
    messages = bench.messages(8, keys=KEYS)
    await bench.publish(messages)
    stubborn = await bench.open()
    async with stubborn.subscribe(bench.subscription()) as receiver:
        held: list[Delivery] = []
        while len(held) < 8:
            held += [one for one in await receiver.receive(8, timedelta(seconds=2)) if isinstance(one, Delivery)]
        async with bench.member(transport=await bench.open()) as other:
            (lane,) = {one.lane for one in await other.take(1)}
            wanted = [one for one in held if one.lane == lane]
            found = list(other.unsettled.values()) + await other.take(len(wanted) - 1)
            assert sorted(ids(wanted)) == sorted(ids(found))
            assert {True} == {one.suspect for one in found}
            kinds = [one.kind for one in await receiver.receive(0, timedelta(seconds=2)) if isinstance(one, LaneEvent)]
            assert ["revoking", "lost"] == kinds
            assert ["lost"] * len(wanted) == [one.status for one in await receiver.settle(ack=wanted)]
            await other.ack(found)


async def test_steer_pause_others_flow(bench: Bench) -> None:
    """CF-79: a paused lane gives nothing out, all others do."""
    bench.need(order=bench.capabilities.order)
    await bench.provision()
    async with bench.member() as reader:
        await reader.until_owner(4)
        await bench.publish(bench.messages(20, keys=KEYS))
        found = await reader.consume(20)
        paused = found[0].lane
        await reader.receiver.steer(pause=[paused])
        there = len({one.message.key for one in found if one.lane == paused})
        await bench.publish(bench.messages(20, keys=KEYS))
        again = await reader.consume(20 - there)
        await reader.silence(0.1)
        assert paused not in {one.lane for one in again}


async def test_steer_resume_continues_at_right_place(bench: Bench) -> None:
    """CF-80: a lane that is resumed goes on with the next message: none is left out, none comes twice."""
    bench.need(order=bench.capabilities.order)
    await bench.provision(lanes=1)
    messages = bench.messages(30)
    await bench.publish(messages)
    async with bench.member() as reader:
        found = await reader.consume(7)
        await reader.receiver.steer(pause=[found[0].lane])
        await reader.silence(0.05)
        await reader.receiver.steer(resume=[found[0].lane])
        assert ids(messages) == ids([*found, *await reader.consume(23)])


async def test_slow_consumer_bounded_memory(bench: Bench) -> None:
    """CF-81: a member that settles nothing beside a backlog of 20 MB holds its prefetch and no more."""
    await bench.provision()
    for _ in range(10):
        batch = bench.messages(1000, keys=KEYS)
        await bench.publish([_padded(one) for one in batch])
    async with bench.member(subscription=bench.subscription(prefetch=50)) as reader:
        await reader.take(50)
        before = _resident_bytes()
        await reader.silence(0.3)
        grown = _resident_bytes() - before
    assert grown < 5_000_000, f"{grown} bytes more while nothing was handed out"


def _padded(message: Message) -> Message:
    return Message(message.to, message.id, message.source, message.key, message.headers, bytes(2000))


def _resident_bytes() -> int:
    status = Path("/proc/self/statm")
    return int(status.read_text().split()[1]) * 4096 if status.exists() else 0


async def test_receive_latency_when_idle(bench: Bench) -> None:
    """CF-82: an idle member has a message within 100 ms of its publish, from the same client and another one."""
    await bench.provision()
    clients = [bench.transport, await bench.open()]
    loop = asyncio.get_running_loop()
    took: list[list[float]] = [[], []]
    async with bench.member() as reader:
        await reader.until_owner(4)
        for number in range(60):
            async with asyncio.TaskGroup() as tasks:
                waiting = tasks.create_task(reader.poll(10, 5.0))
                await asyncio.sleep(0.001)
                start = loop.time()
                await clients[number % 2].publish(bench.messages(1))
                found = await waiting
            took[number % 2].append(loop.time() - start)
            await reader.ack(found)
    # A broker that has to be asked again and again is late as a rule, a busy machine now and then.
    assert max(map(median, took)) < 0.1, f"slowest: {[sorted(each)[-3:] for each in took]}"


async def test_receive_returns_early_with_partial_batch(bench: Bench) -> None:
    """CF-83: a receive returns with what there is; it does not wait for its limit."""
    await bench.provision()
    await bench.publish(bench.messages(3))
    loop = asyncio.get_running_loop()
    async with bench.member() as reader:
        await reader.until_owner(4)
        start = loop.time()
        found = await reader.poll(100, 2.0)
        assert 3 == len(found)
        assert loop.time() - start < 1.0
        start = loop.time()
        assert [] == await reader.poll(100, 0.2)
        assert loop.time() - start >= 0.19


async def test_cancel_receive_never_loses(bench: Bench) -> None:
    """CF-84: receives that are cancelled at random lose nothing, keep the order and count nothing."""
    await bench.provision()
    messages = bench.messages(300, keys=KEYS)
    chance = random.Random(84)
    found: list[Delivery] = []

    async def publish() -> None:
        for start in range(0, 300, 3):
            await bench.publish(messages[start : start + 3])
            await asyncio.sleep(0.001)

    async with bench.member() as reader, asyncio.TaskGroup() as tasks:
        tasks.create_task(publish())
        for _ in range(200):
            one = tasks.create_task(reader.poll(5, 1.0))
            await asyncio.sleep(chance.uniform(0.0, 0.003))
            one.cancel()
            found += await _outcome(reader, one)
        found += await reader.consume(300 - len(found))
    assert by_key(messages) == by_key(found)
    assert {1} == {one.attempt for one in found}


async def _outcome(reader: Reader, task: asyncio.Task[list[Delivery]]) -> list[Delivery]:
    try:
        batch = await task
    except asyncio.CancelledError:
        return []
    await reader.ack(batch)
    return batch


async def test_cancel_publish_and_settle_are_safe(bench: Bench) -> None:
    """CF-85: a publish or settle that is cancelled has happened or not, and everything works on."""
    await bench.provision()
    chance = random.Random(85)
    messages = bench.messages(60, keys=KEYS)
    async with asyncio.TaskGroup() as tasks:
        for message in messages:
            one = tasks.create_task(bench.transport.publish([message]))
            await asyncio.sleep(chance.uniform(0.0, 0.001))
            one.cancel()
    receipts = await bench.transport.publish(messages)
    assert all(receipt.ok for receipt in receipts)
    async with bench.member() as reader:
        seen: set[str] = set()
        while len(seen) < 60:
            batch = await reader.poll(10)
            seen |= set(ids(batch))
            async with asyncio.TaskGroup() as tasks:
                settling = tasks.create_task(reader.receiver.settle(ack=batch))
                await asyncio.sleep(chance.uniform(0.0, 0.001))
                settling.cancel()
            if batch:
                await reader.ack(batch)
    async with bench.member() as reader:
        if bench.capabilities.dedup is not None:
            await reader.silence(0.1)


async def test_two_members_share_when_one_stops_reading(bench: Bench) -> None:
    """CF-27: lanes of a member that only listens stay with it; the other member's lanes flow."""
    bench.need(lanes=bench.capabilities.lanes)
    await bench.provision(lanes=4)
    readers = await bench.lives(2)
    await spread(readers, 4, each=2)
    await bench.publish(bench.messages(80, keys=KEYS))
    idle, busy = readers
    theirs = list(await busy.take(1))
    await busy.ack(theirs)
    await idle.poll(0)
    while batch := await busy.poll(50, 1.0):
        await busy.ack(batch)
        theirs += batch
        assert [] == await idle.poll(0, 0.0)
    mine = await idle.consume(80 - len(theirs))
    assert not {one.lane for one in theirs} & {one.lane for one in mine}
