"""Something that everybody needs is down: the pauses grow until an effect is durable again, and the log says why."""

from __future__ import annotations

import asyncio
from datetime import timedelta
from hashlib import blake2b
from typing import Any

import msgspec
import pytest
from runtime_doubles import Proxy, SteersLate
from runtime_world import Opened, OrderPlaced, World

from tidewire import Context, Retry, Service
from tidewire.errors import AlreadyMarked, StoreUnavailable
from tidewire.model import Mark, Message

FULL = "store billing.db cannot grow: the disk is full"


def refusing_commits(world: World, until: int) -> Any:
    """Return the world's store; its first *until* commits find the disk full, while it can be read."""
    store, refused = world.store, 0

    def unit(*arguments: Any, **named: Any) -> Any:
        inner = store.unit(*arguments, **named)

        async def seal() -> Any:
            nonlocal refused
            if refused >= until:
                return await inner.seal()
            refused += 1
            await inner.rollback()
            return asyncio.create_task(full())

        return Proxy(inner, seal=seal)

    async def full() -> None:
        raise StoreUnavailable(FULL)

    return Proxy(store, unit=unit)


def test_pauses_grow_while_nothing_can_be_committed(opened: Opened, caplog: pytest.LogCaptureFixture) -> None:
    """A handler that ends well does not end an outage: what cannot be committed is not done ten times a second."""
    service, handled = Service("billing"), list[str]()

    @service.on(OrderPlaced)
    async def take(order: OrderPlaced) -> None:
        handled.append(order.order_id)

    async def scenario() -> None:
        async with opened() as world:
            world.store = refusing_commits(world, until=4)
            world.options = msgspec.structs.replace(world.options, relay=False)  # which commits, too
            async with world.running(service) as app:
                await app.publisher.publish(OrderPlaced("1"))
                await world.until(lambda: len(handled) == 5)
                await world.until(lambda: world.settled("shop.order", "billing"))

    asyncio.run(scenario())
    paused = [vars(record) for record in caplog.records if record.message == "tidewire.consumer.paused"]
    delays = [record["delay_s"] for record in paused]
    assert [0.05, 0.1, 0.2, 0.4] == [next(c for c in (0.05, 0.1, 0.2, 0.4, 0.8) if c <= d <= 2 * c) for d in delays]
    assert {FULL} == {record["detail"] for record in paused}


def test_a_drained_lane_is_told_when_the_broker_is_back(opened: Opened) -> None:
    """A broker that is away when lanes are drained hears of the same lanes again, well before their grace ends."""
    service = Service("billing")

    @service.on(OrderPlaced)
    async def take(order: OrderPlaced) -> None:
        pass

    async def scenario() -> None:
        async with opened() as world:
            late = SteersLate(world.transport)
            options = msgspec.structs.replace(world.options, grace=timedelta(minutes=1))
            async with (
                World(late, world.store, options).running(service),
                World(world.transport, world.store, options).running(service),
            ):
                await world.until(lambda: len(late.asked) >= 2)
            first, second = late.asked[:2]
            assert first
            assert set(first) <= set(second)

    asyncio.run(scenario())


def test_a_database_that_goes_down_behind_a_duplicate_is_an_outage(
    opened: Opened, caplog: pytest.LogCaptureFixture
) -> None:
    """That the mark is there is found at the commit; what asks whether it is durable finds the database down: a pause.

    The membership goes on: it does not end, and its lanes are not given up.
    """
    service, units = Service("billing"), list[str]()

    @service.on(OrderPlaced)
    async def take(order: OrderPlaced) -> None:
        return None

    async def scenario() -> None:
        async with opened() as world:
            store = world.store

            def unit(*arguments: Any, **named: Any) -> Any:
                inner = store.unit(*arguments, **named)
                units.append(named.get("label", ""))

                async def seal() -> Any:
                    await inner.rollback()
                    raise AlreadyMarked("another copy has taken effect")

                async def begin() -> None:
                    raise StoreUnavailable(FULL)

                return {1: Proxy(inner, seal=seal), 2: Proxy(inner, begin=begin)}.get(len(units), inner)

            world.store = Proxy(store, unit=unit)
            world.options = msgspec.structs.replace(world.options, relay=False)  # which has units, too
            async with world.running(service) as app:
                await app.publisher.publish(OrderPlaced("1"))
                await world.until(lambda: len(units) > 2)
                await world.until(lambda: world.settled("shop.order", "billing"))

    asyncio.run(scenario())
    said = [record.message for record in caplog.records]
    assert 1 == said.count("tidewire.consumer.paused")
    assert "tidewire.consumer.crashed" not in said


def test_an_effect_that_happened_after_all_is_not_tried_again(opened: Opened) -> None:
    """A handler that fails because its effect is there already, and a commit whose answer was lost: neither runs twice.

    Another copy of the event, or the commit itself, has left its mark: it is looked for before the event runs again.
    """
    service, handled = Service("billing"), list[str]()

    @service.on(OrderPlaced, retry=Retry(attempts=2, first_delay=timedelta(milliseconds=1)))
    async def take(order: OrderPlaced, context: Context[Any]) -> None:
        handled.append(order.order_id)
        if order.order_id == "fails":
            message = context.message
            unit = context.unit
            assert unit is not None
            await unit.rollback()  # of stores with one writer: the copy's unit could not begin beside ours
            await elsewhere(message)
            raise KeyError("the row is there")

    async def scenario() -> None:
        async with opened() as world:
            store, lost = world.store, list[str]()

            async def copied(message: Message) -> None:
                unit = store.unit()
                digest = blake2b(message.body, digest_size=16).digest()
                await store.inbox.mark(unit, Mark("billing", "take", 0, message.source, message.id), digest)
                await (await unit.seal())

            def unit(*arguments: Any, **named: Any) -> Any:
                inner = store.unit(*arguments, **named)

                async def seal() -> Any:
                    durable = await inner.seal()
                    if handled == ["fails", "unknown"] and not lost:
                        await durable
                        lost.append("unknown")
                        raise StoreUnavailable("the connection was lost at the commit")
                    return durable

                return Proxy(inner, seal=seal)

            nonlocal elsewhere
            elsewhere = copied
            world.store = Proxy(store, unit=unit)
            async with world.running(service) as app:
                await app.publisher.publish(OrderPlaced("fails"))
                await world.until(lambda: world.settled("shop.order", "billing"))
                await app.publisher.publish(OrderPlaced("unknown"))
                await world.until(lambda: lost and world.settled("shop.order", "billing"))
            assert ["fails", "unknown"] == handled

    elsewhere: Any = None
    asyncio.run(scenario())
