"""Section P: brokers that are cut off, stand still, refuse or forget. What a site cannot do is not proven."""

# ruff: noqa: S311, SIM300  (seeded chance; the expected value stands on the left)

from __future__ import annotations

import asyncio
import random
from collections.abc import Awaitable, Sequence
from contextlib import AsyncExitStack, suppress
from datetime import timedelta

import msgspec

from tidewire.errors import TidewireError, TransportRefused, TransportUnavailable
from tidewire.model import Delivery, Failure, GroupSpec, Message, Move, Receipt, Topic, TopicSpec
from tidewire.rules.letters import failure_in, retried
from tidewire.testing.transports.bench import (
    PATIENCE,
    Bench,
    Reader,
    by_key,
    consume_all,
    demand_key_order,
    ids,
    raises,
)

KEYS = [f"k{number}" for number in range(20)]
SECOND = timedelta(seconds=1)


async def _try(publishing: Awaitable[Sequence[Receipt]]) -> Sequence[Receipt]:
    """Return the receipts, or none where the broker took nothing."""
    try:
        return await publishing
    except TransportUnavailable:
        return []


async def _consume_through(reader: Reader, wanted: set[str]) -> list[Delivery]:
    """Ack what comes until all of *wanted* has come, through whatever is unavailable meanwhile."""
    found: list[Delivery] = []
    end = asyncio.get_running_loop().time() + PATIENCE.get()
    while missing := wanted - set(ids(found)):
        assert asyncio.get_running_loop().time() < end, f"{len(missing)} of {len(wanted)} did not come in time"
        try:
            batch = await reader.poll(50, 0.2)
            found += batch
            await reader.receiver.settle(ack=batch)
        except TransportUnavailable:
            await asyncio.sleep(0.05)
        reader.unsettled.clear()
    return found


async def _publish_until_stored(bench: Bench, messages: Sequence[Message]) -> None:
    """Publish with the same ids until everything is stored, as a relay does."""
    rest = list(messages)
    end = asyncio.get_running_loop().time() + PATIENCE.get()
    while rest:
        assert asyncio.get_running_loop().time() < end, f"{len(rest)} of {len(messages)} were not stored in time"
        receipts = await _try(bench.transport.publish(rest))
        rest = rest if not receipts else [one for one, receipt in zip(rest, receipts, strict=True) if not receipt.ok]
        await asyncio.sleep(0.02 if rest else 0)


async def test_publish_timeout_is_unknown_then_retry_same_id(bench: Bench) -> None:
    """CF-10: what a broker that stands still may have is unknown or not handed over; the same id again is right."""
    hang = bench.fault("pause", bench.site.faults.hang)
    await bench.provision()
    messages = bench.messages(5)
    async with hang():
        receipts = await _try(bench.transport.publish(messages))
        assert {"unknown", "rejected"} >= {receipt.status for receipt in receipts}
        assert not receipts or "unknown" == receipts[0].status
    await _publish_until_stored(bench, messages)
    async with bench.member() as reader:
        found = await _consume_through(reader, set(ids(messages)))
        if bench.capabilities.dedup is not None:
            await reader.silence(0.2)
            assert ids(messages) == ids(found)


async def test_publish_connection_lost_in_flight(bench: Bench) -> None:
    """CF-11: of 500 publishes in flight when connections are cut each ends, and what was stored is there."""
    cut = bench.fault("conn", bench.site.faults.cut)
    await bench.provision()
    messages = bench.messages(500, keys=[None])
    async with asyncio.TaskGroup() as tasks:
        running = [tasks.create_task(_try(bench.transport.publish([message]))) for message in messages[:250]]
        tasks.create_task(cut())
        await asyncio.sleep(0)
        running += [tasks.create_task(_try(bench.transport.publish([message]))) for message in messages[250:]]
    stored = {receipt.id for one in running for receipt in one.result() if receipt.ok}
    assert {"stored", "duplicate", "unknown", "rejected"} >= {
        receipt.status for one in running for receipt in one.result()
    }
    async with bench.member() as reader:
        await _consume_through(reader, stored)


