"""Handlers that take lists: what a batch holds, when it begins, and what becomes of one that fails."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Sequence
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from runtime_world import Opened, OrderPlaced, PageViewed, PaymentTaken, World, opened_on

from tidewire import ConfigurationError, Context, Options, Reject, Retry, Service, domain_event
from tidewire.errors import StoreUnavailable

ONCE = Retry(attempts=1)
QUICK = Retry(attempts=3, first_delay=timedelta(milliseconds=5), factor=1.0)


async def out(world: World, number: int) -> bool:
    """Whether so many orders are in the hands of a member."""
    return bool((await world.transport.stats("shop.order", "billing")).in_flight == number)


def test_events_that_wait_are_handled_together(opened: Opened) -> None:
    """A backlog comes in lists as long as asked for, each event once, and what is returned is published."""
    service, batches, paid = Service("billing"), list[list[int]](), list[str]()

    @service.on(PageViewed, batch=50)
    async def count(views: list[PageViewed], context: Context) -> list[PaymentTaken]:
        assert len(views) == len(context.envelopes)
        batches.append([view.number for view in views])
        return [PaymentTaken(str(view.number)) for view in views]

    @service.on(PaymentTaken)
    async def take(payment: PaymentTaken) -> None:
        paid.append(payment.order_id)

    async def scenario() -> None:
        async with opened() as world:
            async with world.running(Service("web")) as web:
                await web.publisher.publish_all([PageViewed(number) for number in range(200)])
            async with world.running(service):
                await world.until(lambda: len(paid) == 200)
        assert sorted(number for batch in batches for number in batch) == list(range(200))
        assert len(batches) < 100
        assert max(map(len, batches)) <= 50

    asyncio.run(scenario())


def test_a_batch_waits_for_others_and_no_longer(opened: Opened) -> None:
    """The window begins with its first event: later ones join it, they do not prolong it."""
    service, batches = Service("billing"), list[int]()

    @service.on(OrderPlaced, batch=50, batch_wait=timedelta(milliseconds=300))
    async def count(orders: list[OrderPlaced]) -> None:
        batches.append(len(orders))

    async def scenario() -> None:
        async with opened() as world:
            world.options = world.options.__class__(lease=timedelta(seconds=5), lanes=1)
            async with world.running(service) as app:
                await app.publisher.publish_all([OrderPlaced("first"), OrderPlaced("joins it")])
                number = 0
                async with asyncio.timeout(30):
                    while not batches:  # an event every 50 ms would prolong it for ever
                        await asyncio.sleep(0.05)
                        await app.publisher.publish(OrderPlaced(str(number := number + 1)))
                await world.until(lambda: sum(batches) == 2 + number)
        assert batches[0] >= 2

    asyncio.run(scenario())


def test_a_stop_does_not_wait_for_the_window(opened: Opened) -> None:
    """What has been gathered is handled at once when the service stops."""
    service, seen = Service("billing"), list[str]()

    @service.on(OrderPlaced, batch=50, batch_wait=timedelta(seconds=30))
    async def count(orders: list[OrderPlaced]) -> None:
        seen.extend(order.order_id for order in orders)

    async def scenario() -> None:
        async with opened() as world:
            async with world.running(service) as app:
                await app.publisher.publish(OrderPlaced("1"))
                await world.until(lambda: out(world, 1))
                await asyncio.sleep(0.2)
                assert [] == seen
            assert ["1"] == seen

    asyncio.run(scenario())


def test_no_two_events_of_a_key_are_in_one_batch(opened: Opened) -> None:
    """Order by key holds for lists too."""
    service, seen = Service("billing"), list[tuple[str, int]]()

    @service.on(OrderPlaced, batch=20)
    async def take(orders: list[OrderPlaced]) -> None:
        assert len({order.order_id for order in orders}) == len(orders)
        await asyncio.sleep(0.001)
        seen.extend((order.order_id, order.number) for order in orders)

    async def scenario() -> None:
        async with opened() as world, world.running(service) as app:
            await app.publisher.publish_all([OrderPlaced(key, number=n) for n in range(10) for key in "abcdef"])
            await world.until(lambda: len(seen) == 60)
        for key in "abcdef":
            assert list(range(10)) == [number for name, number in seen if name == key]

    asyncio.run(scenario())


def test_one_bad_event_fails_alone(opened: Opened) -> None:
    """A failing batch is run one by one: only the culprit becomes a dead letter, nobody's effect happens twice."""
    service, effects = Service("billing"), Counter[int]()

    @service.on(PageViewed, batch=30, retry=ONCE)
    async def take(views: Sequence[PageViewed], context: Context) -> None:
        for view in views:
            if view.number == 7:
                raise Reject("not this one")
        for view in views:
            await note(context.tx, view.number)

    async def note(tx: Any, number: int) -> None:
        if hasattr(tx, "put"):
            await tx.put(number, await tx.get(number, 0) + 1)
        else:
            await tx.execute("CREATE TABLE IF NOT EXISTS seen (number INTEGER)")
            await tx.execute("INSERT INTO seen VALUES (?)", (number,))

    async def scenario() -> None:
        async with opened() as world, world.running(service) as app:
            await app.publisher.publish_all([PageViewed(number) for number in range(30)])
            await world.until(lambda: world.settled("shop.page", "billing"))
            letters = await world.dead("shop.page", "billing")
            assert [b'{"number":7}'] == [letter.message.body for letter in letters]
            unit = world.store.unit()
            if hasattr(unit.tx, "put"):
                effects.update({n: await unit.tx.get(n, 0) for n in range(30)})
            else:
                effects.update(row[0] for row in await unit.tx.fetchall("SELECT number FROM seen"))
            await unit.rollback()
        assert {n: 0 if n == 7 else 1 for n in range(30)} == {n: effects[n] for n in range(30)}

    asyncio.run(scenario())


