"""Section A: publish."""

# ruff: noqa: SIM300  (the expected value stands on the left)

from __future__ import annotations

import asyncio

import msgspec

from tidewire.model import Address, DeadChannel, InboxChannel, Message, Topic
from tidewire.testing.transports.bench import Bench, bodies, by_key, ids


async def test_publish_returns_receipt_per_message_in_order(bench: Bench) -> None:
    """CF-1: there is one receipt per message, in the order of the messages, with its id; none for none."""
    await bench.provision()
    messages = bench.messages(20, keys=["a", "b", None])
    receipts = await bench.transport.publish(messages)
    assert ids(messages) == [receipt.id for receipt in receipts]
    assert {"stored"} == {receipt.status for receipt in receipts}
    assert [] == list(await bench.transport.publish([]))


async def test_publish_stored_survives_process_kill(bench: Bench) -> None:
    """CF-2: what was reported as stored is there after the publisher was killed at that moment."""
    bench.need(durability=bench.capabilities.durability != "none")
    await bench.provision()
    client = await bench.spawn()
    messages = bench.messages(50, keys=["a", "b"])
    receipts = await client.publish(messages)
    await client.kill()
    assert {"stored"} == {receipt.status for receipt in receipts}
    async with bench.member() as reader:
        assert by_key(messages) == by_key(await reader.consume(50))


async def test_publish_stored_survives_broker_restart(bench: Bench) -> None:
    """CF-3: what was reported as stored is there after the broker was killed and started again."""
    bench.need(durability=bench.capabilities.durability != "none")
    await bench.provision()
    messages = bench.messages(50, keys=["a", "b"])
    client = await bench.spawn()
    await client.publish(messages)
    await client.kill()
    await bench.restart()
    async with bench.member() as reader:
        assert by_key(messages) == by_key(await reader.consume(50))


async def test_publish_unknown_topic_is_rejected_not_lost(bench: Bench) -> None:
    """CF-4: a message to an address that does not exist is rejected as such; nothing is dropped in silence."""
    await bench.provision()
    nobody = bench.name("nobody")
    addresses: list[Address] = [
        Topic(nobody),
        InboxChannel(bench.topic, nobody),
        DeadChannel(nobody, bench.name("billing")),
    ]
    messages = [bench.messages(1, to=address)[0] for address in addresses] + bench.messages(1)
    receipts = await bench.transport.publish(messages)
    assert ["rejected"] * 3 + ["stored"] == [receipt.status for receipt in receipts]
    assert ["unknown_topic"] * 3 == [receipt.reason for receipt in receipts[:3]]


async def test_publish_before_any_consumer_is_delivered_later(bench: Bench) -> None:
    """CF-5: what was published before anybody consumed reaches every provisioned group."""
    await bench.provision("billing", "shipping")
    messages = bench.messages(10)
    await bench.publish(messages)
    for group in ("billing", "shipping"):
        async with bench.member(group) as reader:
            assert ids(messages) == ids(await reader.consume(10))


async def test_publish_oversize_rejected_others_stored(bench: Bench) -> None:
    """CF-6: one message that is too large is rejected; the other nineteen of the call are stored."""
    await bench.provision()
    messages = bench.messages(20, keys=[f"k{number}" for number in range(20)])
    messages[7] = msgspec.structs.replace(messages[7], body=bytes(bench.capabilities.message_bytes_max + 1))
    receipts = await bench.transport.publish(messages)
    assert [7] == [place for place, receipt in enumerate(receipts) if receipt.status == "rejected"]
    assert "too_large" == receipts[7].reason
    async with bench.member() as reader:
        assert set(ids(messages)) - {messages[7].id} == set(ids(await reader.consume(19)))


async def test_publish_exactly_max_size(bench: Bench) -> None:
    """CF-7: a message of exactly the largest size comes back equal; one byte more is too large."""
    await bench.provision()
    headers = {f"h-{number}": "ü" * 50 for number in range(60)}
    size = bench.capabilities.message_bytes_max - sum(len(name) + len(text.encode()) for name, text in headers.items())
    pair = bench.messages(2, keys=["a", "b"])
    largest = msgspec.structs.replace(pair[0], headers=headers, body=b"\xff" * size)
    larger = msgspec.structs.replace(pair[1], headers=headers, body=b"\xff" * (size + 1))
    receipts = await bench.transport.publish([largest, larger])
    assert ["stored", "rejected"] == [receipt.status for receipt in receipts]
    async with bench.member() as reader:
        (delivery,) = await reader.consume(1)
    assert largest.body == delivery.message.body
    assert headers == dict(delivery.message.headers)


