"""The concurrency limit: it holds, per value too, and every place comes back."""

from __future__ import annotations

import asyncio
from collections import Counter
from datetime import timedelta

import pytest
from runtime_world import Opened, OrderPlaced, PageViewed, World
from virtual_world import in_virtual_time

from tidewire import ConfigurationError, Context, Options, Retry, Service, SyncContext, domain_event
from tidewire.middleware import ConcurrencyLimit, concurrency_limit

QUICK = Retry(attempts=3, first_delay=timedelta(milliseconds=5), factor=1.0)
ONCE = Retry(attempts=1)


@domain_event
class Noticed:
    """Something that another handler hears of in the same unit."""

    number: int


class Gauge:
    """How many are inside, by name, and how many were at most."""

    def __init__(self) -> None:
        self.inside, self.most, self.handled = Counter[object](), Counter[object](), 0

    async def stay(self, *names: object, seconds: float = 0.002) -> None:
        for name in names:
            self.inside[name] += 1
            self.most[name] = max(self.most[name], self.inside[name])
        try:
            await asyncio.sleep(seconds)
            self.handled += 1
        finally:
            for name in names:
                self.inside[name] -= 1


def unused(limit: ConcurrencyLimit) -> bool:
    """Whether every place has come back, and nothing is remembered."""
    return (0, 0, 0) == (limit.running, limit.waiting, limit.values)


def test_at_most_so_many_run_at_a_time(opened: Opened) -> None:
    """Over 200 events the limit is reached and never passed, and every place comes back."""
    limit, gauge, service = concurrency_limit(3), Gauge(), Service("billing")

    @service.on(PageViewed, middleware=[limit])
    async def call(view: PageViewed) -> None:
        await gauge.stay("all")

    async def scenario() -> None:
        async with opened() as world, world.running(service) as app:
            await app.publisher.publish_all([PageViewed(number) for number in range(200)])
            await world.until(lambda: gauge.handled == 200)
            await world.until(lambda: unused(limit))

    asyncio.run(scenario())
    assert {"all": 3} == gauge.most


def test_at_most_so_many_of_one_value_run_at_a_time(opened: Opened) -> None:
    """Each value has its own places; values are kept while something of them runs, and no longer."""
    limit, gauge = concurrency_limit(2, key=lambda view: view.number % 5), Gauge()
    service, kept = Service("billing", middleware=[limit]), list[int]()

    @service.on(PageViewed)
    async def call(view: PageViewed) -> None:
        kept.append(limit.values)
        await gauge.stay("all", view.number % 5)

    async def scenario() -> None:
        async with opened() as world, world.running(service) as app:
            await app.publisher.publish_all([PageViewed(number) for number in range(200)])
            await world.until(lambda: gauge.handled == 200)
            await world.until(lambda: unused(limit))

    asyncio.run(scenario())
    assert [2] * 5 == [gauge.most[value] for value in range(5)]
    assert 2 < gauge.most["all"] <= 10
    assert max(kept) <= 5


def test_handlers_and_services_that_share_it_stay_under_it_together(opened: Opened) -> None:
    """One object is one limit, wherever it is used."""
    limit, gauge = concurrency_limit(2), Gauge()
    billing, audit = Service("billing"), Service("audit", middleware=[limit])

    @billing.on(PageViewed, name="one", repeatable=True, middleware=[limit])
    @billing.on(PageViewed, name="two", repeatable=True, middleware=[limit])
    async def bill(view: PageViewed) -> None:
        await gauge.stay("all")

    @audit.on(PageViewed)
    async def note(view: PageViewed) -> None:
        await gauge.stay("all")

    async def scenario() -> None:
        async with opened() as world, world.running(billing, store=False) as app, world.running(audit, store=False):
            await app.publisher.publish_all([PageViewed(number) for number in range(40)])
            await world.until(lambda: gauge.handled == 120)
            await world.until(lambda: unused(limit))

    asyncio.run(scenario())
    assert {"all": 2} == gauge.most


def test_waiting_is_not_the_handlers_time() -> None:
    """Events that wait longer than the handler's timeout for a place are handled at their first attempt."""
    limit, gauge, service, attempts = concurrency_limit(1), Gauge(), Service("billing"), list[int]()

    @service.on(PageViewed, timeout=timedelta(milliseconds=150), retry=ONCE, middleware=[limit])
    async def call(view: PageViewed, context: Context) -> None:
        attempts.append(context.attempt)
        await gauge.stay("all", seconds=0.05)

    async def scenario(world: World) -> None:
        async with world.running(service) as app:
            await app.publisher.publish_all([PageViewed(number) for number in range(10)])
            await world.until(lambda: world.settled("shop.page", "billing"))
            assert [] == await world.dead("shop.page", "billing")

    in_virtual_time(scenario)
    assert [1] * 10 == attempts


