"""What a life that was cut off has written down about an event does not stay for ever."""

from __future__ import annotations

import asyncio
from datetime import timedelta
from typing import Any

from runtime_doubles import MarksAtCommit
from runtime_world import OrderPlaced, World

from tidewire import Context, Retry, Service
from tidewire.model import Delivery, GroupSpec, Mark, Subscription, TopicSpec
from tidewire.rules.events import definition_of
from tidewire.runtime.pipeline import _digest
from tidewire.stores.memory import open_memory_store
from tidewire.transports.memory import open_memory_transport

SHORT = timedelta(milliseconds=50)


async def cut_off(world: World, group: str) -> Delivery:
    """Let a member receive one delivery and fall silent with it."""
    subscription = Subscription(group, ["shop.order"], "cut-off", ordering="none", lease=SHORT)
    receiver: Any = await world.transport.subscribe(subscription).__aenter__()
    found: list[Delivery] = []
    while not found:
        found = [one for one in await receiver.receive(1, timedelta(seconds=5)) if isinstance(one, Delivery)]
    receiver.silence()
    return found[0]


def test_a_start_that_ended_with_the_effect_is_forgotten() -> None:
    """Killed between the commit and the ack, an event comes back as known, and its recorded start goes with it."""
    service = Service("billing")
    assert definition_of(OrderPlaced).topic == "shop.order"

    @service.on(OrderPlaced)
    async def take(order: OrderPlaced) -> None:
        raise AssertionError("it took effect in the earlier life")

    async def scenario() -> None:
        async with open_memory_transport() as transport, open_memory_store() as store:
            world = World(transport, store)
            await transport.provision([TopicSpec("shop.order", lanes=4)], [GroupSpec("billing", ["shop.order"])])
            async with world.running(Service("shop"), store=False) as app:
                await app.publisher.publish(OrderPlaced("1"), id="e1")
            message = (await cut_off(world, "billing")).message
            await store.attempts.begin("billing", message.source, "e1")
            unit = store.unit()
            await store.inbox.mark(unit, Mark("billing", "take", 0, message.source, "e1"), _digest(message.body))
            await (await unit.seal())
            async with world.running(service):
                await world.until(lambda: world.settled("shop.order", "billing"))
            assert await store.attempts.get("billing", message.source, "e1") is None

    asyncio.run(scenario())


def test_a_start_whose_effect_another_delivery_had_is_forgotten() -> None:
    """A commit that meets the mark of another delivery is an end like any other: the recorded start goes with it."""
    service, started = Service("billing"), list[str]()

    @service.on(OrderPlaced)
    async def take(order: OrderPlaced) -> None:
        started.append(order.order_id)

    async def scenario() -> None:
        async with open_memory_transport() as transport, open_memory_store() as store:
            world = World(transport, MarksAtCommit(store))
            await transport.provision([TopicSpec("shop.order", lanes=4)], [GroupSpec("billing", ["shop.order"])])
            async with world.running(Service("shop"), store=False) as app:
                await app.publisher.publish(OrderPlaced("1"), id="e1")
            message = (await cut_off(world, "billing")).message
            await store.attempts.begin("billing", message.source, "e1")
            async with world.running(service):
                await world.until(lambda: world.settled("shop.order", "billing"))
            assert ["1"] == started
            assert await store.attempts.get("billing", message.source, "e1") is None

    asyncio.run(scenario())


def test_a_suspect_that_fails_leaves_no_open_start() -> None:
    """Unordered, it waits in the inbox channel with its failures in the header; its start has ended (RT3)."""
    service, attempts = Service("billing"), list[int]()

    @service.on(OrderPlaced, ordering="none", retry=Retry(first_delay=timedelta(milliseconds=1)))
    async def take(order: OrderPlaced, context: Context[Any]) -> None:
        attempts.append(context.attempt)
        if len(attempts) == 1:
            raise RuntimeError("not yet")

    async def scenario() -> None:
        async with open_memory_transport() as transport, open_memory_store() as store:
            world = World(transport, store)
            await transport.provision([TopicSpec("shop.order", lanes=4)], [GroupSpec("billing", ["shop.order"])])
            async with world.running(Service("shop"), store=False) as app:
                await app.publisher.publish(OrderPlaced("1"), id="e1")
            message = (await cut_off(world, "billing")).message
            async with world.running(service):
                await world.until(lambda: len(attempts) == 2)
                await world.until(lambda: world.settled("shop.order", "billing"))
            assert await store.attempts.get("billing", message.source, "e1") is None

    asyncio.run(scenario())
