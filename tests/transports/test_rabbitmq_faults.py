"""The RabbitMQ transport while networks fail, members come and go, and somebody meddles with the broker."""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncGenerator, Callable, Coroutine, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager, suppress
from datetime import timedelta
from functools import wraps
from itertools import count

import aiormq
import msgspec
import pytest
from kafka_proxy import Proxy, proxy

from tidewire.errors import TransportRefused, TransportUnavailable
from tidewire.model import Delivery, GroupSpec, LaneEvent, Message, Subscription, Topic, TopicSpec
from tidewire.protocols import Receiver
from tidewire.testing.servers.rabbitmq import LIMITED, RabbitServer
from tidewire.transports.rabbitmq import RabbitTransport, open_rabbit_transport

_numbers = count(1)
SHORTLY = timedelta(milliseconds=200)


def on_a_loop(test: Callable[[RabbitServer], Coroutine[object, object, None]]) -> Callable[[RabbitServer], None]:
    """Run a test on an event loop of its own."""

    @wraps(test)
    def run(rabbitmq_server: RabbitServer) -> None:
        asyncio.run(test(rabbitmq_server))

    return run


def fresh() -> str:
    """Return the name of a topic that no other test uses."""
    return f"faults.test{next(_numbers)}"


def events(topic: str, numbers: Sequence[int], *, keys: int = 1, size: int = 0) -> list[Message]:
    """Return an event for each number, of one of so many keys, its body filled up to *size* bytes."""
    return [
        Message(
            *(Topic(topic), f"{topic}-{number}", "test", f"k-{number % keys}", {"ce-type": "a.b"}),
            str(number).encode().ljust(size),
        )
        for number in numbers
    ]


def numbers_of(deliveries: Sequence[Delivery]) -> list[int]:
    """Return the numbers of events."""
    return [int(one.message.body) for one in deliveries]


@asynccontextmanager
async def opened(url: str, topic: str, *, lanes: int = 2) -> AsyncGenerator[RabbitTransport]:
    """Open a transport with a topic and the group "billing" on it."""
    async with open_rabbit_transport(url) as transport:
        await transport.provision([TopicSpec(topic, lanes)], [GroupSpec("billing", [topic])])
        yield transport


def place(topic: str, member: str = "m-1") -> Subscription:
    """Return a subscription of a member with a short lease."""
    return Subscription("billing", [topic], member, lease=timedelta(seconds=2), grace=SHORTLY)


@contextmanager
def wired(server: RabbitServer, *, timeout: int) -> Iterator[tuple[Proxy, str]]:
    """Give a proxy in front of the broker, and the URL that leads through it."""
    with proxy(0, server.port) as wire:
        yield wire, f"{server.url_of('worker', server.password, port=wire.port)}?timeout={timeout}"


async def taken(receiver: Receiver, number: int) -> list[Delivery]:
    """Receive until there are *number* deliveries, through whatever is unavailable meanwhile."""
    found: list[Delivery] = []
    async with asyncio.timeout(60):
        while len(found) < number:
            with suppress(TransportUnavailable):
                batch = await receiver.receive(100, timedelta(seconds=1))
                found += [one for one in batch if isinstance(one, Delivery)]
    return found


@on_a_loop
async def test_a_broker_that_hears_nothing_is_left_and_joined_again(rabbitmq_server: RabbitServer) -> None:
    """When nothing reaches the broker any more calls end in time; later all is handed out again, under new epochs."""
    topic = fresh()
    with wired(rabbitmq_server, timeout=3) as (wire, url):
        async with opened(url, topic) as transport, transport.subscribe(place(topic)) as receiver:
            await transport.publish(events(topic, [1]))
            found = await taken(receiver, 1)
            await asyncio.to_thread(wire.say, "deaf")
            with suppress(TransportUnavailable):  # it can be known that nothing was handed over
                (receipt,) = await transport.publish(events(topic, [2]))
                assert "unknown" == receipt.status
            with suppress(TransportUnavailable):  # it cannot know
                assert {"lost"} == {one.status for one in await receiver.settle(ack=found)}
            await asyncio.to_thread(wire.say, "go")
            again = await taken(receiver, 1)
            assert 1 == numbers_of(again)[0]
            assert again[0].epoch > found[0].epoch
            assert {"settled"} == {one.status for one in await receiver.settle(ack=again)}
            (receipt,) = await transport.publish(events(topic, [3]))
            assert receipt.ok


@on_a_loop
async def test_a_slow_network_costs_time_and_no_lane(rabbitmq_server: RabbitServer) -> None:
    """Over 20 kB a second, with a batch that takes longer than a lease, a member keeps its lane and the order."""
    topic = fresh()
    async with opened(rabbitmq_server.url, topic, lanes=1) as direct:
        with wired(rabbitmq_server, timeout=30) as (wire, url):
            async with open_rabbit_transport(url) as transport, transport.subscribe(place(topic)) as receiver:
                first = await receiver.receive(0, timedelta(seconds=10))
                assert [("assigned", f"{topic}/0")] == [(e.kind, e.lane) for e in first if isinstance(e, LaneEvent)]
                await asyncio.to_thread(wire.say, "slow")
                await direct.publish(events(topic, range(40), size=2_000))
                found = await taken(receiver, 40)
                settled = await receiver.settle(ack=found)
                await asyncio.to_thread(wire.say, "go")
    assert list(range(40)) == numbers_of(found)
    assert 1 == len({one.epoch for one in found})
    assert {"settled"} == {one.status for one in settled}


