"""The harness for users' tests: the real runtime on a clock that jumps."""

from __future__ import annotations

import asyncio
import itertools
import time
from collections.abc import Coroutine
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from tidewire import ConfigurationError, Context, Every, Reject, Retry, Service, event
from tidewire.errors import DecodeError
from tidewire.testing import VirtualTimeLoop, run, tidewire_world


@event("shop.order.placed", key="order_id")
class OrderPlaced:
    """An order."""

    order_id: str
    number: int = 0


@event("shop.payment.taken", key="order_id")
class PaymentTaken:
    """What follows."""

    order_id: str
    number: int = 0


def soon(main: Coroutine[Any, Any, None], *, seconds: float = 20.0) -> None:
    """Run *main* on virtual time and demand that it took no longer than *seconds* of real time."""
    started = time.perf_counter()
    run(main)
    assert time.perf_counter() - started < seconds


def paying(**options: Any) -> Service:
    """Return a service that answers each order with a payment."""
    billing = Service("billing")

    @billing.on(OrderPlaced, **options)
    async def charge(order: OrderPlaced) -> PaymentTaken:
        return PaymentTaken(order.order_id, order.number)

    return billing


def test_what_follows_an_event_is_there_when_publish_returns() -> None:
    """Publish settles: the handler has run and what it returned is on the broker, through every service."""
    billing, mail, sent = paying(), Service("mail"), list[str]()

    @mail.on(PaymentTaken)
    async def thank(payment: PaymentTaken) -> None:
        sent.append(payment.order_id)

    async def main() -> None:
        async with tidewire_world(billing, mail) as world:
            await world.publish(OrderPlaced("1"))
            assert "1" == world.published(PaymentTaken).one().order_id
            assert ["1"] == sent
            assert [] == world.dead_letters()

    soon(main())


@pytest.mark.parametrize("store", ["memory", "sqlite"])
def test_hours_of_retries_take_no_time(tmp_path: Path, store: str) -> None:
    """Every retry comes when its policy says, to the second; hours pass in well under one."""
    calls = list[float]()
    billing = Service("billing")

    @billing.on(
        OrderPlaced,
        retry=Retry(attempts=6, first_delay=timedelta(minutes=1), factor=10.0, max_delay=timedelta(hours=8)),
    )
    async def charge(order: OrderPlaced) -> None:
        calls.append(asyncio.get_running_loop().time())
        raise RuntimeError("the bank is closed")

    async def main() -> None:
        url: Any = True if store == "memory" else f"sqlite:///{tmp_path}/{{service}}.db"
        async with tidewire_world(billing, store=url) as world:
            await world.publish(OrderPlaced("1"))
            assert 1 == len(calls)
            await world.advance(timedelta(hours=30))
            (letter,) = world.dead_letters(billing)
            assert ("exhausted", 6, "1") == (letter.reason, letter.attempts, letter.event.order_id)
            assert "the bank is closed" in letter.error

    soon(main(), seconds=2.5)
    waits = [round(later - call) for call, later in itertools.pairwise(calls)]
    assert waits[:3] == [60, 600, 6_000]
    assert len(calls) == 6


def test_order_is_kept_while_a_key_is_held() -> None:
    """A failing event holds its key and no other; what waits behind it comes in order."""
    seen = list[tuple[str, int]]()
    billing = Service("billing")

    @billing.on(OrderPlaced)
    async def charge(order: OrderPlaced, context: Context) -> None:
        if order.order_id == "a" and order.number == 1 and context.attempt < 3:
            raise RuntimeError("not yet")
        seen.append((order.order_id, order.number))

    async def main() -> None:
        async with tidewire_world(billing) as world:
            for number in (1, 2, 3):
                await world.publish(OrderPlaced("a", number))
                await world.publish(OrderPlaced("b", number))
            assert [("b", 1), ("b", 2), ("b", 3)] == seen
            await world.advance(timedelta(minutes=1))
            assert [("a", 1), ("a", 2), ("a", 3)] == seen[3:]

    soon(main())


