"""Section C: order by key."""

# ruff: noqa: S311, SIM300  (seeded chance; the expected value stands on the left)

from __future__ import annotations

import asyncio
import random
from contextlib import AsyncExitStack
from datetime import timedelta

import msgspec

from tidewire.errors import ConfigurationError
from tidewire.model import Delivery, Message, Release
from tidewire.testing.transports.bench import (
    Bench,
    Reader,
    bodies,
    by_key,
    consume_all,
    demand_key_order,
    ids,
    raises,
    spread,
)

KEYS = [f"k{number}" for number in range(50)]


def _ordered(bench: Bench) -> None:
    bench.need(order=bench.capabilities.order)


async def test_key_order_single_consumer(bench: Bench) -> None:
    """CF-28: one member sees the messages of each of fifty keys in the order they were published."""
    _ordered(bench)
    await bench.provision()
    messages = bench.messages(1000, keys=KEYS)
    await bench.publish(messages)
    async with bench.member() as reader:
        assert by_key(messages) == by_key(await reader.consume(1000))


async def test_key_order_four_consumers(bench: Bench) -> None:
    """CF-29: four members see the messages of each key in order, between them."""
    _ordered(bench)
    await bench.provision(lanes=8)
    readers = await bench.lives(4)
    if bench.capabilities.lanes:
        await spread(readers, 8)
    messages = bench.messages(1000, keys=KEYS)
    for start in range(0, 1000, 100):
        await bench.publish(messages[start : start + 100])
    await consume_all(readers, 1000)
    assert 1000 == len(bench.journal)
    demand_key_order(messages, bench.journal)


async def test_key_order_after_release_now(bench: Bench) -> None:
    """CF-31: three of a key released together, twice, come back in order and before a later one of the key."""
    _ordered(bench)
    await bench.provision(lanes=1)
    mine, other = bench.messages(6, keys=["mine"]), bench.messages(2, keys=["other"])
    await bench.publish([*mine[:5], other[0]])
    async with bench.member() as reader:
        found = sorted(await reader.take(6), key=lambda one: one.message.key == "other")
        await reader.ack([*found[:2], found[5]])
        await bench.publish([mine[5], other[1]])
        await reader.release(found[2:5])
        again: list[Delivery] = []
        while other[1].id not in ids(again):  # the last one of the key may wait until the others are settled
            again += await reader.take(1)
        mine_again = [one for one in again if one.message.key == "mine"]
        assert ids(mine[2 : 2 + len(mine_again)]) == ids(mine_again)
        await reader.release(mine_again)
        last = await reader.consume(4)
        assert ids(mine[2:]) == ids(last)
        assert [one.attempt + 1 for one in mine_again] == [one.attempt for one in last[: len(mine_again)]]
        assert [3, 3, 3] == [one.attempt for one in last[:3]]


async def test_release_with_delay_refused_under_key(bench: Bench) -> None:
    """CF-32: a release with a delay is refused before anything of the call is sent."""
    _ordered(bench)
    await bench.provision()
    await bench.publish(bench.messages(2))
    async with bench.member() as reader:
        first, second = await reader.take(2)
        with raises(ValueError):
            await reader.receiver.settle(ack=[first], release=[Release(second, timedelta(seconds=1))])
        await reader.release([first, second])
        assert [2, 2] == [one.attempt for one in await reader.take(2)]


async def test_key_order_across_consumer_kill(bench: Bench) -> None:
    """CF-33: after a member was killed the rest of each key comes in order, nothing settled comes back."""
    _ordered(bench)
    await bench.provision()
    messages = bench.messages(60, keys=KEYS[:6])
    await bench.publish(messages)
    client = await bench.spawn()
    await client.join(bench.subscription(prefetch=30))
    doomed = Reader(client)
    taken = await doomed.take(30)
    settled = taken[::3]
    await doomed.ack(settled)
    await client.kill()
    rest = [one for one in messages if one.id not in set(ids(settled))]
    async with bench.member() as reader:
        assert by_key(rest) == by_key(await reader.consume(len(rest)))
        await reader.silence(0.1)


async def test_key_order_across_graceful_handover(bench: Bench) -> None:
    """CF-34: after a member has left, the rest of each key comes in order, nothing settled comes back."""
    _ordered(bench)
    await bench.provision()
    messages = bench.messages(40, keys=KEYS[:5])
    await bench.publish(messages)
    async with bench.member() as reader:
        taken = await reader.take(20)
        await reader.ack(taken[:7])
    rest = [one for one in messages if one.id not in set(ids(taken[:7]))]
    async with bench.member() as reader:
        assert by_key(rest) == by_key(await reader.consume(len(rest)))


async def test_key_order_across_broker_restart(bench: Bench) -> None:
    """CF-36: after a restart of the broker the rest of each key comes in order."""
    _ordered(bench)
    bench.need(durability=bench.capabilities.durability != "none")
    await bench.provision()
    messages = bench.messages(60, keys=KEYS[:6])
    await bench.publish(messages)
    client = await bench.spawn()
    await client.join(bench.subscription())
    doomed = Reader(client)
    await doomed.consume(25)
    await client.kill()
    settled = len(messages) - 25
    await bench.restart()
    async with bench.member() as reader:
        rest = await reader.consume(settled)
    for key, wanted in by_key(messages).items():
        found = by_key(rest).get(key, [])
        assert wanted[len(wanted) - len(found) :] == found


