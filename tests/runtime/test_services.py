"""Services as users write them: shapes of handlers, timeouts, middleware, lifespans, domain events, start-up errors."""

from __future__ import annotations

import asyncio
import contextlib
import contextvars
import threading
import traceback
from collections.abc import AsyncIterator
from datetime import timedelta
from typing import Any

import pytest
from runtime_world import Opened, OrderPlaced, PageViewed, PaymentTaken

from tidewire import (
    ConfigurationError,
    Context,
    Options,
    Retry,
    RetryAfter,
    Service,
    SyncContext,
    domain_event,
    running,
)
from tidewire.errors import StoreError, StoreRefused, StoreUnavailable
from tidewire.model import GroupSpec, TopicSpec
from tidewire.transports.memory import open_memory_transport

QUICK = Retry(attempts=3, first_delay=timedelta(milliseconds=5), factor=1.0)


@domain_event
class StockRanLow:
    """Something that stays inside its service."""

    sku: str


def test_every_shape_of_handler_is_called(opened: Opened) -> None:
    """(event), (event, context), async def and def: four shapes, one event, each once."""
    service, called = Service("billing"), list[str]()

    @service.on(OrderPlaced)
    async def only_event(order: OrderPlaced) -> None:
        called.append("only_event")

    @service.on(OrderPlaced)
    async def with_context(order: OrderPlaced, context: Context) -> None:
        called.append(f"with_context {context.envelope.type}")

    @service.on(OrderPlaced)
    def in_a_thread(order: OrderPlaced) -> None:
        assert threading.current_thread() is not threading.main_thread()
        called.append("in_a_thread")

    @service.on(OrderPlaced)
    def in_a_thread_with_context(order: OrderPlaced, context: SyncContext) -> PaymentTaken:
        called.append(f"in_a_thread_with_context {context.attempt}")
        return PaymentTaken(order.order_id)

    async def scenario() -> None:
        async with opened() as world, world.running(service) as app:
            await app.publisher.publish(OrderPlaced("1"))
            await world.until(lambda: world.settled("shop.order", "billing"))
            await world.until(lambda: world.observer.count("published") == 2)

    asyncio.run(scenario())
    expected = ["in_a_thread", "in_a_thread_with_context 1", "only_event", "with_context shop.order.placed"]
    assert expected == sorted(called)


def test_three_frames_lie_between_the_receive_loop_and_the_handler(opened: Opened) -> None:
    """The trip of a message stays readable in a traceback: worker, isolation, pipeline, handler."""
    service, stacks = Service("billing"), list[list[str]]()

    @service.on(OrderPlaced)
    async def look(order: OrderPlaced) -> None:
        stacks.append([frame.name for frame in traceback.extract_stack()])

    async def scenario() -> None:
        async with opened() as world, world.running(service) as app:
            await app.publisher.publish(OrderPlaced("1"))
            await world.until(lambda: stacks)

    asyncio.run(scenario())
    assert ["_work", "isolated", "process", "look"] == stacks[0][stacks[0].index("_work") :]


def test_a_handler_that_runs_too_long_has_failed(opened: Opened) -> None:
    """The timeout cancels it, counts as a failure, and the next attempt may succeed."""
    service, attempts = Service("billing"), list[int]()

    @service.on(OrderPlaced, timeout=timedelta(milliseconds=50), retry=QUICK)
    async def slow(order: OrderPlaced, context: Context) -> None:
        attempts.append(context.attempt)
        if context.attempt == 1:
            await asyncio.sleep(30)

    async def scenario() -> None:
        async with opened() as world, world.running(service) as app:
            await app.publisher.publish(OrderPlaced("1"))
            await world.until(lambda: world.settled("shop.order", "billing"))
            assert [1, 2] == attempts
            assert ["TimeoutError"] == [fact.detail for fact in world.observer.facts if fact.kind == "retried"]

    asyncio.run(scenario())