@on_a_loop
async def test_members_that_come_and_go_all_the_time_lose_nothing_and_keep_the_order(
    rabbitmq_server: RabbitServer,
) -> None:
    """A rebalance storm: of twelve members in turn each works for a moment; nobody's leaving is anybody's failure."""
    topic, url, chance = fresh(), rabbitmq_server.url, random.Random(7)
    seen: list[Delivery] = []
    published, stormed, complete = 0, False, asyncio.Event()
    # Nobody stands still here: whoever is kept from running for a while keeps what it has.
    patient, long = timedelta(seconds=6), timedelta(seconds=9)

    def owners() -> int:
        return len({(one.lane, one.epoch) for one in seen})

    async def publish(transport: RabbitTransport) -> None:
        nonlocal published
        await transport.publish(events(topic, range(published, published + 50), keys=10))
        published += 50

    async def live(number: int) -> None:
        lives = chance.randint(3, 12) if number else 1_000_000  # the first one stays
        one = msgspec.structs.replace(place(topic, f"m-{number}"), lease=long, grace=patient)
        async with open_rabbit_transport(url) as transport, transport.subscribe(one) as receiver:
            while lives > 0 and not complete.is_set():
                items = await receiver.receive(5, SHORTLY)
                batch = [one for one in items if isinstance(one, Delivery)]
                lives -= bool(batch)
                settled = await receiver.settle(ack=batch)
                seen.extend(one.delivery for one in settled if one.status == "settled")
                leaving = [one.lane for one in items if isinstance(one, LaneEvent) and one.kind == "revoking"]
                await receiver.steer(drained=leaving)
                if stormed and len(seen) == published:
                    complete.set()

    async with opened(url, topic, lanes=6) as transport, asyncio.timeout(120), asyncio.TaskGroup() as tasks:
        for number in range(12):
            tasks.create_task(live(number))
            await publish(transport)
        while owners() < 12:  # each lane is to change hands
            await publish(transport)
            while len(seen) < published:  # noqa: ASYNC110 - members note it
                await asyncio.sleep(0.02)
        stormed = True
    assert list(range(published)) == sorted(numbers_of(seen))
    assert {(1, False)} == {(one.attempt, one.suspect) for one in seen}
    for key in range(10):
        assert list(range(key, published, 10)) == [number for number in numbers_of(seen) if number % 10 == key]


@on_a_loop
async def test_a_queue_that_is_deleted_under_a_member_is_an_error_and_mended_by_provisioning(
    rabbitmq_server: RabbitServer,
) -> None:
    """Receiving says which queue is gone, and what waits cannot be told; made anew, it takes what is published."""
    topic = fresh()
    async with opened(rabbitmq_server.url, topic) as transport:
        async with transport.subscribe(place(topic)) as receiver:
            lanes = [one.lane for one in await receiver.receive(0, timedelta(seconds=10))]
            connection = await aiormq.connect(rabbitmq_server.url)
            await (await connection.channel()).queue_delete(f"{topic}.LANE.billing.1")
            await connection.close()
            with suppress(TransportUnavailable):  # unless the member has heard of it before us, and has no lane
                assert 0 == await transport.lag("billing", lanes)
            with pytest.raises(TransportRefused, match=f"{topic}.LANE.billing.1"):
                await taken(receiver, 1)
        change = (await transport.provision([TopicSpec(topic, 2)], [GroupSpec("billing", [topic])]))[1]
        assert "create" == change.kind
        receipts = await transport.publish(events(topic, range(20), keys=20))
        assert {"stored"} == {one.status for one in receipts}
        async with transport.subscribe(place(topic)) as receiver:
            assert list(range(20)) == sorted(numbers_of(await taken(receiver, 20)))


@on_a_loop
async def test_who_may_not_come_in_again_hears_so(rabbitmq_server: RabbitServer) -> None:
    """A user whose password is changed works until its connection ends; then its member, and a publish, are refused."""
    topic = fresh()
    user, password = LIMITED
    control = rabbitmq_server.control
    await asyncio.to_thread(control, "set_permissions", user, r"^tidewire\.MEMBER\.", ".*", ".*")
    with wired(rabbitmq_server, timeout=5) as (wire, worker):
        url = worker.replace(f"worker:{rabbitmq_server.password}", f"{user}:{password}")
        async with opened(rabbitmq_server.url, topic), open_rabbit_transport(url) as transport:
            await transport.publish(events(topic, [1]))
            async with transport.subscribe(place(topic)) as receiver:
                await taken(receiver, 1)
                await asyncio.to_thread(control, "change_password", user, "another")
                try:
                    await asyncio.to_thread(wire.say, "cut")
                    with pytest.raises(TransportRefused, match="password"):
                        await taken(receiver, 2)
                    with pytest.raises(TransportRefused, match="password"):
                        await transport.publish(events(topic, [2]))
                finally:
                    await asyncio.to_thread(control, "change_password", user, password)
            (receipt,) = await transport.publish(events(topic, [3]))
            assert receipt.ok
