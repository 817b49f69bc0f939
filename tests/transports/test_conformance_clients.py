"""The suite's client in a process of its own says exactly what its transport says, and dies like any process."""

from __future__ import annotations

import asyncio
from datetime import timedelta

import pytest

from tidewire.model import (
    Address,
    DeadChannel,
    Delivery,
    InboxChannel,
    LaneEvent,
    Message,
    Move,
    Release,
    Subscription,
    Topic,
)
from tidewire.testing.transports import Client, spawn_client

OPENER = "lonely_broker:open_lonely"
TOPIC = Topic("t")
SECOND = timedelta(seconds=1)
WANTED = Subscription("g", ["t"], "m", grace=timedelta(0))


def message(number: int, to: Address = TOPIC) -> Message:
    """Return message *number*."""
    return Message(to, f"id-{number}", "test", None, {"h-ü": "ü\n"}, bytes(range(256)), None)


async def deliveries(client: Client, number: int) -> list[Delivery]:
    """Receive *number* deliveries."""
    found: list[Delivery] = []
    while len(found) < number:
        found += [one for one in await client.receive(number, SECOND) if isinstance(one, Delivery)]
    return found


def test_everything_travels_over_the_pipe() -> None:
    """Messages, receipts, lane events, deliveries and settlements come back as they were said."""

    async def life() -> None:
        async with spawn_client(OPENER, "t", "g") as client:
            sent = [message(1), message(2, InboxChannel("t", "g")), message(3, DeadChannel("t", "g"))]
            receipts = await client.publish([*sent, message(4, Topic("nowhere"))])
            assert ["stored"] * 3 + ["rejected"] == [one.status for one in receipts]
            assert "unknown_topic" == receipts[3].reason
            await client.join(WANTED)
            events = await client.receive(0, SECOND)
            assert {"t/0", "t/1"} == {one.lane for one in events if isinstance(one, LaneEvent)}
            found = await deliveries(client, 2)
            assert sorted(one.id for one in sent[:2]) == sorted(one.message.id for one in found)
            assert {(message(1).headers["h-ü"], message(1).body)} == {
                (one.message.headers["h-ü"], one.message.body) for one in found
            }
            settled = await client.settle(release=[Release(found[0])], move=[Move(found[1], [message(5, Topic("x"))])])
            assert ["settled", "failed"] == [one.status for one in settled]
            assert ["rejected"] == [one.status for one in settled[1].receipts]
            assert [2] == [one.attempt for one in await deliveries(client, 1)]
            await client.steer(pause=["t/0", "t/1"])
            assert [] == list(await client.receive(5, timedelta(milliseconds=50)))

    asyncio.run(life())


def test_a_killed_client_is_dead() -> None:
    """After a kill nobody answers, and the suite says so instead of waiting."""

    async def life() -> None:
        async with spawn_client(OPENER, "t", "g") as client:
            await client.kill()
            with pytest.raises((AssertionError, ConnectionError)):
                await client.publish([message(1)])

    asyncio.run(life())


def test_a_paused_client_answers_when_it_goes_on() -> None:
    """A paused client says nothing; once resumed, it answers what it was asked."""

    async def life() -> None:
        async with spawn_client(OPENER, "t", "g") as client, asyncio.TaskGroup() as tasks:
            client.pause()
            asked = tasks.create_task(client.publish([message(1)]))
            done, _ = await asyncio.wait([asked], timeout=0.2)
            assert set() == done
            client.resume()
            assert ["stored"] == [one.status for one in await asked]

    asyncio.run(life())


def test_a_client_that_fails_ends_with_a_traceback(capfd: pytest.CaptureFixture[str]) -> None:
    """An error in the client's process ends it; what was wrong stands on its standard error."""

    async def life() -> None:
        async with spawn_client(OPENER, "t", "g") as client:
            with pytest.raises(AssertionError, match="standard error"):
                await client.receive(1, SECOND)

    asyncio.run(life())
    assert "join first" in capfd.readouterr().err
