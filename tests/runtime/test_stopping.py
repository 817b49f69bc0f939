"""Stops: drained within one grace, at once at the second signal, and with nothing spent."""

from __future__ import annotations

import asyncio
import signal
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, suppress
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from runtime_doubles import Proxy
from runtime_world import Opened, OrderPlaced, World

from tidewire import Context, Options, RetryAfter, Service
from tidewire.config import open_transport
from tidewire.errors import AlreadyMarked, StoreUnavailable, TransportUnavailable
from tidewire.model import Delivery, LaneEvent, Subscription
from tidewire.runtime.producer import transaction
from tidewire.testing.servers.processes import wait_until_heard

SLOW = """
import asyncio, pathlib, time
from tidewire import Context, Service, event

@event("shop.order.placed", key="order_id")
class OrderPlaced:
    order_id: str

quick, stubborn = Service("slow"), Service("slow")

@quick.on(OrderPlaced, name="take")
async def take(order: OrderPlaced, context: Context) -> None:
    pathlib.Path("started").touch()
    await asyncio.sleep(120)

@stubborn.on(OrderPlaced, name="take")
def block(order: OrderPlaced) -> None:
    pathlib.Path("started").touch()
    time.sleep(120)
"""
PUBLISH = """
import asyncio
from tidewire import open_publisher
from tidewire.config import open_transport
from twslow import OrderPlaced

async def main():
    async with open_transport("sqlite:///broker.db") as broker, open_publisher("shop", transport=broker) as publisher:
        await publisher.publish_all([OrderPlaced(order_id=str(number)) for number in range(3)])

asyncio.run(main())
"""
Start = Callable[..., "subprocess.Popen[str]"]


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Start]:
    """A function that starts a service of ``twslow`` and returns when it is in a handler."""
    (tmp_path / "twslow.py").write_text(SLOW)
    begun: list[subprocess.Popen[str]] = []

    def run(name: str, *, grace: float) -> subprocess.Popen[str]:
        options = ["--broker", "sqlite:///broker.db", "--store", "sqlite:///store.db", "--grace", str(grace)]
        command = [sys.executable, "-m", "tidewire.cli", "run", f"twslow:{name}", "--provision", *options]
        process = subprocess.Popen(command, cwd=tmp_path, stderr=subprocess.DEVNULL, text=True)
        begun.append(process)
        subprocess.run([sys.executable, "-c", PUBLISH], cwd=tmp_path, check=True, timeout=60)
        until(lambda: (tmp_path / "started").exists())
        return process

    yield run
    for process in begun:
        process.kill()
        process.communicate()


def until(true: Callable[[], object]) -> None:
    """Wait, for 30 s at most, until *true* holds."""
    deadline = time.monotonic() + 30
    while not true():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def what_comes_back(directory: Path) -> list[tuple[str, int, bool]]:
    """What the next member of the group is given: id, attempt, whether it is a suspect."""

    async def look() -> list[tuple[str, int, bool]]:
        found: list[Delivery] = []
        async with (
            open_transport(f"sqlite:////{directory}/broker.db") as broker,
            broker.subscribe(Subscription("slow", ["shop.order"], "next", "key", grace=timedelta(0))) as receiver,
        ):
            async with asyncio.timeout(30):
                while len(found) < 3:
                    items = await receiver.receive(10, timedelta(seconds=1))
                    found += [item for item in items if isinstance(item, Delivery)]
        return [(one.message.key or "", one.attempt, one.suspect) for one in found]

    return sorted(asyncio.run(look()))


UNTOUCHED = [("0", 1, False), ("1", 1, False), ("2", 1, False)]


