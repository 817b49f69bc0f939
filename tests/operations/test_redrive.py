"""Redrives: to one group, in order of keys, paced, told truly, and resumed after a kill."""

from __future__ import annotations

import asyncio
import sqlite3
import sys
from collections.abc import Sequence
from datetime import timedelta
from pathlib import Path

import msgspec
import pytest
from operations_world import (
    ANN,
    DAY,
    GROUP,
    NOW,
    TOPIC,
    everything,
    ids,
    letter,
    letters,
    plan_numbers,
    plan_of,
    provisioned,
    until_held,
)
from runtime_world import Opened, OrderPlaced, World

from tidewire import Context, Reject, Service
from tidewire.clock import moment
from tidewire.errors import ConfigurationError, TransportRefused
from tidewire.model import Act, Address, Browsed, DeadChannel, GroupSpec, InboxChannel, Reason, TopicSpec
from tidewire.operations.audit import acts_of
from tidewire.operations.redrive import Pace, interrupted_redrives, plan_letters, redrive, resume
from tidewire.operations.selection import Selection
from tidewire.stores.sqlite import open_sqlite_store
from tidewire.transports.memory import MemoryBroker, MemoryTransport, open_memory_transport
from tidewire.transports.sqlite import open_sqlite_transport


def test_a_redrive_reaches_the_failing_group_only(opened: Opened) -> None:
    """A letter goes back to the group that gave up on it; another group of the topic never sees it again."""
    billing, shipping = Service("billing"), Service("shipping")
    mended = asyncio.Event()
    taken, shipped = list[str](), list[str]()

    @billing.on(OrderPlaced, on_dead_letter="continue")
    async def take(order: OrderPlaced) -> None:
        if not mended.is_set():
            raise Reject("no stock")
        taken.append(order.order_id)

    @shipping.on(OrderPlaced)
    async def ship(order: OrderPlaced, context: Context) -> None:
        shipped.append(order.order_id)

    async def scenario() -> None:
        async with opened() as world, world.running(billing) as app, world.running(shipping):
            await app.publisher.publish_all([OrderPlaced(name) for name in ("a", "b", "c")])
            await world.until(lambda: world.settled(TOPIC, "billing"))
            await world.until(lambda: len(shipped) == 3)
            plan = await plan_of(world, everything())
            assert (3, 0, 0) == plan_numbers(plan)
            mended.set()
            done = await redrive(world.transport, plan, by=ANN)
            await world.until(lambda: len(taken) == 3)
            assert (3, 3, 0, 0) == (done.planned, done.moved, done.left, done.dead)
            await world.until(lambda: world.settled(TOPIC, "shipping"))
            assert ["a", "b", "c"] == sorted(taken)
            assert ["a", "b", "c"] == sorted(shipped)

    asyncio.run(scenario())


def test_a_selected_letter_of_a_held_key_takes_its_whole_key_along_in_order(opened: Opened) -> None:
    """Choosing one event that waits redrives its key from the head on; other keys stay where they are."""
    service, seen, mended = Service("billing"), list[tuple[str, int]](), asyncio.Event()

    @service.on(OrderPlaced, on_dead_letter="hold_key")
    async def take(order: OrderPlaced) -> None:
        if order.number == 1 and not mended.is_set():
            raise Reject("not this one")
        seen.append((order.order_id, order.number))

    async def scenario() -> None:
        async with opened() as world, world.running(service) as app:
            orders = [OrderPlaced(key, number=number) for number in (1, 2, 3) for key in ("a", "b")]
            await app.publisher.publish_all(orders)
            await world.until(lambda: world.settled(TOPIC, "billing"))
            assert 6 == len(await letters(world))
            middle = next(
                one for one in await letters(world) if one.message.key == "a" and b'"number":2' in one.message.body
            )
            plan = await plan_of(world, Selection(ids=(middle.message.id,)))
            assert (3, 2, 0) == plan_numbers(plan)
            mended.set()
            await redrive(world.transport, plan, by=ANN)
            await world.until(lambda: len(seen) == 3)
            assert [("a", 1), ("a", 2), ("a", 3)] == seen
            assert ["b", "b", "b"] == [one.message.key for one in await letters(world)]
            await until_held(world, ["b"])

    asyncio.run(scenario())


