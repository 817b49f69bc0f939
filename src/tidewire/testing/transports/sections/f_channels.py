"""Section F: inbox channels, dead letters, redrive, replay."""

# ruff: noqa: SIM300  (the expected value stands on the left)

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from datetime import timedelta

import msgspec

from tidewire.clock import moment
from tidewire.errors import TransportRefused
from tidewire.model import (
    Browsed,
    DeadChannel,
    DeadLetter,
    Delivery,
    Failure,
    Message,
    Move,
    Reason,
    Topic,
)
from tidewire.rules.letters import dead_letter, retried
from tidewire.testing.transports.bench import Bench, Reader, bodies, by_key, eventually, ids, raises


async def _bury(bench: Bench, messages: Sequence[Message]) -> None:
    """Publish *messages* and let the group give up on each."""
    await bench.publish(messages)
    async with bench.member() as reader:
        for one in await reader.take(len(messages)):
            await reader.move(one, [msgspec.structs.replace(one.message, to=bench.dead())])


async def _redrive(bench: Bench, letters: Sequence[Browsed]) -> None:
    """Send dead letters to the inbox channel with the ids they have, then remove them."""
    for one in letters:
        await bench.publish([msgspec.structs.replace(one.message, to=bench.inbox())])
        assert 1 == await bench.inspector.remove(bench.dead(), [one.position])


async def test_inbox_reaches_only_its_group(bench: Bench) -> None:
    """CF-66: what goes to the inbox channel of a group is never seen by another group of the topic."""
    await bench.provision("billing", "shipping")
    messages = bench.messages(3, to=bench.inbox())
    await bench.publish(messages)
    async with bench.member("billing") as billing, bench.member("shipping") as shipping:
        found = await billing.consume(3)
        await shipping.silence(0.1)
    assert ids(messages) == ids(found)
    assert {bench.inbox()} == {one.message.to for one in found}


async def test_retry_comes_back_through_the_inbox_only_here(bench: Bench) -> None:
    """CF-66: a retry that a handler's move writes comes back to its group alone, with the same id, each time."""
    await bench.provision("billing", "shipping")
    (message,) = bench.messages(1)
    await bench.publish([message])
    async with bench.member("billing") as billing, bench.member("shipping") as shipping:
        await shipping.consume(1)
        for _ in range(3):
            (one,) = await billing.take(1)
            assert message.id == one.message.id
            await billing.move(one, [retried(one, group=bench.name("billing"), failure=None, not_before=None)])
        await billing.consume(1)
        await shipping.silence(0.1)


async def test_dead_letter_publish_failure_keeps_message(bench: Bench) -> None:
    """CF-67: a move whose message is not stored leaves its own delivery unsettled and no other."""
    await bench.provision()
    messages = bench.messages(3, keys=["a", "b", "c"])
    await bench.publish(messages)
    nowhere = DeadChannel(bench.topic, bench.name("nobody"))
    async with bench.member() as reader:
        found = await reader.take(3)
        moves = [
            Move(one, [msgspec.structs.replace(one.message, to=nowhere if place == 1 else bench.dead())])
            for place, one in enumerate(found)
        ]
        settlements = await reader.receiver.settle(move=moves)
        assert ["settled", "failed", "settled"] == [one.status for one in settlements]
        assert ["rejected"] == [receipt.status for receipt in settlements[1].receipts]
    async with bench.member() as reader:
        assert [found[1].message.id] == ids(await reader.consume(1))
        await reader.silence(0.1)


async def test_dead_letter_crash_between_publish_and_ack(bench: Bench) -> None:
    """CF-68: a member killed at any moment of its moves loses nothing; where settling is atomic, nothing is twice."""
    await bench.provision()
    messages = bench.messages(120, keys=[f"k{number}" for number in range(12)])
    await bench.publish(messages)
    for patience in (0.02, 0.05, 0.08):
        client = await bench.spawn()
        await client.start_forwarding(bench.subscription(prefetch=10), bench.dead())
        await asyncio.sleep(patience)
        await client.kill()
    async with bench.member() as reader:
        while (await bench.stats()).dead != 120:
            for one in await reader.poll(50):
                await reader.move(one, [msgspec.structs.replace(one.message, to=bench.dead())])
            left = await bench.stats()
            if not bench.capabilities.atomic and (0, 0) == (left.ready, left.in_flight):
                break
    letters = await bench.inspector.browse(bench.dead(), limit=1000)
    assert set(ids(messages)) == {one.message.id for one in letters}
    if bench.capabilities.atomic:
        assert 120 == len(letters)