def test_a_handlers_own_cancellation_is_its_failure(opened: Opened) -> None:
    """`CancelledError` with nobody cancelling is an error like any other (hazard R2)."""
    service, attempts = Service("billing"), list[int]()

    @service.on(OrderPlaced, retry=QUICK)
    async def confused(order: OrderPlaced, context: Context) -> None:
        attempts.append(context.attempt)
        if context.attempt < 2:
            raise asyncio.CancelledError

    async def scenario() -> None:
        async with opened() as world, world.running(service) as app:
            await app.publisher.publish(OrderPlaced("1"))
            await world.until(lambda: world.settled("shop.order", "billing"))
            assert [1, 2] == attempts

    asyncio.run(scenario())


@pytest.mark.parametrize("error", [SystemExit, RecursionError, MemoryError, BaseExceptionGroup("x", [ValueError()])])
def test_no_error_of_a_handler_stops_the_service(opened: Opened, error: Any) -> None:
    """AS6: whatever a handler raises, the next event is handled."""
    service, seen = Service("billing"), list[str]()

    @service.on(OrderPlaced, retry=Retry(attempts=1), on_dead_letter="continue")
    async def wild(order: OrderPlaced) -> None:
        if order.order_id == "wild":
            raise error
        seen.append(order.order_id)

    async def scenario() -> None:
        async with opened() as world, world.running(service) as app:
            await app.publisher.publish_all([OrderPlaced("wild"), OrderPlaced("tame")])
            await world.until(lambda: world.settled("shop.order", "billing"))
            assert ["tame"] == seen
            assert 1 == len(await world.dead("shop.order", "billing"))

    asyncio.run(scenario())


def test_context_variables_do_not_leak_into_the_next_message(opened: Opened) -> None:
    """AS9: a tenant set by one event's handler is unknown to the next."""
    tenant = contextvars.ContextVar("tenant", default="nobody")
    service, seen = Service("billing", concurrency=1), list[str]()

    @service.on(PageViewed)
    async def view(page: PageViewed) -> None:
        seen.append(tenant.get())
        tenant.set(f"tenant {page.number}")
        await asyncio.sleep(0)
        assert tenant.get() == f"tenant {page.number}"

    async def scenario() -> None:
        async with opened() as world, world.running(service) as app:
            await app.publisher.publish_all([PageViewed(number) for number in range(5)])
            await world.until(lambda: len(seen) == 5)

    asyncio.run(scenario())
    assert ["nobody"] * 5 == seen


def test_asyncio_timeout_inside_a_handler_works(opened: Opened) -> None:
    """There is a task around each handler, so that time-outs and cancel scopes find it."""
    service, seen = Service("billing"), list[str]()

    @service.on(PageViewed)
    async def view(page: PageViewed) -> None:
        try:
            async with asyncio.timeout(0.01):
                await asyncio.sleep(10)
        except TimeoutError:
            seen.append("timed out")

    async def scenario() -> None:
        async with opened() as world, world.running(service) as app:
            await app.publisher.publish_all([PageViewed(1), PageViewed(2)])
            await world.until(lambda: len(seen) == 2)
            await world.until(lambda: world.settled("shop.page", "billing"))

    asyncio.run(scenario())


def test_middleware_wraps_handlers_outermost_first(opened: Opened) -> None:
    """Service-wide around handler-wide; each is one function."""
    heard: list[str] = []

    def named(name: str) -> Any:
        def wrap(call: Any) -> Any:
            async def around(event: Any, context: Context) -> Any:
                heard.append(f"{name} in")
                result = await call(event, context)
                heard.append(f"{name} out")
                return result

            return around

        return wrap

    service = Service("billing", middleware=[named("outer")])

    @service.on(OrderPlaced, middleware=[named("inner")])
    async def handle(order: OrderPlaced) -> None:
        heard.append("handler")

    async def scenario() -> None:
        async with opened() as world, world.running(service) as app:
            await app.publisher.publish(OrderPlaced("1"))
            await world.until(lambda: "outer out" in heard)

    asyncio.run(scenario())
    assert ["outer in", "inner in", "handler", "inner out", "outer out"] == heard