def test_a_batch_that_meets_an_outage_counts_for_nobody(opened: Opened) -> None:
    """Unavailable is nobody's failure: the same events come again, together, after the pause."""
    service, sizes = Service("billing"), list[int]()

    @service.on(PageViewed, batch=10, retry=ONCE)
    async def take(views: list[PageViewed]) -> None:
        sizes.append(len(views))
        if len(sizes) == 1:
            raise StoreUnavailable("down for a moment")

    async def scenario() -> None:
        async with opened() as world:
            async with world.running(Service("web")) as web:
                await web.publisher.publish_all([PageViewed(number) for number in range(10)])
            async with world.running(service):
                await world.until(lambda: world.settled("shop.page", "billing"))
            assert [] == await world.dead("shop.page", "billing")
        assert sum(sizes[1:]) == 10

    asyncio.run(scenario())


def test_a_batch_that_runs_too_long_has_failed(opened: Opened) -> None:
    """The time-out cuts the batch off and each of its events is tried alone."""
    service, sizes = Service("billing"), list[int]()

    @service.on(PageViewed, batch=10, retry=QUICK, timeout=timedelta(milliseconds=100))
    async def take(views: list[PageViewed]) -> None:
        sizes.append(len(views))
        if len(views) > 1:
            await asyncio.sleep(60)

    async def scenario() -> None:
        async with opened() as world:
            world.options = world.options.__class__(lease=timedelta(seconds=5), lanes=1)
            async with world.running(Service("web")) as web:
                await web.publisher.publish_all([PageViewed(number) for number in range(5)])
            async with world.running(service):
                await world.until(lambda: world.settled("shop.page", "billing"))
            assert [] == await world.dead("shop.page", "billing")
        assert [1, 1, 1, 1, 1] == [size for size in sizes if size == 1]
        assert max(sizes) > 1

    asyncio.run(scenario())


def _one(order: OrderPlaced) -> None: ...


def _many(orders: list[OrderPlaced]) -> None: ...


@domain_event
class Stocked:
    """Stays inside."""

    sku: str


def _stocked(events: list[Stocked]) -> None: ...


def test_a_batch_whose_first_event_was_lost_runs_the_others(tmp_path: Path) -> None:
    """A lane that is lost and comes back while a batch gathers costs no event of it (seed 554 on sqs)."""
    service, taken = Service("billing"), list[str]()

    @service.on(OrderPlaced, batch=3, batch_wait=timedelta(milliseconds=700))
    async def count(orders: list[OrderPlaced]) -> None:
        taken.extend(order.order_id for order in orders)

    async def scenario() -> None:
        async with opened_on("memory", tmp_path)() as world:
            world.options = Options(lease=timedelta(milliseconds=50), lanes=1)
            async with world.running(service) as app:
                await app.publisher.publish(OrderPlaced("first"))
                await world.until(lambda: out(world, 1))
                (receiver,) = world.transport._receivers
                receiver.silence()
                await world.until(lambda: out(world, 0))
                receiver.wake()
                await app.publisher.publish(OrderPlaced("second"))
                await world.until(lambda: world.settled("shop.order", "billing"))
        assert {"first", "second"} == set(taken)

    asyncio.run(scenario())


@pytest.mark.parametrize(
    ("event", "function", "options", "message"),
    [
        (OrderPlaced, _one, {"batch": 5}, "takes a list"),
        (OrderPlaced, _many, {}, "takes a list"),
        (OrderPlaced, _many, {"batch": 100_000}, "prefetch"),
        (OrderPlaced, _many, {"batch": 5, "batch_wait": timedelta(hours=1)}, "a minute"),
        (Stocked, _stocked, {"batch": 5}, "domain event"),
    ],
)
def test_a_batch_that_cannot_be_is_refused_at_registration(
    event: type, function: Any, options: dict[str, Any], message: str
) -> None:
    """Shape and bounds are checked when the handler is written."""
    with pytest.raises(ConfigurationError, match=message):
        Service("billing").on(event, **options)(function)