async def test_publish_backpressure_bounded_memory(bench: Bench) -> None:
    """CF-12: publishes to a broker that stands still wait or are refused, and can be cancelled; later all works."""
    hang = bench.fault("pause", bench.site.faults.hang)
    await bench.provision()
    messages = bench.messages(200, keys=[None])
    async with hang(), asyncio.timeout(bench.site.patience), asyncio.TaskGroup() as tasks:
        running = [tasks.create_task(_try(bench.transport.publish([message]))) for message in messages]
        await asyncio.sleep(0.2)
        for one in running:
            one.cancel()
    await _publish_until_stored(bench, messages)
    async with bench.member() as reader:
        await _consume_through(reader, set(ids(messages)))


async def test_publish_refused_in_the_middle_leaves_no_gap(bench: Bench) -> None:
    """CF-9: when the broker refuses the 5th of a call, the rest of its key is rejected, other keys are stored."""
    refuse = bench.fault("inject", bench.site.faults.refuse)
    await bench.provision()
    messages = bench.messages(12, keys=["a", "b"])
    refuse(messages[4].id)
    receipts = await bench.transport.publish(messages)
    wanted = ["stored" if place < 4 or place % 2 else "rejected" for place in range(12)]
    assert wanted == [receipt.status for receipt in receipts]
    assert {"after_failure"} == {receipt.reason for receipt in receipts[6::2]}
    async with bench.member() as reader:
        assert {"a": ids(messages[0:4:2]), "b": ids(messages[1::2])} == by_key(await reader.consume(8))


async def test_move_refused_by_the_broker_keeps_the_message(bench: Bench) -> None:
    """CF-67: a dead letter that the broker refuses leaves its own delivery unsettled and no other."""
    refuse = bench.fault("inject", bench.site.faults.refuse)
    await bench.provision()
    messages = bench.messages(3, keys=["a", "b", "c"])
    await bench.publish(messages)
    async with bench.member() as reader:
        found = await reader.take(3)
        letters = [msgspec.structs.replace(one.message, to=bench.dead(), id=f"{one.message.id}-d") for one in found]
        refuse(letters[1].id)
        settlements = await reader.receiver.settle(
            move=[Move(one, [letter]) for one, letter in zip(found, letters, strict=True)]
        )
        assert ["settled", "failed", "settled"] == [one.status for one in settlements]
    async with bench.member() as reader:
        assert [found[1].message.id] == ids(await reader.consume(1))


async def test_key_order_across_connection_loss(bench: Bench) -> None:
    """CF-35: when connections are cut the first occurrences of each key keep their order, and none is missing."""
    bench.need(order=bench.capabilities.order)
    cut = bench.fault("conn", bench.site.faults.cut)
    await bench.provision()
    messages = bench.messages(200, keys=KEYS)
    for start in range(0, 200, 50):
        await _publish_until_stored(bench, messages[start : start + 50])
    async with bench.member() as reader:
        await reader.consume(60)
        held = await reader.take(20)
        await cut()
        with suppress(TransportUnavailable):
            await reader.receiver.settle(ack=held)  # which are lost, where a connection is what holds them
        await _consume_through(reader, set(ids(messages)) - {one.message.id for one in bench.journal})
    async with bench.member() as reader:
        missing = set(ids(messages)) - {one.message.id for one in bench.journal}
        await _consume_through(reader, missing)
    demand_key_order(messages, bench.journal)


async def test_attempt_survives_retry_tiers_and_restart(bench: Bench) -> None:
    """CF-54: what a retry carries (failures, errors) is there after three moves and a restart of the broker."""
    bench.need(durability=bench.capabilities.durability != "none")
    await bench.provision()
    await bench.publish(bench.messages(1))
    failure = Failure(0, 0, "", "", 0, 0, {})
    for tier in (1, 2, 3):
        failure = Failure(tier, 0, "ValueError: a", "KeyError: ü", 1, tier, {"ValueError": tier})
        async with bench.member() as reader:
            (one,) = await reader.take(1)
            await reader.move(one, [retried(one, group=bench.name("billing"), failure=failure, not_before=None)])
    await bench.restart()
    async with bench.member() as reader:
        (last,) = await reader.consume(1)
    assert failure == failure_in(last.message.headers)
    assert 1 == last.attempt


