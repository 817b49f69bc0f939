"""A consumer that is alive and deaf is rebuilt, and one that has a reason to be silent never is. Time jumps here."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncGenerator, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any

import aiormq
import httpx
import pytest
from runtime_doubles import Hushable
from runtime_world import OrderPlaced, Recorder

from tidewire import DependencyUnavailable, Options, Retry, Service, event, running
from tidewire.config import open_transport
from tidewire.model import GroupSpec, TopicSpec
from tidewire.runtime.parts import Parts
from tidewire.runtime.probe import open_probe
from tidewire.runtime.serve import Running
from tidewire.runtime.subscriber import Health
from tidewire.stores.memory import open_memory_store
from tidewire.testing.virtual import VirtualClock, run
from tidewire.transports.memory import open_memory_transport

HOUR = timedelta(hours=1)


@dataclass
class Night:
    """A broker that may fall silent, and a service on it."""

    broker: Hushable
    store: Any
    app: Running
    observer: Recorder
    parts: Parts

    @property
    def health(self) -> Health:
        return self.app.health()["0"]

    async def place(self, *orders: str) -> None:
        await self.app.publisher.publish_all([OrderPlaced(order) for order in orders])

    async def until(self, true: Callable[[], bool], longest: timedelta = HOUR) -> float:
        """Wait until *true* holds and return how many seconds that took."""
        loop = asyncio.get_running_loop()
        began = loop.time()
        async with asyncio.timeout(longest.total_seconds()):
            while not true():  # noqa: ASYNC110  # time jumps, and what is waited for has no signal
                await asyncio.sleep(0.5)
        return loop.time() - began


@dataclass
class Shop:
    """A service that notes what it handles, and how each order is to fail."""

    seen: list[str] = field(default_factory=list)
    failures: dict[str, list[Exception]] = field(default_factory=dict)
    gate: asyncio.Event | None = None

    def service(self, *, prefetch: int = 256) -> Service:
        service = Service("billing", prefetch=prefetch)

        @service.on(
            OrderPlaced, retry=Retry(attempts=9, first_delay=HOUR, factor=1.0, max_delay=HOUR), timeout=24 * HOUR
        )
        async def take(order: OrderPlaced) -> None:
            if self.gate is not None:
                await self.gate.wait()
            failing = self.failures.get(order.order_id)
            if failing:
                raise failing.pop(0)
            self.seen.append(f"{order.order_id}-{order.number}")

        return service


@asynccontextmanager
async def night(shop: Shop, options: Options | None = None) -> AsyncGenerator[Night]:
    """Run the service of *shop* on virtual time."""
    clock, observer = VirtualClock(asyncio.get_running_loop()), Recorder()
    parts = Parts(clock=clock, observer=observer)
    async with open_memory_transport(clock=clock) as transport, open_memory_store(clock=clock) as store:
        broker = Hushable(transport)
        options = options or Options(lanes=4, max_hold=24 * HOUR)
        async with running(shop.service(), transport=broker, store=store, options=options, parts=parts) as app:
            yield Night(broker, store, app, observer, parts)


def test_what_it_held_is_given_back_in_order_and_counted_for_nothing(caplog: pytest.LogCaptureFixture) -> None:
    """A key that waits for its retry, and what waits behind it, go to the new membership and keep their order."""
    caplog.set_level(logging.WARNING, "tidewire.consumer")
    shop = Shop(failures={"a": [ValueError("not now")]})

    async def scenario() -> None:
        async with night(shop) as one:
            await one.app.publisher.publish_all([OrderPlaced("a", number=number) for number in range(3)])
            await one.place("b")
            await one.until(lambda: shop.seen == ["b-0"])
            await one.broker.hush()
            await one.place("c")
            assert one.app.ready
            assert 30 <= await one.until(lambda: not one.app.ready) <= 60
            assert one.health.why.startswith("no progress")
            assert await one.until(lambda: "c-0" in shop.seen) <= 61
            await one.until(lambda: len(shop.seen) == 5)
            assert ["a-0", "a-1", "a-2"] == [name for name in shop.seen if name.startswith("a")]
            assert (1, 1) == (one.health.stalls, one.observer.count("rebuilt"))
            await one.until(lambda: one.app.ready)

    run(scenario())
    deaf = [record for record in caplog.records if record.message == "tidewire.consumer.deaf"]
    assert [("billing", "shop.order", 1, 60.0)] == [
        (vars(record)["group"], vars(record)["topics"], vars(record)["lag"], vars(record)["silent_s"])
        for record in deaf
    ]


def test_who_is_idle_or_busy_is_left_alone_and_the_broker_seldom_asked() -> None:
    """An hour without an event asks four times a minute at most; while events come nobody asks."""
    shop = Shop()

    async def scenario() -> None:
        async with night(shop) as one:
            await asyncio.sleep(HOUR.total_seconds())
            assert 200 <= one.broker.asked <= 240
            one.broker.asked = 0
            for number in range(360):
                await one.app.publisher.publish(OrderPlaced(str(number)))
                await asyncio.sleep(10)
            assert 0 == one.broker.asked
            assert (0, 0, True) == (one.health.stalls, one.health.rebuilds, one.app.ready)

    run(scenario())


def test_who_waits_for_something_that_is_down_is_left_alone() -> None:
    """A subscription that backs off from a dependency asks for nothing, however much waits."""
    shop = Shop(failures={"a": [DependencyUnavailable("the bank") for _ in range(200)]})

    async def scenario() -> None:
        async with night(shop) as one:
            await one.place("a")
            await asyncio.sleep(60)
            await one.broker.hush()
            await one.place("b", "c")
            await asyncio.sleep(HOUR.total_seconds() / 2)
            assert (0, 0, False) == (one.health.stalls, one.health.rebuilds, one.app.ready)

    run(scenario())


def test_who_has_its_hands_full_is_left_alone() -> None:
    """Handlers that take hours and a full prefetch are no deafness."""
    shop = Shop(gate=asyncio.Event())

    async def scenario() -> None:
        async with night(shop) as one:
            await one.place(*map(str, range(600)))
            await asyncio.sleep(HOUR.total_seconds())
            assert 256 == one.health.waiting
            assert (0, True) == (one.health.stalls, one.app.ready)
            assert shop.gate is not None
            shop.gate.set()
            await one.until(lambda: len(shop.seen) == 600)

    run(scenario())


def test_a_member_beside_a_slow_one_is_left_alone() -> None:
    """What waits for another member's lanes is not looked at, however long it waits."""
    slow, quick = Shop(gate=asyncio.Event()), Shop()

    async def scenario() -> None:
        async with night(slow) as one:
            options = Options(lanes=4, max_hold=24 * HOUR)
            async with running(
                quick.service(), transport=one.broker, store=one.store, options=options, parts=one.parts
            ) as beside:
                await one.until(lambda: one.health.ready and beside.ready)
                await one.place(*map(str, range(2_000)))
                await asyncio.sleep(HOUR.total_seconds())
                assert (0, True) == (beside.health()["0"].stalls, beside.ready)
                assert (0, True) == (one.health.stalls, one.app.ready)
                assert 256 == one.health.waiting
                assert slow.gate is not None
                slow.gate.set()
                await one.until(lambda: len(slow.seen) + len(quick.seen) == 2_000)

    run(scenario())


