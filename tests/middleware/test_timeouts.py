"""The narrower time limit: a failure of the handler, and nothing of its cancellation is left behind."""

from __future__ import annotations

import asyncio
import threading
from datetime import timedelta
from typing import Any

import pytest
from runtime_world import Opened, OrderPlaced, PageViewed

from tidewire import ConfigurationError, Context, Middleware, Options, Retry, Service
from tidewire.middleware import timeout

QUICK = Retry(attempts=3, first_delay=timedelta(milliseconds=5), factor=1.0)
ONCE = Retry(attempts=1)
SHORT = timeout(timedelta(milliseconds=40))
ROOMY = timeout(timedelta(milliseconds=600))  # what ends well must do so on a busy machine too


def test_a_longer_run_is_a_failure_that_says_so(opened: Opened) -> None:
    """It is cut off before the handler's own timeout, counted, tried again, and its dead letter names the limit."""
    service, attempts = Service("billing"), list[int]()

    @service.on(PageViewed, retry=QUICK, middleware=[SHORT])
    async def slow(view: PageViewed, context: Context) -> None:
        attempts.append(context.attempt)
        await asyncio.sleep(30)

    async def scenario() -> None:
        async with opened() as world, world.running(service) as app:
            await app.publisher.publish(PageViewed(1))
            await world.until(lambda: world.settled("shop.page", "billing"))
            (letter,) = await world.dead("shop.page", "billing")
            assert (
                "TimeoutError: the handler ran longer than the 0:00:00.040000"
                in letter.message.headers["dl-last-error"]
            )

    asyncio.run(scenario())
    assert [1, 2, 3] == attempts


def test_nothing_of_the_cancellation_reaches_the_next_event(opened: Opened) -> None:
    """The worker that was interrupted has no cancellation pending, and its next events wait undisturbed."""
    service, after = Service("billing", concurrency=1), list[tuple[int, int]]()

    @service.on(PageViewed, retry=ONCE, middleware=[ROOMY])
    async def handle(view: PageViewed) -> None:
        task = asyncio.current_task()
        assert task is not None
        if view.number % 2 == 0:
            await asyncio.sleep(30)
        await asyncio.sleep(0.001)
        after.append((view.number, task.cancelling()))

    async def scenario() -> None:
        async with opened() as world, world.running(service) as app:
            await app.publisher.publish_all([PageViewed(number) for number in range(12)])
            await world.until(lambda: world.settled("shop.page", "billing"))
            assert 6 == len(await world.dead("shop.page", "billing"))

    asyncio.run(scenario())
    assert [(number, 0) for number in (1, 3, 5, 7, 9, 11)] == sorted(after)


def test_who_ends_well_in_spite_of_it_has_ended_well(opened: Opened) -> None:
    """A handler that catches the cancellation and finishes is handled, once."""
    service, done = Service("billing"), list[int]()

    @service.on(PageViewed, retry=QUICK, middleware=[SHORT])
    async def stubborn(view: PageViewed) -> None:
        try:
            await asyncio.sleep(30)
        except asyncio.CancelledError:
            done.append(view.number)

    async def scenario() -> None:
        async with opened() as world, world.running(service) as app:
            await app.publisher.publish(PageViewed(1))
            await world.until(lambda: world.settled("shop.page", "billing"))
            assert [] == await world.dead("shop.page", "billing")
        assert 0 == world.observer.count("retried")

    asyncio.run(scenario())
    assert [1] == done


def test_a_timeout_error_of_the_handler_stays_its_own(opened: Opened) -> None:
    """What the handler raises by itself is passed on with its own words."""
    service = Service("billing")

    @service.on(PageViewed, retry=ONCE, middleware=[SHORT])
    async def asks(view: PageViewed) -> None:
        raise TimeoutError("the bank did not answer")

    async def scenario() -> None:
        async with opened() as world, world.running(service) as app:
            await app.publisher.publish(PageViewed(1))
            await world.until(lambda: world.settled("shop.page", "billing"))
            (letter,) = await world.dead("shop.page", "billing")
            assert "TimeoutError: the bank did not answer" == letter.message.headers["dl-last-error"]

    asyncio.run(scenario())


def test_a_stop_while_it_ticks_is_no_failure(opened: Opened) -> None:
    """S-02: a service that is stopped inside the limit spends no attempt; the event comes back as it was."""
    first, second, attempts, started = Service("billing"), Service("billing"), list[int](), asyncio.Event()

    @first.on(OrderPlaced, name="take", retry=ONCE, middleware=[timeout(timedelta(seconds=30))])
    async def hang(order: OrderPlaced) -> None:
        started.set()
        await asyncio.sleep(60)

    @second.on(OrderPlaced, name="take")
    async def take(order: OrderPlaced, context: Context) -> None:
        attempts.append(context.attempt)

    async def scenario() -> None:
        async with opened() as world:
            world.options = Options(lease=timedelta(seconds=1), grace=timedelta(milliseconds=50), lanes=4)
            async with world.running(first) as app:
                await app.publisher.publish(OrderPlaced("1"))
                await started.wait()
            async with world.running(second):
                await world.until(lambda: attempts)
            assert [] == await world.dead("shop.order", "billing")
            assert 0 == world.observer.count("retried")

    asyncio.run(scenario())
    assert [1] == attempts


def test_a_def_handler_is_given_up_and_cannot_write_any_more(opened: Opened) -> None:
    """Its thread runs on, but its transaction is over: the attempt has failed and the next one may succeed."""
    service, refused, go_on = Service("billing"), list[str](), threading.Event()

    @service.on(PageViewed, retry=QUICK, middleware=[ROOMY])
    def blocking(view: PageViewed, context: Any) -> None:
        if context.attempt > 1:
            return
        go_on.wait(10)
        try:
            context.publish(OrderPlaced("late"))
        except Exception as error:
            refused.append(type(error).__name__)

    async def scenario() -> None:
        async with opened() as world, world.running(service) as app:
            await app.publisher.publish(PageViewed(1))
            await world.until(lambda: world.settled("shop.page", "billing"))
            go_on.set()
            await world.until(lambda: refused)
            assert [] == await world.dead("shop.page", "billing")

    asyncio.run(scenario())
    assert ["TransactionClosed"] == refused


@pytest.mark.parametrize("limit", [timedelta(0), timedelta(seconds=-1)])
def test_a_limit_that_cannot_be_is_refused(limit: timedelta) -> None:
    """A timeout of nothing would fail every event."""
    with pytest.raises(ConfigurationError, match="above zero"):
        timeout(limit)


def test_it_fits_where_a_middleware_is_asked_for() -> None:
    """The registration takes it as it is."""
    middleware: Middleware = SHORT
    assert "timeout(0:00:00.040000)" == repr(middleware)