def test_only_takes_the_selected_letter_alone(opened: Opened) -> None:
    """Without whole keys nothing but what was selected goes, and what follows it goes on waiting."""

    async def scenario() -> None:
        async with opened() as world:
            await provisioned(world)
            held = letter("2", key="k", reason=Reason.HELD)
            await world.transport.publish([letter("1", key="k"), held, letter("3", key="j")])
            plan = await plan_of(world, Selection(ids=("1",)), whole_keys=False)
            await redrive(world.transport, plan, by=ANN)
            assert ["2", "3"] == await ids(world)

    asyncio.run(scenario())


def test_a_head_that_lies_behind_its_followers_still_goes_first(opened: Opened) -> None:
    """After a head was redriven alone and failed again it lies last in the channel; its key is redriven in order."""

    async def scenario() -> None:
        async with opened() as world:
            await provisioned(world)
            followers = [letter(name, key="k", reason=Reason.HELD) for name in ("2", "3")]
            await world.transport.publish([*followers, letter("x", key="j"), letter("1", key="k")])
            await redrive(world.transport, await plan_of(world, Selection(key="k")), by=ANN)
            sent = await world.transport.browse(InboxChannel(TOPIC, "billing"))
            assert ["1", "2", "3"] == [one.message.id for one in sent]
            assert ["x"] == await ids(world)

    asyncio.run(scenario())


def test_a_plan_changes_nothing(opened: Opened) -> None:
    """Looking is free: no letter moves, and the audit stays empty."""

    async def scenario() -> None:
        async with opened() as world:
            await provisioned(world)
            await world.transport.publish([letter(str(number)) for number in range(5)])
            before = await letters(world)
            assert 5 == (await plan_of(world, everything())).count
            assert before == await letters(world)
            assert [] == [act async for act in acts_of(world.transport)]
            assert [] == list(await world.transport.browse(InboxChannel(TOPIC, "billing")))

    asyncio.run(scenario())


def test_what_comes_after_the_plan_is_not_redriven(opened: Opened) -> None:
    """A letter that fails again while a redrive runs comes behind the plan's end, so that no redrive chases itself."""

    async def scenario() -> None:
        async with opened() as world:
            await provisioned(world)
            await world.transport.publish([letter(str(number)) for number in range(250)])
            plan = await plan_of(world, everything())
            await world.transport.publish([letter("late")])
            done = await redrive(world.transport, plan, by=ANN)
            assert (250, 250, 0, 1) == (done.planned, done.moved, done.left, done.dead)
            assert ["late"] == await ids(world)

    asyncio.run(scenario())


def test_a_plan_without_letters_changes_nothing_and_says_so(opened: Opened) -> None:
    """A no-op is no success: nothing moved, nothing in the audit."""

    async def scenario() -> None:
        async with opened() as world:
            await provisioned(world)
            done = await redrive(world.transport, await plan_of(world, everything()), by=ANN)
            assert not done.changed
            assert [] == [act async for act in acts_of(world.transport)]

    asyncio.run(scenario())


def test_a_letter_beyond_the_dedup_window_needs_force(opened: Opened) -> None:
    """Where inbox marks may be gone a redrive is refused whole, unless the operator accepts a second effect."""

    async def scenario() -> None:
        async with opened() as world:
            await provisioned(world)
            old = letter("old", ce_time=moment(NOW - 36 * DAY).isoformat())
            young = letter("young", ce_time=moment(NOW - 34 * DAY).isoformat())
            await world.transport.publish([old, young])
            plan = await plan_of(world, everything())
            assert (2, 0, 1) == plan_numbers(plan)
            with pytest.raises(ConfigurationError, match="35 days"):
                await redrive(world.transport, plan, by=ANN)
            assert ["old", "young"] == await ids(world)
            done = await redrive(world.transport, plan, by=ANN, force=True)
            assert 2 == done.moved

    asyncio.run(scenario())


