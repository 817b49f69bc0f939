"""Section L: atomic settle."""

# ruff: noqa: SIM300  (the expected value stands on the left)

from __future__ import annotations

import asyncio

import msgspec

from tidewire.model import Delivery, GroupSpec, Move, Topic, TopicSpec
from tidewire.testing.transports.bench import Bench, Reader, bodies, by_key, ids


async def _two_topics(bench: Bench) -> Topic:
    """Make the bench's topic and a second one, read by the group "next"."""
    await bench.provision()
    onward = bench.name("payments")
    await bench.transport.provision([TopicSpec(onward, 2)], [GroupSpec(bench.name("next"), [onward])])
    return Topic(onward)


async def _read_onward(bench: Bench, onward: Topic, number: int) -> list[Delivery]:
    wanted = msgspec.structs.replace(bench.subscription("next"), topics=[onward.name])
    async with bench.member(subscription=wanted) as reader:
        found = await reader.consume(number)
        await reader.silence(0.1)
    return found


async def test_move_publishes_before_it_acks(bench: Bench) -> None:
    """CF-112: a move whose messages cannot all be stored acks nothing; one that can does both."""
    onward = await _two_topics(bench)
    await bench.publish(bench.messages(1))
    async with bench.member() as reader:
        (one,) = await reader.take(1)
        good = bench.messages(1, to=onward)
        bad = bench.messages(1, to=Topic(bench.name("nowhere")))
        (settlement,) = await reader.receiver.settle(move=[Move(one, [*good, *bad])])
        assert ("failed", 2) == (settlement.status, len(settlement.receipts))
        assert ["unknown_topic"] == [receipt.reason for receipt in settlement.receipts[1:]]
        await reader.release([one])
        (again,) = await reader.take(1)
        await reader.move(again, bench.messages(2, to=onward)[1:])
        await reader.silence(0.1)
    expected = 1 if bench.capabilities.atomic else 2
    assert b"1" == bodies(await _read_onward(bench, onward, expected))[-1]


async def test_aborted_not_visible(bench: Bench) -> None:
    """CF-115: of a move that fails no message is ever seen."""
    bench.need(atomic=bench.capabilities.atomic)
    onward = await _two_topics(bench)
    await bench.publish(bench.messages(1))
    async with bench.member() as reader:
        (one,) = await reader.take(1)
        messages = [*bench.messages(2, to=onward), *bench.messages(1, to=Topic(bench.name("nowhere")))]
        (settlement,) = await reader.receiver.settle(move=[Move(one, messages)])
        assert not any(receipt.ok for receipt in settlement.receipts), "nothing may say that it was stored"
    assert [] == await _read_onward(bench, onward, 0)


async def test_failed_move_does_not_spoil_the_rest_of_the_call(bench: Bench) -> None:
    """CF-115: acks, releases and other moves of a call with a move that fails are settled."""
    onward = await _two_topics(bench)
    await bench.publish(bench.messages(4, keys=["a", "b", "c", "d"]))
    async with bench.member() as reader:
        found = await reader.take(4)
        nowhere = bench.messages(1, to=Topic(bench.name("nowhere")))
        settlements = await reader.receiver.settle(
            ack=found[:1],
            move=[Move(found[1], nowhere), *(Move(one, bench.messages(1, to=onward)) for one in found[2:])],
        )
        assert ["settled", "failed", "settled", "settled"] == [one.status for one in settlements]
    assert 2 == len(await _read_onward(bench, onward, 2))
    async with bench.member() as reader:
        assert [found[1].message.id] == ids(await reader.consume(1))


async def test_settle_atomic_under_crash(bench: Bench) -> None:
    """CF-113: members killed at random moments forward each message exactly once, in the order of its key."""
    bench.need(atomic=bench.capabilities.atomic, lease=bench.capabilities.lease)
    await bench.provision()
    messages = bench.messages(200, keys=["a", "b", "c", "d", "e"])
    await bench.publish(messages)
    for round_ in range(4):
        client = await bench.spawn()
        await client.start_forwarding(bench.subscription(prefetch=10), bench.dead())
        await asyncio.sleep(0.011 * (round_ + 1))
        await client.kill()
    async with bench.member() as reader:
        await _forward_rest(bench, reader, 200)
    letters = [one.message for one in await bench.inspector.browse(bench.dead(), limit=1000)]
    assert by_key(messages) == by_key(letters)


async def _forward_rest(bench: Bench, reader: Reader, number: int) -> None:
    while (await bench.stats()).dead != number:
        for one in await reader.poll(50):
            await reader.move(one, [msgspec.structs.replace(one.message, to=bench.dead())])


async def test_transaction_fencing_zombie_producer(bench: Bench) -> None:
    """CF-114: a zombie's move after the takeover is lost, and none of its messages is published."""
    bench.need(atomic=bench.capabilities.atomic, lease=bench.capabilities.lease)
    onward = await _two_topics(bench)
    await bench.publish(bench.messages(1))
    client = await bench.spawn()
    await client.join(bench.subscription())
    (stale,) = await Reader(client).take(1)
    client.pause()
    async with bench.member() as reader:
        (fresh,) = await reader.take(1)
        client.resume()
        (settlement,) = await client.settle(move=[Move(stale, bench.messages(1, to=onward))])
        assert "lost" == settlement.status
        mine = bench.messages(1, to=onward)
        await reader.move(fresh, mine)
    assert ids(mine) == ids(await _read_onward(bench, onward, 1))
