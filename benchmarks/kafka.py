"""Kafka beside its own client library: the same durability, the same events, what the framework adds."""

import asyncio
import gc
import threading
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from functools import partial
from typing import Any

from scripts.kafka_server import VARIABLE, private_kafka

from benchmarks import peers
from benchmarks.broker_latency import Heard, beside_native, ours
from benchmarks.measure import Figure, Sample, paired
from benchmarks.throughput import counted
from benchmarks.work import Counter, Line, order
from tidewire import Options, Service, event, running
from tidewire.chance import UUID7Ids
from tidewire.model import GroupSpec, Message, Topic, TopicSpec
from tidewire.testing.servers.processes import given_or

__all__ = ["kafka"]

_LANES = 4
_PREFETCH = 2_048
"""Enough to go on while a commit is under way: by the default of 256 its round trip bounds the rate."""
_TASKS = 64


def kafka(rounds: int, scale: float) -> list[Figure]:
    """Measure on the broker that TIDEWIRE_TEST_KAFKA names, else on a private one.

    Raises:
        NoServer: there is none.
    """
    with given_or(VARIABLE, private_kafka) as url:
        return _measure(url, rounds, scale)


def _measure(url: str, rounds: int, scale: float) -> list[Figure]:
    gc.collect()
    gc.freeze()  # as `tidewire run` does; for all sides
    consumed, published = max(500, int(30_000 * scale)), max(500, int(20_000 * scale))
    topic, messages = asyncio.run(_fill(url, consumed))
    servers = url.removeprefix("kafka://").partition("?")[0]
    figures = [
        paired(
            "kafka: consume, trivial handler",
            ours=lambda: asyncio.run(_consume(url, topic, consumed)),
            native=lambda: asyncio.run(_native_consume(servers, topic, consumed)),
            rounds=rounds,
            target=0.2,
            cpu_max=20.0,
        ),
        paired(
            "kafka: confirmed publish, 64 tasks",
            ours=lambda: asyncio.run(_publish(url, messages[:published])),
            native=lambda: asyncio.run(_native_publish(servers, messages[:published])),
            rounds=rounds,
            target=0.7,
        ),
        beside_native("kafka", scale, ours=partial(ours, url), native=partial(_native_latency, url, servers)),
    ]
    if peers.faststream_is_here("kafka"):
        theirs = max(250, consumed // 10)
        figures.append(
            paired(
                "kafka: consume, beside FastStream at least once",
                ours=lambda: asyncio.run(_consume(url, topic, consumed)),
                native=lambda: asyncio.run(peers.kafka_consume(servers, topic, theirs)),
                rounds=min(rounds, 3),
                target=15.0,
            )
        )
    return figures


async def _fill(url: str, count: int) -> tuple[str, list[Message]]:
    """Make a topic of our own with *count* events; return it and the messages."""
    from tidewire.config import open_transport

    async with open_transport(url) as transport:
        service = Service("bench-fill")
        async with running(service, transport=transport, options=Options(relay=False)) as app:
            made = [app.publisher.message(order(number)) for number in range(count)]
        topic = f"t{UUID7Ids().event_id()[-12:]}"
        await transport.provision([TopicSpec(topic, _LANES)], [])
        messages = [
            Message(Topic(topic), one.id, one.source, one.key, {**one.headers, "ce-type": f"{topic}.placed"}, one.body)
            for one in made
        ]
        receipts = await transport.publish(messages)
        assert all(receipt.ok for receipt in receipts)
    return topic, messages


async def _consume(url: str, topic: str, count: int) -> Sample:
    """Let a new group handle everything, from when its lanes are there."""
    from tidewire.config import open_transport

    group, counter = f"g{UUID7Ids().event_id()[-12:]}", Counter()
    service = Service(group, prefetch=_PREFETCH)

    @event(f"{topic}.placed", key="order_id")
    class Placed:
        order_id: str
        customer_id: str
        email: str
        note: str
        lines: list[Line]

    @service.on(Placed, on_dead_letter="continue")
    async def seen(placed: Placed) -> None:
        counter.add()

    async with open_transport(url) as transport:
        await transport.provision([], [GroupSpec(group, [topic])])
        async with running(service, transport=transport, options=Options(lanes=_LANES, relay=False)):
            await counter.reach(1)
            return await counted(count - counter.count, partial(counter.reach, count))


async def _native_consume(servers: str, topic: str, count: int) -> Sample:
    """`consume(500)` in a thread, one call into the loop a batch, a handler per event, one commit a batch."""
    from confluent_kafka import Consumer

    loop, counter, ending = asyncio.get_running_loop(), Counter(), threading.Event()
    consumer = Consumer(
        {
            "bootstrap.servers": servers,
            "group.id": f"n{UUID7Ids().event_id()[-12:]}",
            "auto.offset.reset": "earliest",
            "enable.auto.commit": False,
            "check.crcs": True,
        }
    )
    consumer.subscribe([topic])

    def handle(values: list[Any]) -> None:
        for _ in values:
            counter.add()

    def run() -> None:
        while not ending.is_set():
            if batch := consumer.consume(500, 0.05):
                loop.call_soon_threadsafe(handle, [(one.key(), one.value(), one.headers()) for one in batch])
                consumer.commit(asynchronous=False)
        consumer.close()

    thread = threading.Thread(target=run)
    thread.start()
    try:
        await counter.reach(1)
        return await counted(count - counter.count, partial(counter.reach, count))
    finally:
        ending.set()
        thread.join()


@asynccontextmanager
async def _native_latency(url: str, servers: str, heard: Heard) -> AsyncIterator[Callable[[str], Awaitable[object]]]:
    """A producer with futures, a consumer that polls in a thread, one call into the loop and one commit an event."""
    from confluent_kafka import Consumer, Producer

    from tidewire.config import open_transport

    name, loop, ending = UUID7Ids().event_id()[-12:], asyncio.get_running_loop(), threading.Event()
    async with open_transport(url) as transport:
        await transport.provision([TopicSpec(f"t{name}", _LANES)], [])
    producer = Producer({"bootstrap.servers": servers, "acks": "all", "enable.idempotence": True, "linger.ms": 0})
    consumer = Consumer(
        {
            "bootstrap.servers": servers,
            "group.id": f"n{name}",
            "auto.offset.reset": "earliest",
            "enable.auto.commit": False,
        }
    )
    consumer.subscribe([f"t{name}"])

    def receive() -> None:
        while not ending.is_set():
            if (message := consumer.poll(0.05)) is not None and (body := message.value()) is not None:
                loop.call_soon_threadsafe(heard, body.decode())
                consumer.commit(message, asynchronous=True)
        consumer.close()

    def report() -> None:
        while not ending.is_set():
            producer.poll(0.1)

    async def publish(text: str) -> None:
        stored: asyncio.Future[None] = loop.create_future()

        def told(error: Any, _: Any) -> None:
            assert error is None, error
            loop.call_soon_threadsafe(stored.set_result, None)

        producer.produce(f"t{name}", text.encode(), text.encode(), on_delivery=told)
        await stored

    threads = [threading.Thread(target=receive), threading.Thread(target=report)]
    for thread in threads:
        thread.start()
    try:
        yield publish
    finally:
        ending.set()
        for thread in threads:
            thread.join()
        producer.close()


async def _publish(url: str, messages: list[Message]) -> Sample:
    from tidewire.config import open_transport

    async with open_transport(url) as transport:
        await transport.publish(messages[:1])

        async def one(message: Message) -> None:
            (receipt,) = await transport.publish([message])
            assert receipt.ok

        return await counted(len(messages), partial(_by_tasks, messages, one))


async def _native_publish(servers: str, messages: list[Message]) -> Sample:
    """An idempotent producer, a future an event, reports handed over once a burst."""
    from confluent_kafka import Producer

    loop, ending = asyncio.get_running_loop(), threading.Event()
    producer = Producer({"bootstrap.servers": servers, "acks": "all", "enable.idempotence": True, "linger.ms": 0})
    reports: list[tuple[asyncio.Future[None], Any]] = []

    def heard(batch: list[tuple[asyncio.Future[None], Any]]) -> None:
        for future, error in batch:
            if error is None:
                future.set_result(None)
            else:
                future.set_exception(RuntimeError(str(error)))

    def run() -> None:
        nonlocal reports
        while not ending.is_set():
            producer.poll(0.1)
            if reports:
                batch, reports = reports, []
                loop.call_soon_threadsafe(heard, batch)

    async def one(message: Message) -> None:
        future: asyncio.Future[None] = loop.create_future()
        headers = [(name, value.encode()) for name, value in message.headers.items()]
        producer.produce(
            message.to.name,
            message.body,
            message.key.encode(),
            on_delivery=lambda error, _: reports.append((future, error)),
            headers=headers,
        )
        await future

    thread = threading.Thread(target=run)
    thread.start()
    try:
        await one(messages[0])
        return await counted(len(messages), partial(_by_tasks, messages, one))
    finally:
        ending.set()
        thread.join()
        producer.close()


async def _by_tasks(messages: list[Message], one: Callable[[Message], Any]) -> None:
    """Publish one at a time in each of 64 tasks."""
    rest = iter(messages)

    async def work() -> None:
        for message in rest:
            await one(message)

    async with asyncio.TaskGroup() as tasks:
        for _ in range(_TASKS):
            tasks.create_task(work())