async def test_dead_envelope_complete(bench: Bench) -> None:
    """CF-69: a dead letter comes back from the broker with all its headers, and its body byte by byte."""
    await bench.provision()
    (message,) = bench.messages(1)
    await bench.publish([msgspec.structs.replace(message, body=bytes(range(256)))])
    failure = Failure(3, 0, "ValueError: a", "KeyError: ü", 1_700_000_000_000_000, 1_700_000_100_000_000, {"A": 3})
    async with bench.member() as reader:
        (one,) = await reader.take(1)
        verdict = DeadLetter(Reason.EXHAUSTED, "three attempts")
        letter = dead_letter(one, verdict, group=bench.name("billing"), failure=failure, member="m-1")
        await reader.move(one, [letter])
    (browsed,) = await bench.inspector.browse(bench.dead())
    assert bytes(range(256)) == browsed.message.body
    assert dict(letter.headers) == dict(browsed.message.headers)
    assert letter.key == browsed.message.key
    assert {"dl-topic", "dl-group", "dl-reason", "dl-position", "dl-first-error"} <= set(browsed.message.headers)


async def test_browse_dead_does_not_consume_or_count(bench: Bench) -> None:
    """CF-70: browsing dead letters twice shows the same, in pages too, and changes nothing."""
    await bench.provision()
    messages = bench.messages(5)
    await _bury(bench, messages)
    first = await bench.inspector.browse(bench.dead())
    assert ids(messages) == [one.message.id for one in first]
    pages: list[Browsed] = []
    while page := await bench.inspector.browse(bench.dead(), after=pages[-1].position if pages else None, limit=2):
        pages += page
    assert list(first) == pages
    assert 5 == (await bench.stats()).dead
    await _redrive(bench, first[:1])
    async with bench.member() as reader:
        assert [1] == [one.attempt for one in await reader.consume(1)]


async def test_browse_shows_a_topic_and_an_inbox_without_consuming(bench: Bench) -> None:
    """CF-70: browsing a topic and an inbox channel takes nothing from its group."""
    bench.need(replay=bench.capabilities.replay)  # a queue shows a message only by handing it out
    await bench.provision()
    here, there = bench.messages(3, keys=["a", "b"]), bench.messages(2, to=bench.inbox())
    await bench.publish([*here, *there])
    for _ in range(2):
        assert by_key(here) == by_key(one.message for one in await bench.inspector.browse(Topic(bench.topic)))
        assert ids(there) == [one.message.id for one in await bench.inspector.browse(bench.inbox())]
    async with bench.member() as reader:
        found = await reader.consume(5)
    assert {1} == {one.attempt for one in found}


async def test_redrive_all(bench: Bench) -> None:
    """CF-71: dead letters sent to the inbox channel reach the group again, with a new cycle of attempts."""
    await bench.provision("billing", "shipping")
    messages = bench.messages(5, keys=["a", "b"])
    await _bury(bench, messages)
    await _redrive(bench, await bench.inspector.browse(bench.dead()))
    assert 0 == (await bench.stats()).dead
    async with bench.member() as reader:
        found = await reader.consume(5)
    assert by_key(messages) == by_key(found)
    assert {1} == {one.attempt for one in found}


async def test_redrive_by_filter(bench: Bench) -> None:
    """CF-71: dead letters that are not chosen stay where they are; removing what is gone changes nothing."""
    await bench.provision()
    messages = bench.messages(6, keys=["a", "b"])
    await _bury(bench, messages)
    letters = await bench.inspector.browse(bench.dead())
    chosen = [one for one in letters if one.message.key == "a"]
    await _redrive(bench, chosen)
    assert 0 == await bench.inspector.remove(bench.dead(), [one.position for one in chosen])
    assert ids(messages[1::2]) == [one.message.id for one in await bench.inspector.browse(bench.dead())]
    async with bench.member() as reader:
        assert ids(messages[0::2]) == ids(await reader.consume(3))