@pytest.mark.parametrize("name", ["quick", "stubborn"])
def test_sigterm_ends_within_one_grace(start: Start, tmp_path: Path, name: str) -> None:
    """A handler that does not end is cut off after the grace, and its thread left behind; nothing is spent."""
    process = start(name, grace=1.5)
    began = time.monotonic()
    process.send_signal(signal.SIGTERM)
    assert 0 == process.wait(timeout=30)
    assert 1.4 < time.monotonic() - began < 15.0  # its handler would have taken two minutes
    assert UNTOUCHED == what_comes_back(tmp_path)


@pytest.mark.parametrize("name", ["quick", "stubborn"])
def test_the_second_sigterm_ends_at_once(start: Start, tmp_path: Path, name: str) -> None:
    """Two signals in a row do not wait for any grace, and spend nothing either."""
    process = start(name, grace=60)
    process.send_signal(signal.SIGTERM)
    wait_until_heard(process.pid, signal.SIGTERM)
    process.send_signal(signal.SIGTERM)
    assert 0 == process.wait(timeout=30)
    assert UNTOUCHED == what_comes_back(tmp_path)


@pytest.mark.parametrize("part", ["inbox", "lanes"])
def test_a_stop_does_not_wait_for_a_store_that_is_down(opened: Opened, part: str) -> None:
    """Taking events in and taking lanes over both wait for the store; a stop ends that wait."""
    service, asked = Service("billing"), asyncio.Event()

    @service.on(OrderPlaced)
    async def take(order: OrderPlaced) -> None:
        return None

    async def down(*arguments: Any) -> Any:
        asked.set()
        raise StoreUnavailable("the database does not answer")

    async def scenario() -> None:
        async with opened() as world:
            broken = Proxy(world.store.inbox, known=down) if part == "inbox" else Proxy(world.store.lanes, adopt=down)
            world.store = Proxy(world.store, **{part: broken})
            world.options = Options(lease=timedelta(seconds=1), grace=timedelta(seconds=20), lanes=4)
            async with world.running(service) as app:
                await app.publisher.publish(OrderPlaced("1"))
                await asked.wait()
                stopped = asyncio.get_running_loop().time()
            assert asyncio.get_running_loop().time() - stopped < 15.0
            stats = await world.transport.stats("shop.order", "billing")
            assert 1 == stats.ready

    asyncio.run(scenario())


def test_what_is_cut_off_is_given_back_before_the_service_has_ended(opened: Opened) -> None:
    """The next member gets it as soon as the grace is over: neither a second grace nor a lease is waited for."""
    service, started = Service("billing"), asyncio.Event()

    @service.on(OrderPlaced)
    async def take(order: OrderPlaced, context: Context) -> None:
        started.set()
        await asyncio.sleep(120)

    async def scenario() -> None:
        async with opened() as world:
            world.options = Options(lease=timedelta(minutes=5), grace=timedelta(seconds=2), lanes=4)
            loop = asyncio.get_running_loop()
            async with world.running(service) as app:
                await app.publisher.publish_all([OrderPlaced("1"), OrderPlaced("2")])
                await started.wait()
                began = loop.time()
            assert loop.time() - began < 3.9
            stats = await world.transport.stats("shop.order", "billing")
            assert (2, 0) == (stats.ready, stats.in_flight)

    asyncio.run(scenario())


def test_a_handler_that_catches_its_cancellation_does_not_keep_the_service(opened: Opened) -> None:
    """Cut off after the grace, it goes on to its end all the same; then the service has ended, too."""
    service, started = Service("billing"), asyncio.Event()

    @service.on(OrderPlaced)
    async def take(order: OrderPlaced) -> None:
        started.set()
        with suppress(asyncio.CancelledError):
            await asyncio.sleep(120)

    async def scenario() -> None:
        async with opened() as world, asyncio.timeout(60):
            world.options = Options(lease=timedelta(seconds=30), grace=timedelta(seconds=0.2), lanes=4)
            async with world.running(service) as app:
                await app.publisher.publish(OrderPlaced("1"))
                await started.wait()

    asyncio.run(scenario())