def test_a_broker_that_stays_silent_is_left_and_joined_less_and_less_often() -> None:
    """No rebuild storm: in two hours it is tried at 1, 3, 7, 15, 31 minutes and then each 16; never ready meanwhile."""
    shop = Shop()

    async def scenario() -> None:
        async with night(shop) as one:
            await one.broker.hush(for_all=True)
            await one.place("a")
            await one.until(lambda: not one.app.ready)
            for _ in range(7_200 // 5):
                await asyncio.sleep(5)
                assert not one.app.ready
            assert 9 <= one.health.stalls <= 10
            await one.broker.hush()
            await one.until(lambda: one.app.ready)
            assert ["a-0"] == shop.seen

    run(scenario())


def test_the_threshold_says_how_many_must_wait() -> None:
    """With ``stuck_lag=3``, two that wait for an hour are nothing, and the third is one too many."""
    shop = Shop()

    async def scenario() -> None:
        async with night(shop, Options(lanes=4, stuck_lag=3)) as one:
            await one.broker.hush()
            await one.place("a", "b")
            await asyncio.sleep(HOUR.total_seconds())
            assert (0, True) == (one.health.stalls, one.app.ready)
            await one.place("c")
            assert await one.until(lambda: len(shop.seen) == 3) <= 90
            assert 1 == one.health.stalls

    run(scenario())


def test_a_broker_that_does_not_say_what_waits_makes_unready_and_nothing_else() -> None:
    """Nobody can tell whether it is deaf: that is said, and it is not rebuilt for it."""
    shop = Shop()

    async def scenario() -> None:
        async with night(shop) as one:
            one.broker.answers = False
            await one.until(lambda: not one.app.ready)
            assert "the broker does not say whether events wait" == one.health.why
            await asyncio.sleep(HOUR.total_seconds())
            assert (0, 0) == (one.health.stalls, one.health.rebuilds)
            await one.place("a")
            await one.until(lambda: one.app.ready)

    run(scenario())


def test_stopping_while_deaf_is_no_failure() -> None:
    """A stop between doubt and rebuild ends at once; what waits is handed out first to the next, as if never seen."""
    shop = Shop()

    async def scenario() -> None:
        async with night(shop) as one:
            await one.broker.hush()
            await one.place("a")
            await one.until(lambda: not one.app.ready)
            began = asyncio.get_running_loop().time()
            one.app.stop()
        assert asyncio.get_running_loop().time() - began <= 10
        assert [] == shop.seen

    run(scenario())


@pytest.mark.parametrize("broker", ["kafka", "rabbitmq"])
def test_on_a_real_broker_a_member_that_is_given_nothing_is_rebuilt(
    broker: str, request: pytest.FixtureRequest
) -> None:
    """The broker itself says that events wait; the next membership gets them, and nothing is handled twice."""
    url = str(request.getfixturevalue(f"{broker}_url"))
    shop = Shop()
    options = Options(lanes=4, stuck_after=timedelta(seconds=4), grace=timedelta(seconds=2))

    async def scenario() -> None:
        async with open_transport(url) as transport, open_memory_store() as store:
            broker = Hushable(transport)
            async with running(shop.service(), transport=broker, store=store, options=options) as app:
                one = Night(broker, store, app, Recorder(), Parts())
                await one.place("a")
                await one.until(lambda: shop.seen == ["a-0"], timedelta(seconds=30))
                await broker.hush()
                await one.place("b", "c")
                await one.until(lambda: sorted(shop.seen) == ["a-0", "b-0", "c-0"], timedelta(seconds=60))
                assert 1 == one.health.stalls
                await one.until(lambda: one.app.ready, timedelta(seconds=30))

    asyncio.run(scenario())


@event("deaf.order.placed", key="order_id")
class DeafPlaced:
    """One of many of its key."""

    order_id: str
    number: int


async def keep(message: object) -> None:
    """Take a message, and never ack it."""


def test_on_rabbitmq_a_member_that_a_stranger_makes_deaf_says_so_until_it_hears(rabbitmq_url: str) -> None:
    """A foreign client that takes a lane's queues for itself leaves the member deaf: it is rebuilt, ``/readyz`` says
    503 and why, and when the stranger is gone all is handled once and in order."""
    seen: list[int] = []
    service = Service("billing")

    @service.on(DeafPlaced)
    async def take(order: DeafPlaced) -> None:
        seen.append(order.number)

    options = Options(lanes=1, stuck_after=timedelta(seconds=2), grace=timedelta(seconds=1))

    async def scenario() -> None:
        async with AsyncExitStack() as stack:
            transport = await stack.enter_async_context(open_transport(rabbitmq_url))
            store = await stack.enter_async_context(open_memory_store())
            await transport.provision([TopicSpec("deaf.order", 1)], [GroupSpec("billing", ["deaf.order"])])
            stranger = await aiormq.connect(rabbitmq_url)
            stack.push_async_callback(stranger.close)
            channel = await stranger.channel()
            await channel.basic_qos(prefetch_count=1)
            await channel.basic_consume("deaf.order.LANE.billing.0", keep)
            app = await stack.enter_async_context(running(service, transport=transport, store=store, options=options))
            port = await stack.enter_async_context(open_probe(app.health, host="127.0.0.1", port=0))
            client = await stack.enter_async_context(httpx.AsyncClient())
            one = Night(Hushable(transport), store, app, Recorder(), Parts())
            await app.publisher.publish_all([DeafPlaced("a", number) for number in range(3)])
            await one.until(lambda: one.health.stalls > 0, timedelta(seconds=60))
            why = ""  # while it is rebuilt it has not joined; then it has not heard anything yet
            async with asyncio.timeout(60):
                while not why.startswith("no progress"):
                    answer = await client.get(f"http://127.0.0.1:{port}/readyz")
                    assert 503 == answer.status_code
                    why = answer.json()["0"]["why"]
            assert [] == seen
            await stranger.close()
            await one.until(lambda: len(seen) == 3 and one.app.ready, timedelta(seconds=60))
            assert [0, 1, 2] == seen
            assert 200 == (await client.get(f"http://127.0.0.1:{port}/readyz")).status_code

    asyncio.run(scenario())