def test_a_handler_that_fails_or_hangs_gives_its_place_back(opened: Opened) -> None:
    """Errors, retries and timeouts leave nothing behind."""
    limit, gauge, service = concurrency_limit(1), Gauge(), Service("billing")

    @service.on(PageViewed, timeout=timedelta(milliseconds=40), retry=QUICK, middleware=[limit])
    async def call(view: PageViewed, context: Context) -> None:
        if context.attempt == 1 and view.number % 3 == 0:
            raise ValueError
        await gauge.stay("all", seconds=30 if context.attempt == 1 and view.number % 3 == 1 else 0)

    async def scenario() -> None:
        async with opened() as world, world.running(service) as app:
            await app.publisher.publish_all([PageViewed(number) for number in range(15)])
            await world.until(lambda: gauge.handled == 15)
            await world.until(lambda: unused(limit))

    asyncio.run(scenario())
    assert {"all": 1} == gauge.most


def test_a_domain_event_does_not_wait_for_the_place_of_its_own_cause(opened: Opened) -> None:
    """What runs inside a call has that call's place: with one place and two handlers nothing waits for ever."""
    limit, done = concurrency_limit(1, key=lambda event: event.number), list[str]()
    service = Service("billing", middleware=[limit])

    @service.on(PageViewed, timeout=timedelta(seconds=2), retry=ONCE)
    async def outer(view: PageViewed, context: Context) -> None:
        await context.publish(Noticed(view.number))
        await context.publish(Noticed(view.number + 1))
        done.append("outer")

    @service.on(PageViewed, name="blocking", retry=ONCE)
    def blocking(view: PageViewed, context: SyncContext) -> None:
        context.publish(Noticed(view.number))
        done.append("blocking")

    @service.on(Noticed)
    async def inner(noticed: Noticed) -> None:
        done.append("inner")

    async def scenario() -> None:
        async with opened() as world, world.running(service) as app:
            await app.publisher.publish_all([PageViewed(1), PageViewed(2)])
            await world.until(lambda: world.settled("shop.page", "billing"))
            assert [] == await world.dead("shop.page", "billing")
            assert unused(limit)

    asyncio.run(scenario())
    assert Counter({"outer": 2, "blocking": 2, "inner": 6}) == Counter(done)


def test_a_stop_while_waiting_costs_no_attempt_and_leaks_no_place(opened: Opened) -> None:
    """Who runs and who waits is cut off without a failure; the next service finds every place free."""
    limit, attempts = concurrency_limit(2), Counter[int]()
    first, second = Service("billing", middleware=[limit]), Service("billing", middleware=[limit])

    @first.on(PageViewed, name="call", retry=ONCE)
    async def hang(view: PageViewed) -> None:
        await asyncio.sleep(60)

    @second.on(PageViewed, name="call", retry=ONCE)
    async def call(view: PageViewed, context: Context) -> None:
        attempts[context.attempt] += 1

    async def scenario() -> None:
        async with opened() as world:
            world.options = Options(lease=timedelta(seconds=5), grace=timedelta(milliseconds=30), lanes=4)
            async with world.running(first) as app:
                await app.publisher.publish_all([PageViewed(number) for number in range(20)])
                await world.until(lambda: limit.running == 2 and limit.waiting >= 10)
            assert unused(limit)
            async with world.running(second):
                await world.until(lambda: world.settled("shop.page", "billing"))
            assert [] == await world.dead("shop.page", "billing")
            assert (0, True) == (world.observer.count("retried"), unused(limit))

    asyncio.run(scenario())
    assert {1: 20} == attempts


def test_a_key_that_cannot_be_told_is_the_events_failure(opened: Opened) -> None:
    """What the key function raises is counted like an error of the handler."""
    limit, service = concurrency_limit(1, key=lambda order: 1 // order.number), Service("billing")

    @service.on(OrderPlaced, retry=ONCE, on_dead_letter="continue", middleware=[limit])
    async def call(order: OrderPlaced) -> None:
        await asyncio.sleep(0)

    async def scenario() -> None:
        async with opened() as world, world.running(service) as app:
            await app.publisher.publish_all([OrderPlaced("a", number=0), OrderPlaced("b", number=1)])
            await world.until(lambda: world.settled("shop.order", "billing"))
            (letter,) = await world.dead("shop.order", "billing")
            assert ("a", True) == (letter.message.key, unused(limit))

    asyncio.run(scenario())


def test_less_than_one_is_refused() -> None:
    """A limit of nothing would stop the service."""
    with pytest.raises(ConfigurationError, match="at least 1"):
        concurrency_limit(0)
    assert "concurrency_limit(4)" == repr(concurrency_limit(4))