async def test_reconnect_during_consume(bench: Bench) -> None:
    """CF-86: a member whose connection is cut at a third and at a half of its work goes on by itself, to the end."""
    cut = bench.fault("conn", bench.site.faults.cut)
    await bench.provision()
    messages = bench.messages(600, keys=KEYS)
    await bench.publish(messages)
    async with bench.member() as reader:
        for share in (200, 100):
            await reader.consume(share)
            async with asyncio.TaskGroup() as tasks:
                tasks.create_task(cut())
                await asyncio.sleep(0)
                with suppress(TransportUnavailable):  # one receive is always outstanding
                    await reader.receiver.receive(0, timedelta(milliseconds=50))
        await _consume_through(reader, set(ids(messages)) - {one.message.id for one in bench.journal})


async def test_broker_down_at_start(bench: Bench) -> None:
    """CF-88: opening while the broker is down waits or is refused as unavailable, can be cancelled, and works later."""
    outage = bench.fault("restart", bench.site.faults.outage)
    await bench.provision()

    async def begin() -> None:
        async with bench.site.open() as transport:
            await transport.publish(bench.messages(1))

    async with outage(), asyncio.timeout(bench.site.patience):
        try:
            async with asyncio.timeout(0.3):
                await begin()
        except (TransportUnavailable, TimeoutError):
            pass  # it said so, or it waited and could be cancelled
        else:
            raise AssertionError("nobody can publish to a broker that is down")
    await begin()


async def test_auth_failure_is_fatal_and_typed(bench: Bench) -> None:
    """CF-89: a client that the broker does not let in is refused at once, typed; it does not try for ever."""
    stranger = bench.fault("auth", bench.site.faults.stranger)
    async with asyncio.timeout(bench.site.patience):
        with raises(TransportRefused):
            async with stranger() as transport:
                await transport.publish(bench.messages(1))


async def test_coordinator_or_leader_moves(bench: Bench) -> None:
    """CF-91: when the broker's leader or coordinator moves three times, everything arrives."""
    move = bench.fault("leader", bench.site.faults.move_leader)
    await bench.provision()
    messages = bench.messages(300, keys=KEYS)
    async with bench.member() as reader:
        for start in range(0, 300, 100):
            await _publish_until_stored(bench, messages[start : start + 100])
            await move()
            await _consume_through(reader, set(ids(messages[start : start + 100])))


async def test_topic_deleted_under_consumer(bench: Bench) -> None:
    """CF-92: a member whose topic is deleted hears of it as an error within half a minute; it does not go silent."""
    destroy = bench.fault("delete", bench.site.faults.destroy)
    await bench.provision()
    with raises(TidewireError):
        async with bench.member() as reader, asyncio.timeout(30):
            await reader.until_owner(4)
            await destroy(bench.topic)
            while True:  # until it is said, or time is up
                await reader.poll(10, 1.0)


async def test_half_open_connection(bench: Bench) -> None:
    """CF-93: while the broker stands still publish, settle and leaving end in time, and afterwards all goes on."""
    hang = bench.fault("pause", bench.site.faults.hang)
    await bench.provision()
    messages = bench.messages(4)
    await bench.publish(messages)
    async with bench.site.open() as transport, bench.member(transport=transport) as reader:
        found = await reader.take(2)
        async with hang(), asyncio.timeout(35):
            await _try(transport.publish(bench.messages(1)))
            with suppress(TransportUnavailable):
                await reader.receiver.settle(ack=found)
    async with bench.member() as reader:
        await _consume_through(reader, set(ids(messages[2:])))


async def test_provision_reads_back(bench: Bench) -> None:
    """CF-100: a broker that ignores a setting it was given is a conflict: what was applied is read back."""
    forget = bench.fault("forget", bench.site.faults.forget)
    forget()
    (change,) = await bench.transport.provision([TopicSpec(bench.topic, 3, timedelta(days=2))], [])
    assert "conflict" == change.kind
    assert change.detail