async def test_redrive_interrupted_resumes(bench: Bench) -> None:
    """CF-71: a redrive that stops between sending and removing may send one twice and loses none."""
    await bench.provision()
    messages = bench.messages(3)
    await _bury(bench, messages)
    letters = await bench.inspector.browse(bench.dead())
    await bench.publish([msgspec.structs.replace(letters[0].message, to=bench.inbox())])
    await _redrive(bench, await bench.inspector.browse(bench.dead()))
    async with bench.member() as reader:
        found = await reader.consume(4)
    assert [messages[0].id, *ids(messages)] == ids(found)


async def test_redrive_keeps_key_order(bench: Bench) -> None:
    """CF-71: a key's dead letters are browsed, and come back, in the order in which they were given up."""
    bench.need(order=bench.capabilities.order)
    await bench.provision()
    messages = bench.messages(30, keys=["a", "b", "c"])
    await _bury(bench, messages)
    await _redrive(bench, await bench.inspector.browse(bench.dead()))
    async with bench.member() as reader:
        assert by_key(messages) == by_key(await reader.consume(30))


async def test_undecodable_message_from_foreign_producer(bench: Bench) -> None:
    """CF-72: a message without id, source and sensible headers is handed out raw and can become a dead letter."""
    await bench.provision()
    strange = {"": "", "x": "\u0001", "ce-id": "{not json", "a b": "ü" * 300}
    foreign = [Message(Topic(bench.topic), "", "", None, strange, b"\xff\x00garbage") for _ in range(2)]
    await bench.publish(foreign)
    async with bench.member() as reader:
        found = await reader.take(2)
        assert foreign == [one.message for one in found]
        for one in found:
            await reader.move(one, [msgspec.structs.replace(one.message, to=bench.dead())])
    letters = await bench.inspector.browse(bench.dead())
    assert [strange, strange] == [dict(one.message.headers) for one in letters]


async def _settled_history(bench: Bench) -> tuple[list[Message], list[Browsed]]:
    """Let two groups settle ten messages of one lane, the last five published later; return them as browsed."""
    await bench.provision("billing", "shipping", lanes=1)
    messages = bench.messages(10)
    await bench.publish(messages[:5])
    await asyncio.sleep(0.02)
    await bench.publish(messages[5:])
    for group in ("billing", "shipping"):
        async with bench.member(group) as reader:
            await reader.consume(10)
    return messages, list(await bench.inspector.browse(Topic(bench.topic)))


async def test_replay_from_position(bench: Bench) -> None:
    """CF-73: a group moved to a position sees what is there and after it again; another group does not."""
    bench.need(replay=bench.capabilities.replay)
    messages, history = await _settled_history(bench)
    await bench.inspector.seek(bench.topic, bench.name("billing"), to=history[3].position)
    async with bench.member("billing") as billing, bench.member("shipping") as shipping:
        found = await billing.consume(7)
        await shipping.silence(0.1)
    assert ids(messages[3:]) == ids(found)
    assert {1} == {one.attempt for one in found}


async def test_replay_from_time(bench: Bench) -> None:
    """CF-73: a group moved to a time sees again what was stored at that time or after it."""
    bench.need(replay=bench.capabilities.replay)
    messages, history = await _settled_history(bench)
    stored_at = history[5].stored_at
    assert stored_at is not None, "a transport with replay knows when it stored a message"
    await bench.inspector.seek(bench.topic, bench.name("billing"), to=moment(stored_at))
    async with bench.member("billing") as reader:
        assert ids(messages[5:]) == ids(await reader.consume(5))
        await reader.silence(0.1)


async def test_replay_forward_skips(bench: Bench) -> None:
    """CF-73: a group moved forward does not see what it had not yet settled before that place."""
    bench.need(replay=bench.capabilities.replay)
    await bench.provision(lanes=1)
    await bench.publish(bench.messages(6))
    async with bench.member() as reader:
        await reader.release((await reader.take(2))[1:])
    history = await bench.inspector.browse(Topic(bench.topic))
    await bench.inspector.seek(bench.topic, bench.name("billing"), to=history[4].position)
    async with bench.member() as reader:
        assert [b"4", b"5"] == bodies(await reader.consume(2))
        await reader.silence(0.1)


