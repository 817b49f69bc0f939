"""The rate limit: its shape, what waiting costs (nothing), and what a stop leaves behind (nothing)."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from datetime import timedelta

import pytest
from runtime_world import Opened, OrderPlaced, PageViewed, World
from virtual_world import in_virtual_time

from tidewire import ConfigurationError, Context, Middleware, Options, Retry, Service
from tidewire.middleware import RateLimit, rate_limit

ONCE = Retry(attempts=1)
EXACT = 1e-9


def now() -> float:
    return asyncio.get_running_loop().time()


def too_close(starts: Sequence[float], *, burst: int, interval: float) -> list[float]:
    """Return the spans in which more calls began than *burst* and one per *interval* allow."""
    return [
        later - earlier for earlier, later in zip(starts, starts[burst:], strict=False) if later - earlier < interval
    ]


@pytest.mark.parametrize("burst", [1, 5])
def test_calls_begin_at_once_up_to_the_burst_and_then_evenly(burst: int) -> None:
    """In no span of time do more begin than the burst and what the rate gives; and no less in the whole."""
    service, starts = Service("billing"), list[float]()

    @service.on(PageViewed, middleware=[rate_limit(50, burst=burst)])
    async def call(view: PageViewed) -> None:
        starts.append(now())

    async def scenario(world: World) -> None:
        async with world.running(service) as app:
            await app.publisher.publish_all([PageViewed(number) for number in range(25)])
            await world.until(lambda: len(starts) == 25)

    in_virtual_time(scenario)
    assert [] == too_close(starts, burst=burst, interval=0.02 - EXACT)
    assert starts[burst - 1] == starts[0]
    assert pytest.approx(0.02 * (25 - burst)) == starts[-1] - starts[0]


def test_a_quiet_time_is_no_credit_beyond_the_burst() -> None:
    """After a pause the burst is there again, and not one call more."""
    service, starts = Service("billing"), list[float]()

    @service.on(PageViewed, middleware=[rate_limit(20, burst=2)])
    async def call(view: PageViewed) -> None:
        starts.append(now())

    async def scenario(world: World) -> None:
        async with world.running(service) as app:
            await app.publisher.publish_all([PageViewed(1), PageViewed(2)])
            await world.until(lambda: len(starts) == 2)
            await asyncio.sleep(0.4)
            await app.publisher.publish_all([PageViewed(number) for number in range(6)])
            await world.until(lambda: len(starts) == 8)

    in_virtual_time(scenario)
    assert [] == too_close(starts, burst=2, interval=0.05 - EXACT)


def test_waiting_is_not_the_handlers_time() -> None:
    """Events that wait far longer than the handler's timeout are handled at their first attempt."""
    service, attempts = Service("billing"), list[int]()

    @service.on(PageViewed, timeout=timedelta(milliseconds=60), retry=ONCE, middleware=[rate_limit(25)])
    async def call(view: PageViewed, context: Context) -> None:
        attempts.append(context.attempt)

    async def scenario(world: World) -> None:
        async with world.running(service) as app:
            await app.publisher.publish_all([PageViewed(number) for number in range(12)])
            await world.until(lambda: world.settled("shop.page", "billing"))
            assert [] == await world.dead("shop.page", "billing")

    in_virtual_time(scenario)
    assert [1] * 12 == attempts


def test_after_the_wait_the_timeout_holds_as_ever() -> None:
    """The clock stands still while an event waits, and goes on when its handler begins."""
    service, ran = Service("billing"), list[float]()

    @service.on(PageViewed, timeout=timedelta(milliseconds=80), retry=ONCE, middleware=[rate_limit(4)])
    async def hang(view: PageViewed) -> None:
        started = now()
        try:
            await asyncio.sleep(30)
        finally:
            ran.append(now() - started)

    async def scenario(world: World) -> None:
        async with world.running(service) as app:
            await app.publisher.publish_all([PageViewed(number) for number in range(3)])
            await world.until(lambda: world.settled("shop.page", "billing"))
            assert 3 == len(await world.dead("shop.page", "billing"))

    in_virtual_time(scenario)
    assert [pytest.approx(0.08)] * 3 == ran