def test_a_rate_is_kept_on_the_loops_clock(opened: Opened) -> None:
    """Thirty letters at 100 a second take at least a quarter of a second, in small batches."""
    heard = list[tuple[int, int]]()

    async def scenario() -> None:
        async with opened() as world:
            await provisioned(world)
            await world.transport.publish([letter(str(number)) for number in range(30)])
            plan = await plan_of(world, everything())
            loop = asyncio.get_running_loop()
            began = loop.time()
            await redrive(
                world.transport,
                plan,
                by=ANN,
                pace=Pace(100),
                progress=lambda moved, planned: heard.append((moved, planned)),
            )
            assert 0.19 <= loop.time() - began < 5
            assert [(10, 30), (20, 30), (30, 30)] == heard

    asyncio.run(scenario())


def test_a_refused_letter_stays_and_so_does_what_follows_of_its_key() -> None:
    """The act fails, names the letter, and nothing of its key overtakes it; other keys have gone."""

    async def scenario() -> None:
        broker = MemoryBroker()
        async with open_memory_transport(broker) as transport:
            world = _World(transport)
            await provisioned(world)
            keyed = [letter(f"k{number}", key="k") for number in range(150)]
            await transport.publish([*keyed[:1], letter("free"), *keyed[1:]])
            plan = await plan_of(world, everything())
            broker.refuse = lambda message: (
                "full" if message.id == "k0" and isinstance(message.to, InboxChannel) else None
            )
            done = await redrive(transport, plan, by=ANN)
            assert (1, 150) == (done.moved, done.left)
            assert ("k0", "rejected", "full") == (
                done.refused[0].event_id,
                done.refused[0].status,
                done.refused[0].reason,
            )
            assert [f"k{number}" for number in range(150)] == await ids(world)
            states = [act.state async for _, act in acts_of(transport)]
            assert ["begun", "failed"] == states

    asyncio.run(scenario())


class _World:
    """A transport where the helpers expect a world."""

    def __init__(self, transport: object) -> None:
        self.transport = transport


KILLED = """
import asyncio, sys
from tidewire.clock import SystemClock
from tidewire.operations.audit import Operator
from tidewire.operations.redrive import plan_letters, redrive
from tidewire.operations.selection import Selection
from tidewire.transports.sqlite import open_sqlite_transport

async def main():
    async with open_sqlite_transport(sys.argv[1]) as transport:
        remove, calls = transport.remove, 0

        async def stop_before_the_second(channel, positions):
            nonlocal calls
            calls += 1
            if calls == 2:
                print("published, not removed", flush=True)
                await asyncio.sleep(600)
            return await remove(channel, positions)

        transport.remove = stop_before_the_second
        plan = await plan_letters(transport, Selection(), now=SystemClock().now_us())
        await redrive(transport, plan, by=Operator("bob"))

asyncio.run(main())
"""


def test_a_killed_redrive_is_found_and_resumed_with_one_effect_each(tmp_path: Path) -> None:
    """UI-02: kill -9 between a batch's publish and its removal; after a resume every event took effect once."""
    service, mended = Service("billing"), asyncio.Event()
    path = tmp_path / "broker.db"

    @service.on(OrderPlaced, on_dead_letter="hold_key")
    async def take(order: OrderPlaced, context: Context) -> None:
        await context.tx.execute("create table if not exists taken (key text, number integer)")
        if not mended.is_set():
            raise Reject("not yet")
        await context.tx.execute("insert into taken values (?, ?)", (order.order_id, order.number))

    async def scenario() -> None:
        async with open_sqlite_transport(path) as transport, open_sqlite_store(tmp_path / "store.db") as store:
            world = World(transport, store)
            async with world.running(service) as app:
                orders = [OrderPlaced(f"key-{number % 7}", number=number) for number in range(350)]
                await app.publisher.publish_all(orders)
                await world.until(lambda: world.settled(TOPIC, "billing"), 20)
            assert 350 == len(await letters(world))
            child = await asyncio.create_subprocess_exec(
                sys.executable, "-c", KILLED, str(path), stdout=asyncio.subprocess.PIPE
            )
            assert child.stdout is not None
            async with asyncio.timeout(20):
                assert b"published, not removed\n" == await child.stdout.readline()
            child.kill()
            await child.wait()
            assert 250 == len(await letters(world))
            assert 200 == len(await transport.browse(InboxChannel(TOPIC, "billing"), limit=1_000))
            (begun,) = await interrupted_redrives(transport)
            assert ("bob", 350) == (begun.who, begun.count)
            mended.set()
            async with world.running(service):
                done = await resume(transport, begun, by=ANN)
                assert (250, 0) == (done.moved, done.left)
                await world.until(lambda: world.settled(TOPIC, "billing"), 20)
            assert [] == await interrupted_redrives(transport)
            assert 0 == len(await letters(world))

    asyncio.run(scenario())
    rows = _rows(tmp_path / "store.db")
    assert list(range(350)) == sorted(number for _, number in rows)
    for key in range(7):
        numbers = [number for name, number in rows if name == f"key-{key}"]
        assert numbers == sorted(numbers)


