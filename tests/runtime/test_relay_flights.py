"""Flights of the relay: who is slow delays nobody else, and whatever becomes of an answer, nothing is lost."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from pathlib import Path

import pytest
from relay_doubles import Away, CutOnce, Late, Refusing, Watched
from runtime_world import Opened, OrderPlaced, PageViewed, World, opened_on

from tidewire import Service, transaction
from tidewire.model import Topic, TopicSpec
from tidewire.runtime.serve import Running

TOPICS = [TopicSpec("shop.order", lanes=4), TopicSpec("shop.page", lanes=4)]


@pytest.fixture(params=["memory", "sqlite", "postgresql"])
def opened(request: pytest.FixtureRequest, tmp_path: Path) -> Opened:
    """A function that opens the world of one kind, PostgreSQL among them."""
    url = request.getfixturevalue("postgresql_url") if request.param == "postgresql" else ""
    return opened_on(request.param, tmp_path, url=url)


async def put(app: Running, world: World, events: Sequence[object]) -> Sequence[str]:
    """Commit *events* together and return their ids."""
    async with transaction(world.store) as tx:
        return await app.publisher.publish_all(events, tx=tx)


async def emptied(world: World) -> bool:
    """Whether the outbox holds nothing."""
    return (0, 0) == tuple(await world.store.outbox.count())


async def arrived(world: World, *topics: str) -> list[str]:
    """Return the ids on *topics*, in order, as the broker has them."""
    found: list[str] = []
    for topic in topics:
        after: int | str | None = None
        while page := await world.transport.browse(Topic(topic), after=after, limit=500):
            found += [one.message.id for one in page]
            after = page[-1].position
    return found


def test_a_slow_answer_delays_its_key_and_no_other(opened: Opened) -> None:
    """While the broker is slow about one key, other keys and rows without a key leave, and its own successor waits."""

    async def scenario() -> None:
        async with opened() as world:
            late = world.transport = Late(world.transport, "slow")
            await world.transport.provision(TOPICS, [])
            async with world.running(Service("shop")) as app:
                (first,) = await put(app, world, [OrderPlaced("slow", number=1)])
                await world.until(lambda: [first] in late.handed)
                others = await put(app, world, [OrderPlaced("a"), OrderPlaced("slow", number=2), PageViewed(1)])

                async def passed() -> bool:
                    return {others[0], others[2]} <= {*(await arrived(world, "shop.order", "shop.page"))}

                await world.until(passed)
                assert others[1] not in [one for call in late.handed for one in call]
                late.released.set()
                await world.until(lambda: emptied(world))
            assert [first, others[1]] == [one for one in await arrived(world, "shop.order") if one != others[0]]
            assert 1 == late.most

    asyncio.run(scenario())


def test_of_a_key_one_publish_is_on_its_way(opened: Opened) -> None:
    """However fast events of few keys are committed, no two calls hold the same key, and each key keeps its order."""

    async def scenario() -> None:
        async with opened() as world:
            watched = world.transport = Watched(world.transport)
            order: dict[str, list[str]] = {}
            async with world.running(Service("shop")) as app:

                async def write(key: str) -> None:
                    for number in range(100):
                        order.setdefault(key, []).extend(await put(app, world, [OrderPlaced(key, number=number)]))

                async with asyncio.TaskGroup() as tasks:
                    for key in ("a", "b", "c"):
                        tasks.create_task(write(key))
                await world.until(lambda: emptied(world))
            handed = [one for call in watched.handed for one in call]
            for ids in order.values():
                assert ids == [one for one in handed if one in {*ids}]
            assert 1 == watched.most

    asyncio.run(scenario())


def test_a_refused_row_holds_its_key_and_no_other(opened: Opened) -> None:
    """Of a batch whose k-th row is refused, rows before it and other keys leave; what follows of its key waits, is put
    aside with it, and leaves in order once it is let go."""

    async def scenario() -> None:
        async with opened() as world:
            refusing = world.transport = Refusing(world.transport, lambda message: b'"number":13' in message.body)
            await world.transport.provision(TOPICS, [])
            async with world.running(Service("shop")) as app:
                events = [OrderPlaced("bad" if number % 2 else "good", number=number) for number in range(20)]
                ids = await put(app, world, [*events, PageViewed(1)])
                held = {*ids[13:20:2]}
                await world.until(lambda: len(refusing.handed) >= 2)
                assert {*ids} - held == {*(await arrived(world, "shop.order", "shop.page"))}

                async def stuck() -> bool:
                    return (0, len(held)) == tuple(await world.store.outbox.count())

                await world.until(stuck)
                refusing.refused = lambda message: False
                await world.store.outbox.requeue([one.row for one in await world.store.outbox.stuck()])
                await world.until(lambda: emptied(world))
            assert [*ids[1:20:2]] == [one for one in await arrived(world, "shop.order") if one in {*ids[1:20:2]}]

    asyncio.run(scenario())


def test_a_relay_that_cannot_reach_the_broker_lets_another_try(opened: Opened) -> None:
    """Whoever waits for the broker beyond its lease has none any more, and a relay that reaches it publishes."""

    async def scenario() -> None:
        async with opened() as world:
            await world.transport.provision(TOPICS, [])
            away = World(Away(world.transport), world.store, world.options)
            async with away.running(Service("shop")) as app:
                ids = await put(app, world, [OrderPlaced("1")])
                await world.until(lambda: away.transport.handed)
                async with world.running(Service("other")):
                    await world.until(lambda: emptied(world))
            assert ids == await arrived(world, "shop.order")

    asyncio.run(scenario())


@pytest.mark.parametrize("raising", [False, True], ids=["unknown", "cut off"])
def test_a_cut_at_every_point_of_the_answer_loses_nothing(opened: Opened, raising: bool) -> None:
    """Wherever the connection breaks, every event is on the broker at the end, with its id, in the order of its key."""

    async def scenario(stored: int, heard: int) -> None:
        async with opened() as world:
            cut = world.transport = CutOnce(world.transport, stored=stored, heard=heard, raising=raising)
            async with world.running(Service("shop")) as app:
                ids = await put(app, world, [OrderPlaced("ab"[number % 2], number=number) for number in range(6)])
                await world.until(lambda: emptied(world))
            found = await arrived(world, "shop.order")
            for key in (0, 1):
                own = [one for one in dict.fromkeys(found) if one in ids[key::2]]
                assert [*ids[key::2]] == own, f"{stored} stored, {heard} heard"
            assert len(cut.handed) >= 2

    for stored in range(7):
        for heard in {0, stored // 2, min(stored, 5)}:
            if raising and heard:
                continue
            asyncio.run(scenario(stored, heard))