@pytest.mark.parametrize("store", ["memory", "sqlite"])
def test_a_crash_between_commit_and_ack_has_one_effect(tmp_path: Path, store: str) -> None:
    """The event comes again to the next life, is recognised, and is paid once."""
    calls = list[str]()
    billing = Service("billing")

    @billing.on(OrderPlaced)
    async def charge(order: OrderPlaced) -> PaymentTaken:
        calls.append(order.order_id)
        return PaymentTaken(order.order_id)

    async def main() -> None:
        url: Any = True if store == "memory" else f"sqlite:///{tmp_path}/{{service}}.db"
        async with tidewire_world(billing, store=url) as world:
            await world.crash_after_commit(billing)
            await world.publish(OrderPlaced("1"))
            await world.publish(OrderPlaced("2"))
            assert ["1"] == calls
            assert len(world.published(PaymentTaken)) <= 1  # the relay may have been quicker than the crash
            await world.restart(billing)
            assert ["1", "2"] == [payment.order_id for payment in world.published(PaymentTaken)]
            assert ["1", "2"] == calls
            assert 1 == sum(fact.kind == "known" for fact in world.facts())

    soon(main())


def test_a_crash_in_the_middle_of_a_handler_leaves_nothing() -> None:
    """What a dying handler wrote is rolled back, what it publishes afterwards reaches nobody, and it runs again."""
    gate, lives = asyncio.Event(), list[int]()
    billing = Service("billing")

    @billing.on(OrderPlaced)
    async def charge(order: OrderPlaced, context: Context) -> PaymentTaken:
        lives.append(len(lives))
        await context.tx.put("paid", await context.tx.get("paid", 0) + 1)
        if len(lives) == 1:
            try:
                await gate.wait()
            finally:
                gate.set()
        return PaymentTaken(order.order_id)

    async def main() -> None:
        async with tidewire_world(billing) as world:
            await world.publish(OrderPlaced("1"))
            await world.crash_and_restart(billing)
            assert [0, 1] == lives
            assert 1 == len(world.published(PaymentTaken))
            assert 1 == world.store(billing).rows["paid"]

    soon(main())


def test_delays_and_recurring_runs_keep_the_virtual_time() -> None:
    """Days pass when they are asked to, and not before."""
    billing, runs = paying(), list[datetime]()

    @billing.recur(Every(timedelta(days=1), start=datetime(2026, 1, 1, 6, tzinfo=UTC)))
    async def daily(due: datetime) -> None:
        runs.append(due)

    async def main() -> None:
        async with tidewire_world(billing) as world:
            await world.publish(OrderPlaced("later"), delay=timedelta(days=2))
            await world.advance(timedelta(days=1, hours=23))
            assert 0 == len(world.published(PaymentTaken))
            await world.advance(timedelta(hours=2))
            assert "later" == world.published(PaymentTaken).one().order_id
            assert [(1, 6), (2, 6)] == [(run.day, run.hour) for run in runs]
            assert world.now() > datetime(2026, 1, 3, tzinfo=UTC)

    soon(main())


def test_a_dead_letter_is_redriven() -> None:
    """Its group gets it again, alone, and it is a dead letter no more."""
    mended = list[bool]()
    billing = Service("billing")

    @billing.on(OrderPlaced)
    async def charge(order: OrderPlaced) -> PaymentTaken:
        if not mended:
            raise Reject("no such customer")
        return PaymentTaken(order.order_id)

    async def main() -> None:
        async with tidewire_world(billing) as world:
            await world.publish(OrderPlaced("1"))
            (letter,) = world.dead_letters(billing)
            assert ("permanent", "no such customer") == (letter.reason, letter.detail)
            mended.append(True)
            await world.redrive(letter)
            assert "1" == world.published(PaymentTaken).one().order_id
            assert [] == world.dead_letters()

    soon(main())


def test_a_failure_tells_the_story() -> None:
    """`one` on none or on two says what happened, event by event, in the order it happened."""
    billing = Service("billing")

    @billing.on(OrderPlaced, retry=Retry(attempts=2, first_delay=timedelta(seconds=3)))
    async def charge(order: OrderPlaced) -> None:
        raise RuntimeError("no")

    async def main() -> None:
        async with tidewire_world(billing) as world:
            event_id = await world.publish(OrderPlaced("1"))
            await world.advance(timedelta(seconds=10))
            with pytest.raises(AssertionError) as failure:
                world.published(PaymentTaken).one()
            story = str(failure.value)
            assert "published PaymentTaken: expected one, there are 0" in story
            places = [story.index(word) for word in ("published     shop.order.placed", "retried", "dead_lettered")]
            assert places == sorted(places)
            assert "+     3.000 s  dead_lettered" in story
            assert event_id in story
            assert world.story(event_id).count("\n") < world.story().count("\n") + 1

    soon(main())