async def test_least_privilege(bench: Bench) -> None:
    """CF-102: a client that may create nothing works where everything is there, and verifies it."""
    limited = bench.fault("limited", bench.site.faults.limited)
    await bench.provision()
    async with limited() as transport:
        changes = await transport.provision(
            [TopicSpec(bench.topic, 4)], [GroupSpec(bench.name("billing"), [bench.topic])]
        )
        assert ["unchanged", "unchanged"] == [change.kind for change in changes]
        messages = bench.messages(3)
        assert all(receipt.ok for receipt in await transport.publish(messages))
        async with bench.member(transport=transport) as reader:
            assert ids(messages) == ids(await reader.consume(3))


async def test_cloudevents_binding_interop(bench: Bench) -> None:
    """CF-105: what the broker's official CloudEvents binding writes is read with equal attributes, and back."""
    binding = bench.fault("foreign", bench.site.faults.binding)
    await bench.provision()
    attributes = {"ce-specversion": "1.0", "ce-id": "x-1", "ce-source": "foreign", "ce-type": "suite.tested"}
    await binding.write(bench.topic, headers=attributes, body=b'{"a": 1}')
    async with bench.member() as reader:
        (theirs,) = await reader.consume(1)
        assert (b'{"a": 1}', "x-1") == (theirs.message.body, theirs.message.id)
        assert attributes.items() <= dict(theirs.message.headers).items()
    (message,) = bench.messages(1, to=Topic(bench.topic))
    await bench.publish([msgspec.structs.replace(message, headers=attributes)])
    headers, body = await binding.read(bench.topic)
    assert message.body == body
    assert attributes.items() <= dict(headers).items()


async def test_open_transaction_does_not_block_other_groups_forever(bench: Bench) -> None:
    """CF-116: a member that stands still in the middle of its settles does not keep another group from its messages."""
    bench.need(atomic=bench.capabilities.atomic, lease=bench.capabilities.lease)
    await bench.provision("billing", "shipping")
    messages = bench.messages(100, keys=KEYS)
    await bench.publish(messages)
    client = await bench.spawn()
    await client.start_forwarding(bench.subscription(prefetch=10), bench.dead())
    await asyncio.sleep(0.05)
    client.pause()
    async with bench.member("shipping") as reader:
        assert by_key(messages) == by_key(await reader.consume(100))
    client.resume()


async def test_close_with_hung_broker(bench: Bench) -> None:
    """CF-118: leaving and closing beside a broker that stands still take the grace and two seconds, no more."""
    hang = bench.fault("pause", bench.site.faults.hang)
    await bench.provision()
    await bench.publish(bench.messages(2))
    loop = asyncio.get_running_loop()
    stack = AsyncExitStack()
    transport = await stack.enter_async_context(bench.site.open())
    reader = await stack.enter_async_context(bench.member(transport=transport))
    await reader.take(2)
    async with hang():
        start = loop.time()
        with suppress(TransportUnavailable, TimeoutError):  # it may not be able to say goodbye, and says so
            async with asyncio.timeout(bench.subscription().grace.total_seconds() + 3.0):
                await stack.aclose()
        assert loop.time() - start <= bench.subscription().grace.total_seconds() + 2.0, "leaving takes too long"


async def test_soak(bench: Bench) -> None:
    """CF-124: for as long as the site soaks, members are killed at random while others work: nothing is missing."""
    soak = bench.fault("soak", bench.site.soak)
    bench.need(lease=bench.capabilities.lease)
    await bench.provision()
    chance = random.Random(124)
    loop = asyncio.get_running_loop()
    end = loop.time() + soak.total_seconds()
    published: list[Message] = []
    readers = await bench.lives(2, hasty=True)
    while loop.time() < end:
        batch = bench.messages(40, keys=KEYS)
        await bench.publish(batch)
        published += batch
        client = await bench.spawn()
        await client.join(bench.subscription(prefetch=10))
        doomed = Reader(client, bench.journal)
        for _ in range(chance.randrange(1, 4)):
            await doomed.poll(5, 0.1)
        await client.kill()
        await consume_all(readers, chance.randrange(5, 20))
    while set(ids(published)) - {one.message.id for one in bench.journal}:
        await consume_all(readers, 1)
    if bench.capabilities.order:
        demand_key_order(published, bench.journal)