def test_a_lifespan_opens_before_the_first_event_and_closes_after_the_drain(opened: Opened) -> None:
    """S-03: what handlers use is closed when no handler can need it any more."""
    service, story = Service("billing"), list[str]()

    @service.lifespan
    async def pool(service: Service) -> AsyncIterator[dict[str, Any]]:
        story.append("open")
        yield {"pool": story}
        story.append("close")

    @service.on(OrderPlaced)
    async def handle(order: OrderPlaced, context: Context) -> None:
        context.resources["pool"].append("begin")
        await asyncio.sleep(0.1)
        context.resources["pool"].append("end")

    async def scenario() -> None:
        async with opened() as world, world.running(service) as app:
            await app.publisher.publish(OrderPlaced("1"))
            await world.until(lambda: "begin" in story)

    asyncio.run(scenario())
    assert ["open", "begin", "end", "close"] == story


def test_a_domain_event_runs_its_handlers_at_once_and_goes_nowhere_else(opened: Opened) -> None:
    """In the same call, in the same unit; a failing domain handler fails the event that caused it."""
    service, story = Service("stock"), list[str]()

    @service.on(OrderPlaced, retry=QUICK)
    async def take(order: OrderPlaced, context: Context) -> None:
        await context.publish(StockRanLow("sku-1"))
        story.append("after")

    @service.on(StockRanLow)
    async def reorder(low: StockRanLow, context: Context) -> PaymentTaken | None:
        story.append(f"reorder {low.sku} {context.attempt}")
        if context.attempt == 1:
            raise RuntimeError("not yet")
        return PaymentTaken("p")

    async def scenario() -> None:
        async with opened() as world, world.running(service) as app:
            await app.publisher.publish(OrderPlaced("1"))
            await world.until(lambda: world.settled("shop.order", "stock"))
            await world.until(lambda: world.observer.count("published") == 2)

    asyncio.run(scenario())
    assert ["reorder sku-1 1", "reorder sku-1 2", "after"] == story


def test_retry_after_waits_as_told(opened: Opened) -> None:
    """A handler that knows when to come back says so."""
    service, times = Service("billing"), list[float]()

    @service.on(OrderPlaced)
    async def handle(order: OrderPlaced) -> None:
        times.append(asyncio.get_running_loop().time())
        if len(times) == 1:
            raise RetryAfter(timedelta(milliseconds=120))

    async def scenario() -> None:
        async with opened() as world, world.running(service) as app:
            await app.publisher.publish(OrderPlaced("1"))
            await world.until(lambda: len(times) == 2)

    asyncio.run(scenario())
    assert times[1] - times[0] >= 0.119


def test_an_event_nobody_asked_for_is_skipped_and_counted(opened: Opened) -> None:
    """A type of the topic without a handler is no error."""
    service = Service("billing")

    @service.on(OrderPlaced)
    async def handle(order: OrderPlaced) -> None:
        return None

    async def scenario() -> None:
        async with opened() as world, world.running(service) as app:
            message = app.publisher.message(OrderPlaced("1"))
            headers = {**message.headers, "ce-type": "shop.order.cancelled"}
            import msgspec

            await world.transport.publish([msgspec.structs.replace(message, headers=headers)])
            await world.until(lambda: world.settled("shop.order", "billing"))
            assert 1 == world.observer.count("skipped")
            assert [] == await world.dead("shop.order", "billing")

    asyncio.run(scenario())


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda s: s.on(int), "event"),
        (lambda s: s.on(OrderPlaced)(lambda: None), "takes"),
        (lambda s: s.on(OrderPlaced)(lambda a, b, c: None), "takes"),
        (lambda s: s.on(PageViewed, ordering="key"), "declares no key"),
        (lambda s: s.on(OrderPlaced, timeout=timedelta(0)), "timeout"),
        (lambda s: Service("Not A Name"), "Not A Name"),
        (lambda s: Service("x", prefetch=0), "at least 1"),
    ],
)
def test_a_mistake_is_named_when_it_is_written(make: Any, message: str) -> None:
    """At import time, with the place and the fix."""

    def mistake() -> None:
        made = make(Service("billing"))
        if callable(made):
            made(_handler)

    async def _handler(event: Any) -> None:
        return None

    with pytest.raises(ConfigurationError, match=message):
        mistake()