def test_waiting_keeps_the_order_of_keys(opened: Opened) -> None:
    """An event that waits holds its key, and who waits longest goes first."""
    service, seen = Service("billing"), list[tuple[str, int]]()

    @service.on(OrderPlaced, middleware=[rate_limit(200)])
    async def call(order: OrderPlaced) -> None:
        seen.append((order.order_id, order.number))

    async def scenario() -> None:
        async with opened() as world, world.running(service) as app:
            await app.publisher.publish_all([OrderPlaced(key, number=n) for n in range(5) for key in "abcd"])
            await world.until(lambda: len(seen) == 20)

    asyncio.run(scenario())
    assert [list(range(5))] * 4 == [[number for name, number in seen if name == key] for key in "abcd"]


def test_services_that_share_it_stay_under_it_together() -> None:
    """One object is one limit."""
    limit, starts = rate_limit(50), list[float]()
    billing, audit = Service("billing", middleware=[limit]), Service("audit", middleware=[limit])

    @billing.on(PageViewed)
    async def bill(view: PageViewed) -> None:
        starts.append(now())

    @audit.on(PageViewed)
    async def note(view: PageViewed) -> None:
        starts.append(now())

    async def scenario(world: World) -> None:
        async with world.running(billing, store=False) as app, world.running(audit, store=False):
            await app.publisher.publish_all([PageViewed(number) for number in range(10)])
            await world.until(lambda: len(starts) == 20)

    in_virtual_time(scenario)
    assert [] == too_close(starts, burst=1, interval=0.02 - EXACT)


def test_a_stop_while_waiting_costs_no_attempt_and_leaves_no_debt() -> None:
    """What waits is cut off without a failure, and its tokens are there for who comes next."""
    limit = rate_limit(1, per=timedelta(milliseconds=700))
    first, second = Service("billing", middleware=[limit]), Service("billing", middleware=[limit])
    attempts, waits = list[int](), list[float]()

    @first.on(PageViewed, name="call", retry=ONCE)
    async def call(view: PageViewed, context: Context) -> None:
        attempts.append(context.attempt)

    @second.on(PageViewed, name="call", retry=ONCE)
    async def call_again(view: PageViewed, context: Context) -> None:
        attempts.append(context.attempt)

    async def scenario(world: World) -> None:
        world.options = Options(lease=timedelta(seconds=5), grace=timedelta(milliseconds=20), lanes=4)
        async with world.running(first) as app:
            await app.publisher.publish_all([PageViewed(number) for number in range(10)])
            await world.until(lambda: limit.waiting >= 5 and len(attempts) == 1)
        assert 0 == limit.waiting
        stopped = now()
        async with world.running(second):
            await world.until(lambda: len(attempts) == 3)
            waits.append(now() - stopped)
        assert [] == await world.dead("shop.page", "billing")
        assert 0 == world.observer.count("retried")

    in_virtual_time(scenario)
    assert [1] * 3 == attempts
    assert waits[0] < 1.5  # 9 waiters that kept theirs would have made it 6.3 s


def test_it_serves_one_event_loop_after_another(opened: Opened) -> None:
    """A service that is run again in a process, as tests do, begins with a full bucket."""
    service, seen = Service("billing", middleware=[rate_limit(1, per=timedelta(minutes=10))]), list[int]()
    assert isinstance(service.middleware[0], RateLimit)
    middleware: Middleware = service.middleware[0]

    @service.on(PageViewed)
    async def call(view: PageViewed) -> None:
        seen.append(view.number)

    async def scenario(number: int) -> None:
        async with opened() as world, world.running(service) as app:
            await app.publisher.publish(PageViewed(number))
            await world.until(lambda: number in seen)

    asyncio.run(scenario(1))
    asyncio.run(scenario(2))
    assert "rate_limit(one in 600 s, burst=1)" == repr(middleware)


@pytest.mark.parametrize(
    "make",
    [
        lambda: rate_limit(0),
        lambda: rate_limit(float("nan")),
        lambda: rate_limit(float("inf")),
        lambda: rate_limit(1, per=timedelta(0)),
        lambda: rate_limit(1, burst=0),
    ],
)
def test_settings_that_cannot_be_are_refused(make: Callable[[], RateLimit]) -> None:
    """At registration."""
    with pytest.raises(ConfigurationError, match="rate_limit"):
        make()