def _rows(path: Path) -> list[tuple[str, int]]:
    connection = sqlite3.connect(path)
    try:
        return connection.execute("select key, number from taken order by rowid").fetchall()
    finally:
        connection.close()


def test_the_audit_tells_who_redrove_what_and_how_it_ended(opened: Opened) -> None:
    """One act when it begins, with the plan, and one when it ends, with what was seen."""

    async def scenario() -> None:
        async with opened() as world:
            await provisioned(world)
            await world.transport.publish([letter("1"), letter("2", reason=Reason.POISON)])
            plan = await plan_of(world, Selection(reason="poison"))
            done = await redrive(world.transport, plan, by=ANN)
            begun, end = [act async for _, act in acts_of(world.transport)]
            assert ("ann", "redrive", TOPIC, "billing", 1) == (
                begun.who,
                begun.verb,
                begun.topic,
                begun.group,
                begun.count,
            )
            assert {"reason": "poison"} == msgspec.json.decode(begun.detail)["selection"]
            assert (done.act_id, "begun", done.act_id, "done") == (begun.id, begun.state, end.id, end.state)
            assert {"planned": 1, "left": 0, "dead": 1, "refused": []} == msgspec.json.decode(end.detail)

    asyncio.run(scenario())


class QueuesOnly(MemoryTransport):
    """A transport that shows only dead letters, as brokers that have only queues do."""

    async def browse(self, address: Address, *, after: int | str | None = None, limit: int = 100) -> Sequence[Browsed]:
        """Refuse what is no dead channel."""
        if not isinstance(address, DeadChannel):
            raise TransportRefused("a queue shows a message only by handing it out")
        return await super().browse(address, after=after, limit=limit)


def test_a_redrive_resumes_where_an_inbox_channel_cannot_be_looked_at() -> None:
    """What was sent before cannot be known on a broker of queues: all that is left is sent (seed 2 on amqp)."""

    async def scenario() -> None:
        transport = QueuesOnly(MemoryBroker())
        await transport.provision([TopicSpec(TOPIC)], [GroupSpec(GROUP, [TOPIC])])
        await transport.publish([letter("1"), letter("2")])
        plan = await plan_letters(transport, everything(), now=NOW)
        begun = Act(id="r", at=NOW, who="ann", verb="redrive", state="begun", detail=msgspec.json.encode(plan).decode())
        done = await resume(transport, begun, by=ANN)
        assert (2, 0) == (done.moved, done.left)
        assert 2 == (await transport.stats(TOPIC, GROUP)).ready

    asyncio.run(scenario())


def test_a_plan_that_cannot_be_read_is_not_resumed(opened: Opened) -> None:
    """An act that a newer tidewire began is left to it."""

    async def scenario() -> None:
        async with opened() as world:
            await provisioned(world)
            await world.transport.publish([letter("1")])
            await redrive(world.transport, await plan_of(world, everything()), by=ANN)
            begun = next(iter([act async for _, act in acts_of(world.transport)]))
            with pytest.raises(ConfigurationError, match="cannot be read"):
                await resume(world.transport, msgspec.structs.replace(begun, detail='{"plan": 1}'), by=ANN)

    asyncio.run(scenario())


def test_a_rate_that_cannot_be_is_refused() -> None:
    """Zero letters a second would never end."""
    for rate in (0.0, -1.0, float("nan"), float("inf")):
        with pytest.raises(ConfigurationError):
            Pace(rate)
    assert 1 == Pace(0.5).batch
    assert timedelta(0) < timedelta(seconds=1 / Pace(0.5).batch)