def test_what_needs_a_store_is_refused_without_one() -> None:
    """Every problem of a service at once, each with its handler and its fix."""
    service = Service("billing")

    @service.on(OrderPlaced)
    async def first(order: OrderPlaced) -> None:
        return None

    @service.on(OrderPlaced, on_dead_letter="hold_key")
    async def second(order: OrderPlaced) -> None:
        return None

    async def scenario() -> None:
        from tidewire.runtime.serve import running

        async with open_memory_transport() as transport, running(service, transport=transport):
            pass

    with pytest.raises(ConfigurationError) as refused:
        asyncio.run(scenario())
    text = str(refused.value)
    for part in ("billing.first: ordered and without a store", "billing.second: on_dead_letter", "repeatable=True"):
        assert part in text


def test_how_long_a_topic_is_kept_is_its_own_affair() -> None:
    """A topic that was made with another retention or a size cap serves like any other; lanes have to agree."""
    service = Service("billing")

    @service.on(OrderPlaced, on_dead_letter="continue")
    async def handle(order: OrderPlaced) -> None:
        return None

    async def scenario(lanes: int) -> None:
        async with open_memory_transport() as transport:
            made = TopicSpec("shop.order", lanes=4, retention=timedelta(days=30), size_bytes_max=1 << 20)
            await transport.provision([made], [GroupSpec("billing", ["shop.order"])])
            async with running(service, transport=transport, options=Options(provision=False, lanes=lanes)):
                pass

    asyncio.run(scenario(4))
    with pytest.raises(ConfigurationError, match="lanes is 4, not 8"):
        asyncio.run(scenario(8))


def test_a_topic_that_must_exist_is_verified(opened: Opened) -> None:
    """Without provisioning a missing topic stops the start, and names itself."""
    service = Service("billing")

    @service.on(OrderPlaced)
    async def handle(order: OrderPlaced) -> None:
        return None

    async def scenario() -> None:
        async with opened() as world:
            world.options = Options(provision=False)
            with pytest.raises(ConfigurationError, match=r"shop\.order.* does not exist"):
                async with world.running(service):
                    pass

    asyncio.run(scenario())


@pytest.mark.parametrize("down", [StoreUnavailable, StoreRefused])
def test_a_store_that_fails_in_a_handler_is_nobodys_failure(opened: Opened, down: type[StoreError]) -> None:
    """Unavailable: wait and run it again. Refused: the service ends with the error. Neither makes a dead letter."""
    service, calls = Service("billing"), list[int]()

    @service.on(OrderPlaced, retry=Retry(attempts=1))
    async def take(order: OrderPlaced) -> None:
        calls.append(1)
        if len(calls) == 1:
            raise down("the file is damaged")

    async def scenario() -> None:
        async with opened() as world:
            with pytest.raises(StoreRefused) if down is StoreRefused else contextlib.nullcontext():
                async with world.running(service) as running:
                    await running.publisher.publish(OrderPlaced("1"))
                    await world.until(lambda: len(calls) == 2)
            assert [] == await world.dead("shop.order", "billing")
            if down is StoreRefused:
                assert 1 == len(calls)
                async with world.running(service):
                    await world.until(lambda: len(calls) == 2)

    asyncio.run(scenario())