def test_what_a_handler_makes_of_its_cancellation_is_no_failure(opened: Opened) -> None:
    """Cut off after the grace, it raises an error of its own: no attempt is spent."""
    service, started, sources = Service("billing"), asyncio.Event(), list[str]()

    @service.on(OrderPlaced)
    async def take(order: OrderPlaced, context: Context) -> None:
        sources.append(context.message.source)
        started.set()
        try:
            await asyncio.sleep(120)
        except asyncio.CancelledError as error:
            raise KeyError("what the call would have brought") from error

    async def scenario() -> None:
        async with opened() as world:
            world.options = Options(lease=timedelta(seconds=30), grace=timedelta(seconds=0.2), lanes=4)
            async with world.running(service) as app:
                await app.publisher.publish(OrderPlaced("1"), id="e1")
                await started.wait()
            assert await world.store.attempts.get("billing", sources[0], "e1") is None

    asyncio.run(scenario())


def cut_off_in_seal(store: Any, reached: asyncio.Event, *, place: int) -> Any:
    """Return *store*: its first unit finds a mark, and the commit of unit *place* is cut off before it begins."""
    made = 0

    def unit(*arguments: Any, **named: Any) -> Any:
        nonlocal made
        made += 1
        inner = store.unit(*arguments, **named)

        async def marked() -> Any:
            await inner.rollback()
            raise AlreadyMarked("another copy has taken effect")

        async def late() -> Any:
            reached.set()
            await asyncio.Event().wait()

        return Proxy(inner, seal=late) if made == place else Proxy(inner, seal=marked) if made == 1 else inner

    return Proxy(store, unit=unit)


async def demand_free(store: Any) -> None:
    """Raise unless the store's turn can be had."""
    async with asyncio.timeout(20), transaction(store):
        pass


def test_a_stop_leaves_no_unit_open_behind_a_duplicate(opened: Opened) -> None:
    """What asks whether a duplicate's mark is durable ends with the stop, and gives the store's turn back."""
    service, reached = Service("billing"), asyncio.Event()

    @service.on(OrderPlaced)
    async def take(order: OrderPlaced) -> None:
        return None

    async def scenario() -> None:
        async with opened() as world:
            store = world.store
            world.store = cut_off_in_seal(store, reached, place=2)
            world.options = Options(lease=timedelta(seconds=30), grace=timedelta(0), lanes=4, relay=False)
            async with world.running(service) as app:
                await app.publisher.publish(OrderPlaced("1"))
                await reached.wait()
            await demand_free(store)

    asyncio.run(scenario())


def test_a_transaction_that_is_cut_off_at_its_commit_is_over(opened: Opened) -> None:
    """A caller that is cancelled before its commit began has rolled back, and the next one has the turn."""

    async def scenario() -> None:
        async with opened() as world:
            reached = asyncio.Event()
            store = cut_off_in_seal(world.store, reached, place=1)

            async def commit() -> None:
                async with transaction(store):
                    pass

            caller = asyncio.ensure_future(commit())
            await reached.wait()
            caller.cancel()
            await asyncio.wait([caller])
            await demand_free(world.store)

    asyncio.run(scenario())


