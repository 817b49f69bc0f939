"""Section H: failures."""

# ruff: noqa: SIM300  (the expected value stands on the left)

from __future__ import annotations

import asyncio
import threading
from datetime import timedelta

import msgspec

from tidewire.model import Delivery
from tidewire.testing.transports.bench import LEASE, Bench, by_key, ids


async def test_event_loop_blocked(bench: Bench) -> None:
    """CF-95: an event loop that stands still for three leases costs no message, at most a redelivery."""
    await bench.provision()
    messages = bench.messages(20, keys=["a", "b", "c"])
    await bench.publish(messages)
    async with bench.member() as reader:
        found = await reader.take(10)
        threading.Event().wait(3 * LEASE.total_seconds())  # this is the fault: it blocks the loop
        settlements = await reader.receiver.settle(ack=found)
        assert {"settled", "lost"} >= {one.status for one in settlements}
        kept = {one.delivery.message.id for one in settlements if one.status == "settled"}
        reader.unsettled.clear()
        rest = await reader.consume(20 - len(kept))
    assert set(ids(messages)) == kept | set(ids(rest))


async def test_clock_skew_5_minutes(bench: Bench) -> None:
    """CF-94: a wall clock that jumps by five minutes, either way, ends no lease and keeps the order."""
    shift = bench.site.faults.shift
    await bench.provision(lanes=1)
    messages = bench.messages(6)
    await bench.publish(messages[:3])
    async with bench.member() as reader:
        found = await reader.take(3)
        for jump in (timedelta(minutes=5), timedelta(minutes=-10)):
            bench.fault("clock", shift)(jump)
            async with bench.member(transport=await bench.open()) as other:
                await other.silence(2 * LEASE.total_seconds())
        await bench.publish(messages[3:])
        await reader.ack(found)
        assert ids(messages[3:]) == ids(await reader.consume(3))


async def test_full_topic_refuses_and_recovers(bench: Bench) -> None:
    """CF-96: a topic at its cap refuses a publish as full, naming who holds it back, and takes more when it may."""
    bench.need(size_cap=bench.capabilities.size_cap)
    await bench.provision(cap=20_000)
    messages = [msgspec.structs.replace(one, body=bytes(1000)) for one in bench.messages(60, keys=["a"])]
    receipts = await bench.transport.publish(messages)
    stored = sum(receipt.ok for receipt in receipts)
    assert 0 < stored < 60
    assert ["stored"] * stored == [receipt.status for receipt in receipts[:stored]]
    assert ("rejected", "full") == (receipts[stored].status, receipts[stored].reason)
    assert bench.name("billing") in receipts[stored].detail
    assert {"after_failure"} == {receipt.reason for receipt in receipts[stored + 1 :]}
    async with bench.member() as reader:
        assert ids(messages[:stored]) == ids(await reader.consume(stored))
        await bench.publish(messages[stored : stored + 5])
        assert ids(messages[stored : stored + 5]) == ids(await reader.consume(5))


async def test_dead_letters_and_retries_pass_a_full_topic(bench: Bench) -> None:
    """CF-96: while a topic is full its groups can still settle, retry and give up."""
    bench.need(size_cap=bench.capabilities.size_cap)
    await bench.provision(cap=5_000)
    messages = [msgspec.structs.replace(one, body=bytes(1000)) for one in bench.messages(10, keys=["a"])]
    receipts = await bench.transport.publish(messages)
    assert "full" in {receipt.reason for receipt in receipts}
    dead = bench.dead()
    async with bench.member() as reader:
        (one,) = await reader.take(1)
        await reader.move(one, [msgspec.structs.replace(one.message, to=dead)])
    assert [messages[0].id] == [one.message.id for one in await bench.inspector.browse(dead)]


async def test_many_kills_in_a_row(bench: Bench) -> None:
    """CF-87: three members killed one after the other, in the middle of their work, cost nothing and no order."""
    await bench.provision()
    messages = bench.messages(150, keys=["a", "b", "c", "d"])
    await bench.publish(messages)
    target = bench.dead()
    for number in range(3):
        client = await bench.spawn()
        await client.start_forwarding(bench.subscription(prefetch=8), target)
        await asyncio.sleep(0.03 * (number + 1))
        await client.kill()
    letters = [one.message for one in await bench.inspector.browse(target, limit=1000)]
    seen = set(ids(letters))
    rest: list[Delivery] = []
    async with bench.member() as reader:
        while len(seen) < 150:  # where settling is not atomic, what a killed member had moved may come once more
            rest += await reader.consume(1)
            seen.add(rest[-1].message.id)
    moved = [one for place, one in enumerate(letters) if one.id not in set(ids(letters[:place]))]
    new = [one for one in rest if one.message.id not in set(ids(letters))]
    whole = {key: [*by_key(moved).get(key, []), *by_key(new).get(key, [])] for key in by_key(messages)}
    if bench.capabilities.order:
        assert by_key(messages) == whole
    if bench.capabilities.atomic:
        assert 150 == len(letters) + len(rest)