async def test_publish_batch_over_native_limit(bench: Bench) -> None:
    """CF-8: a call with a thousand messages keeps the order of each key and answers for each."""
    await bench.provision()
    messages = bench.messages(1000, keys=[f"k{number}" for number in range(7)])
    receipts = await bench.transport.publish(messages)
    assert [(one.id, "stored") for one in messages] == [(receipt.id, receipt.status) for receipt in receipts]
    async with bench.member() as reader:
        assert by_key(messages) == by_key(await reader.consume(1000))


async def test_publish_partial_failure_no_gap_per_key(bench: Bench) -> None:
    """CF-9: after a message that is not stored the rest of its key is rejected; other keys are stored."""
    await bench.provision()
    messages = bench.messages(12, keys=["a", "b"])
    messages[4] = msgspec.structs.replace(messages[4], body=bytes(bench.capabilities.message_bytes_max + 1))
    receipts = await bench.transport.publish(messages)
    wanted = ["stored" if place < 4 or place % 2 else "rejected" for place in range(12)]
    assert wanted == [receipt.status for receipt in receipts]
    assert {"after_failure"} == {receipt.reason for receipt in receipts[6::2]}
    async with bench.member() as reader:
        found = by_key(await reader.consume(8))
    assert {"a": ids(messages[0:4:2]), "b": ids(messages[1::2])} == found


async def test_publish_concurrent_1000_tasks(bench: Bench) -> None:
    """CF-13: a thousand tasks may publish at once, and all is stored."""
    await bench.provision()
    messages = bench.messages(1000, keys=[None])

    async def one(message: Message) -> None:
        await bench.publish([message])

    async with asyncio.TaskGroup() as tasks:
        for message in messages:
            tasks.create_task(one(message))
    async with bench.member() as reader:
        assert sorted(ids(messages)) == sorted(ids(await reader.consume(1000)))


async def test_publish_binary_body_all_bytes(bench: Bench) -> None:
    """CF-14: a body is bytes and nothing else: all values, none, one, zeros and no text."""
    await bench.provision()
    wanted = [bytes(range(256)), b"", b"x", b"\0\0\0", b"\xff\xfe\xc3(", b"a\r\nb\x1a"]
    messages = bench.messages(len(wanted))
    await bench.publish([msgspec.structs.replace(one, body=body) for one, body in zip(messages, wanted, strict=True)])
    async with bench.member() as reader:
        assert wanted == bodies(await reader.consume(len(wanted)))


async def test_publish_dedup_same_id_within_window(bench: Bench) -> None:
    """CF-15: a repeated (source, id) is a duplicate if and only if the transport declares a window."""
    await bench.provision()
    (message,) = bench.messages(1)
    other_source = msgspec.structs.replace(message, source="suite-two")
    first = await bench.transport.publish([message, message])
    second = await (await bench.open()).publish([message, other_source])
    known = "stored" if bench.capabilities.dedup is None else "duplicate"
    assert ["stored", known] == [receipt.status for receipt in first]
    assert [known, "stored"] == [receipt.status for receipt in second]
    assert all(receipt.ok for receipt in first)
    async with bench.member() as reader:
        found = await reader.consume(4 if bench.capabilities.dedup is None else 2)
        await reader.silence(0.1)
    assert {"suite", "suite-two"} == {one.message.source for one in found}


async def test_publish_calls_that_are_awaited_keep_the_order_of_a_key(bench: Bench) -> None:
    """CF-1: messages of one key are stored in order over consecutive awaited calls, from any client."""
    await bench.provision()
    clients = [bench.transport, await bench.open()]
    messages = bench.messages(40)
    for place, message in enumerate(messages):
        await clients[place % 2].publish([message])
    async with bench.member() as reader:
        assert ids(messages) == ids(await reader.consume(40))