def test_a_timer_wakes_nobody_in_a_membership_that_is_ending(opened: Opened) -> None:
    """The broker is away and what runs is being cut off; a held event whose time comes meanwhile starts no worker."""
    service, runs = Service("billing"), list[str]()
    away, cleaning, held = asyncio.Event(), asyncio.Event(), 0.3

    @service.on(OrderPlaced)
    async def take(order: OrderPlaced) -> None:
        runs.append(order.order_id)
        if runs.count(order.order_id) > 1:
            return
        if order.order_id == "fails":
            raise RetryAfter(timedelta(seconds=held))
        away.set()
        try:
            await asyncio.sleep(120)
        finally:
            cleaning.set()
            await asyncio.sleep(2 * held)

    complaints: list[dict[str, Any]] = []

    async def scenario() -> None:
        asyncio.get_running_loop().set_exception_handler(lambda _, context: complaints.append(context))
        async with opened() as world:
            subscribe = world.transport.subscribe

            @asynccontextmanager
            async def subscribed(subscription: Any) -> AsyncIterator[Any]:
                async with subscribe(subscription) as receiver:

                    async def receive(limit: int, wait: timedelta) -> Any:
                        if away.is_set() and not cleaning.is_set():
                            raise TransportUnavailable("the broker is away")
                        return await receiver.receive(limit, min(wait, timedelta(milliseconds=20)))

                    yield Proxy(receiver, receive=receive)

            world.transport = Proxy(world.transport, subscribe=subscribed)
            async with world.running(service) as app:
                await app.publisher.publish(OrderPlaced("fails"))
                await world.until(lambda: runs == ["fails"])
                await app.publisher.publish(OrderPlaced("runs"))
                await world.until(lambda: sorted(runs) == ["fails", "fails", "runs", "runs"])

    asyncio.run(scenario())
    assert [] == complaints


def test_a_lane_is_let_go_of_when_the_rest_of_it_was_given_back(opened: Opened) -> None:
    """A revocation comes while a settle is on its way: what is queued behind it is given back first, untouched.

    Let go of before, it would be in doubt for the next owner: a start that may have ended with a death.
    """
    service, began, given = Service("billing", concurrency=1), list[str](), list[tuple[int, bool]]()
    settling, revoked, calls = asyncio.Event(), asyncio.Event(), list[tuple[str, set[str]]]()

    @service.on(OrderPlaced)
    async def take(order: OrderPlaced) -> None:
        began.append(order.order_id)
        if len(began) > 1:
            await asyncio.sleep(120)

    def watched(transport: Any) -> Any:
        @asynccontextmanager
        async def subscribe(subscription: Any) -> AsyncIterator[Any]:
            async with transport.subscribe(subscription) as receiver:

                async def receive(limit: int, wait: timedelta) -> Any:
                    items = await receiver.receive(limit, wait)
                    if any(isinstance(item, LaneEvent) and item.kind == "revoking" for item in items):
                        revoked.set()
                    return items

                async def settle(*, ack: Any = (), release: Any = (), move: Any = ()) -> Any:
                    if ack and not settling.is_set():
                        settling.set()
                        await revoked.wait()
                        await asyncio.sleep(0.05)  # what was received is taken in
                    calls.append(("release", {one.delivery.lane for one in release}))
                    return await receiver.settle(ack=ack, release=release, move=move)

                async def steer(*, drained: Any) -> None:
                    calls.append(("drained", set(drained)))
                    await receiver.steer(drained=drained)

                yield Proxy(receiver, receive=receive, settle=settle, steer=steer)

        return Proxy(transport, subscribe=subscribe)

    async def scenario() -> None:
        async with opened() as world:
            options = Options(lease=timedelta(seconds=30), grace=timedelta(seconds=1), lanes=4)
            long, none = timedelta(seconds=30), timedelta(0)
            second = Subscription("billing", ["shop.order"], "second", "key", lease=long, grace=none)
            async with (
                World(watched(world.transport), world.store, options).running(service) as app,
                asyncio.timeout(20),
            ):
                await app.publisher.publish_all([OrderPlaced(str(number)) for number in range(12)])
                await settling.wait()
                async with world.transport.subscribe(second) as receiver:
                    while not given:
                        items = await receiver.receive(20, timedelta(seconds=5))
                        given.extend((one.attempt, one.suspect) for one in items if isinstance(one, Delivery))

    asyncio.run(scenario())
    released = [lanes for what, lanes in calls if what == "release"]
    first = next(place for place, (what, _) in enumerate(calls) if what == "drained")
    late = [lanes for what, lanes in calls[first:] if what == "release"]
    assert any(released)
    assert not any(lanes & calls[first][1] for lanes in late)
    assert {(1, False)} == set(given)