def test_a_service_without_a_store_is_at_least_once() -> None:
    """The world may run without stores, as production may."""

    async def main() -> None:
        async with tidewire_world(paying(on_dead_letter="continue"), store=False) as world:
            await world.publish(OrderPlaced("1"))
            assert "1" == world.published(PaymentTaken).one().order_id
            with pytest.raises(KeyError, match="without a store"):
                world.store(paying())

    soon(main())


def test_a_service_that_cannot_run_is_named() -> None:
    """What keeps it from starting rises as it would in production."""

    async def main() -> None:
        with pytest.raises(ConfigurationError, match="on_dead_letter"):
            async with tidewire_world(paying(), store=False):
                pass
        with pytest.raises(ConfigurationError, match="two services"):
            async with tidewire_world(paying(), paying()):
                pass

    soon(main())


def test_where_makes_a_choice_and_messages_show_what_travelled() -> None:
    """Events are a sequence, may be narrowed down, and their messages are there."""

    async def main() -> None:
        async with tidewire_world(paying()) as world:
            for number in range(3):
                await world.publish(OrderPlaced(str(number), number))
            payments = world.published(PaymentTaken)
            assert 3 == len(payments)
            assert 1 == payments.where(lambda payment: payment.number == 1).one().number
            assert [0, 1] == [payment.number for payment in payments[:2]]
            assert "billing" == payments.messages[0].source

    soon(main())


def test_a_world_on_an_ordinary_loop_runs_in_real_time(tmp_path: Path) -> None:
    """With a broker's URL the same test runs against it, and waits for real."""

    async def main() -> None:
        broker, store = f"sqlite:///{tmp_path}/broker.db", f"sqlite:///{tmp_path}/{{service}}.db"
        async with tidewire_world(paying(), broker=broker, store=store) as world:
            await world.publish(OrderPlaced("1"))
            assert "1" == world.published(PaymentTaken).one().order_id
            with pytest.raises(ConfigurationError, match="memory broker"):
                await world.crash(paying())

    asyncio.run(main())

    async def virtual() -> None:
        with pytest.raises(ConfigurationError, match="not on virtual time"):
            async with tidewire_world(paying(), broker=f"sqlite:///{tmp_path}/broker.db"):
                pass

    run(virtual())


def test_time_stands_still_while_a_thread_works() -> None:
    """A ``def`` handler takes no virtual time, whatever it takes of ours."""
    billing = Service("billing")

    @billing.on(OrderPlaced, timeout=timedelta(seconds=1))
    def charge(order: OrderPlaced) -> PaymentTaken:
        time.sleep(0.2)
        return PaymentTaken(order.order_id)

    async def main() -> None:
        loop = asyncio.get_running_loop()
        async with tidewire_world(billing) as world:
            before = loop.time()
            await world.publish(OrderPlaced("1"))
            assert "1" == world.published(PaymentTaken).one().order_id
            assert loop.time() - before < 1

    soon(main())


def test_timers_come_in_their_order_and_io_is_waited_for() -> None:
    """Jumping from timer to timer keeps their order; a pipe that is written from a thread is heard first."""

    async def main() -> None:
        loop = asyncio.get_running_loop()
        assert isinstance(loop, VirtualTimeLoop)
        seen = list[str]()
        loop.call_later(7200, seen.append, "second")
        loop.call_later(3600, seen.append, "first")
        await asyncio.sleep(7201)
        assert ["first", "second"] == seen
        process = await asyncio.create_subprocess_exec("sleep", "0.02")
        assert 0 == await process.wait()

    soon(main())


def test_a_deadlock_is_told() -> None:
    """When no task can ever go on, the loop says so instead of hanging."""

    async def main() -> None:
        await asyncio.Event().wait()

    with pytest.raises(RuntimeError, match="nothing can happen any more"):
        run(main())


def test_an_odd_body_is_shown_as_it_is() -> None:
    """A dead letter whose body cannot be read has no event, and does not break the test that looks at it."""

    async def main() -> None:
        async with tidewire_world(paying()) as world:
            message = world._publisher.message(OrderPlaced("1"))  # type: ignore[union-attr]
            import msgspec

            await world._transport.publish([msgspec.structs.replace(message, body=b"{")])
            await world.settle()
            (letter,) = world.dead_letters()
            assert ("undecodable", None) == (letter.reason, letter.event)
            assert DecodeError.__name__ not in letter.reason

    soon(main())