async def test_seek_active_group_refused(bench: Bench) -> None:
    """CF-74: a group with a member is not moved; the error says so and nothing changes."""
    bench.need(replay=bench.capabilities.replay)
    _, history = await _settled_history(bench)
    async with bench.member() as reader:
        await reader.until_owner()
        with raises(TransportRefused):
            await bench.inspector.seek(bench.topic, bench.name("billing"), to=history[0].position)
        await reader.silence(0.1)


async def test_retention_gap_reported(bench: Bench) -> None:
    """CF-75: a place that retention has let go is refused with an error, never replaced by another one."""
    bench.need(replay=bench.capabilities.replay)
    await bench.provision(lanes=1, retention=timedelta(milliseconds=50))
    await bench.publish(bench.messages(3))
    (first, *_) = await bench.inspector.browse(Topic(bench.topic))
    async with bench.member() as reader:
        await reader.consume(3)

    async def gone() -> bool:
        await bench.publish(bench.messages(1))
        async with bench.member() as reader:
            await reader.consume(1)
        return first.position not in {one.position for one in await bench.inspector.browse(Topic(bench.topic))}

    await eventually(gone, "retention lets go what is settled and old")
    with raises(TransportRefused):
        await bench.inspector.seek(bench.topic, bench.name("billing"), to=first.position)
    with raises(TransportRefused):
        await bench.inspector.seek(bench.topic, bench.name("billing"), to=moment(first.stored_at or 0))


async def test_retention_keeps_what_a_group_has_not_settled(bench: Bench) -> None:
    """CF-75: retention never removes what a group has not settled, in flight or never received, however old."""
    await bench.provision("billing", "shipping", lanes=1, retention=timedelta(milliseconds=1))
    messages = bench.messages(150)
    await bench.publish(messages[:10])
    async with bench.member("shipping") as shipping:
        unsettled = await shipping.take(5)
        for start in range(10, 150, 20):
            await bench.publish(messages[start : start + 20])
            async with bench.member("billing") as billing:
                await billing.consume(20)
            await asyncio.sleep(0.01)
        await shipping.release(unsettled, counted=False)
        assert ids(messages) == ids(await shipping.consume(150))


async def test_redrive_target_dead_of_deleted_group_refused(bench: Bench) -> None:
    """CF-76: a redrive to a group that does not exist is rejected, and looking at its letters is refused."""
    await bench.provision()
    receipts = await bench.transport.publish(bench.messages(1, to=bench.inbox("gone")))
    assert [("rejected", "unknown_topic")] == [(receipt.status, receipt.reason) for receipt in receipts]
    with raises(TransportRefused):
        await bench.inspector.browse(bench.dead("gone"))


async def test_inbox_channel_stays_when_a_group_is_moved(bench: Bench) -> None:
    """CF-73: a seek moves the group in its topic; what waits in its inbox channel comes all the same."""
    bench.need(replay=bench.capabilities.replay)
    messages, history = await _settled_history(bench)
    retry = bench.messages(1, to=bench.inbox())
    await bench.publish(retry)
    await bench.inspector.seek(bench.topic, bench.name("billing"), to=history[9].position)
    async with bench.member() as reader:
        found: list[Delivery] = await reader.consume(2)
    assert sorted([messages[9].id, retry[0].id]) == sorted(ids(found))


async def test_unread_inbox_survives_its_reader(bench: Bench) -> None:
    """CF-66: what a killed member had of the inbox channel comes back like everything else."""
    bench.need(lease=bench.capabilities.lease)
    await bench.provision()
    messages = bench.messages(4, to=bench.inbox())
    await bench.publish(messages)
    client = await bench.spawn()
    await client.join(bench.subscription())
    doomed = Reader(client)
    await doomed.ack((await doomed.take(3))[:1])
    await client.kill()
    async with bench.member() as reader:
        found = sorted(await reader.consume(3), key=lambda one: one.message.body)
    assert ids(messages[1:]) == ids(found)
    # Whether the last one was handed out too, a broker need not know: it may not write down every hand-out.
    assert [[2, 2, 1], [2, 2, 2]].count([one.attempt for one in found]) == 1