async def test_key_order_with_publisher_retry(bench: Bench) -> None:
    """CF-37: a publisher that dies at any point and repeats all with the same ids breaks no order, loses nothing."""
    _ordered(bench)
    await bench.provision()
    messages = bench.messages(200, keys=KEYS[:5])
    chance = random.Random(37)
    for _ in range(3):
        client = await bench.spawn()
        await client.start_publishing(messages)
        await asyncio.sleep(chance.uniform(0.0, 0.05))
        await client.kill()
    receipts = await bench.transport.publish(messages)
    assert all(receipt.ok for receipt in receipts)
    async with bench.member() as reader:
        seen = set(ids(await reader.consume(len(messages))))
        while len(seen) < len(messages):  # what was repeated comes twice where no id is recognised
            seen |= set(ids(await reader.consume(1)))
        if bench.capabilities.dedup is not None:
            await reader.silence(0.1)
    demand_key_order(messages, bench.journal)


async def test_key_order_batch_of_one_group_partial_failure(bench: Bench) -> None:
    """CF-38: of ten of a key three are acked and seven released together: the seven return in order, first."""
    _ordered(bench)
    await bench.provision()
    messages = bench.messages(12)
    await bench.publish(messages)
    async with bench.member() as reader:
        found = await reader.take(10)
        await reader.ack(found[:3])
        await reader.release(found[3:], counted=False)
        again = await reader.consume(9)
    assert ids(messages[3:]) == ids(again)
    assert {1} == {one.attempt for one in again}


async def test_null_key_messages_do_not_serialise(bench: Bench) -> None:
    """CF-39: messages without a key are handed out while earlier ones are unsettled."""
    await bench.provision(lanes=1)
    messages = bench.messages(10, keys=[None])
    await bench.publish(messages)
    async with bench.member() as reader:
        found = [one for _ in range(10) for one in await reader.take(1)]
    assert sorted(ids(messages)) == sorted(ids(found))


async def test_long_unicode_binaryish_key(bench: Bench) -> None:
    """CF-40: any text is a key: long, no ASCII, broker punctuation; long ones that differ late stay apart."""
    await bench.provision()
    long = "x" * 300
    keys = [long + "a", long + "b", "ключ 🔑", "a/b.c*d>e", " ", "", "null", "a\nb", "a\u0000b"]
    messages = bench.messages(len(keys) * 3, keys=keys)
    await bench.publish(messages)
    async with bench.member() as reader:
        found = await reader.consume(len(messages))
    assert by_key(messages) == by_key(found)


async def test_same_key_same_lane_after_restart(bench: Bench) -> None:
    """CF-41: with an unchanged number of lanes a key stays in its lane, whoever publishes and reads, whenever."""
    _ordered(bench)
    await bench.provision(lanes=8)
    lanes: list[dict[str | None, str]] = []
    for _ in range(2):
        client = await bench.open()
        await client.publish(bench.messages(50, keys=KEYS))
        async with bench.member(transport=client) as reader:
            lanes.append({one.message.key: one.lane for one in await reader.consume(50)})
    assert lanes[0] == lanes[1]
    assert 1 < len(set(lanes[0].values()))


async def test_ordering_key_refused_when_unsupported(bench: Bench) -> None:
    """CF-42: a transport without order by key refuses it at start-up instead of weakening it in silence."""
    bench.need(order=not bench.capabilities.order)
    await bench.provision()
    wanted = msgspec.structs.replace(bench.subscription(), ordering="key")
    with raises(ConfigurationError):
        async with bench.transport.subscribe(wanted):
            pass


async def test_out_of_order_settle_within_lane(bench: Bench) -> None:
    """CF-43: of five the 5th, 4th and 2nd are settled, then the member dies: only 1, 3 and the unread return."""
    _ordered(bench)
    await bench.provision(lanes=1)
    messages = bench.messages(7, keys=KEYS[:7])
    await bench.publish(messages)
    client = await bench.spawn()
    await client.join(bench.subscription(prefetch=5))
    doomed = Reader(client)
    found = await doomed.take(5)
    for place in (4, 3, 1):
        await doomed.ack([found[place]])
    await client.kill()
    async with bench.member() as reader:
        assert [b"0", b"2", b"5", b"6"] == sorted(bodies(await reader.consume(4)))
        await reader.silence(0.1)


async def test_topic_and_inbox_copies_of_a_key_share_a_member(bench: Bench) -> None:
    """CF-126: while members come and go, topic and inbox messages of a key are never with two members at once."""
    _ordered(bench)
    await bench.provision(lanes=4)
    inbox = bench.inbox()
    holders: dict[str | None, set[int]] = {}
    found: list[Delivery] = []

    async def hold(member: int, reader: Reader) -> None:
        batch = await reader.poll(5)
        for one in batch:
            holders.setdefault(one.message.key, set()).add(member)
        clash = {key: members for key, members in holders.items() if len(members) > 1}
        assert {} == clash, f"keys in progress with several members: {clash}"
        await asyncio.sleep(0.005)
        for one in batch:
            holders[one.message.key].discard(member)
        await reader.ack(batch)
        found.extend(batch)

    wanted: list[Message] = []
    for round_ in range(3):
        batch = [*bench.messages(20, keys=KEYS[:10]), *bench.messages(20, keys=KEYS[:10], to=inbox)]
        wanted += batch
        await bench.publish(batch)
        async with AsyncExitStack() as stack:
            members = [
                await stack.enter_async_context(bench.member(transport=await bench.open(), subscription=bench.calm()))
                for _ in range(round_ + 1)
            ]
            while len(found) < len(wanted):
                for number, reader in enumerate(members):
                    await hold(number, reader)
    lanes = {(one.message.key, one.lane) for one in found}
    assert 10 == len(lanes), f"a key has one lane, in both channels: {sorted(map(str, lanes))}"
