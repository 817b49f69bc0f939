"""RabbitMQ beside aio-pika: the same queues, the same durability, the same events, what the framework adds or saves."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from functools import partial
from typing import Any

from scripts.rabbitmq_server import VARIABLE, private_rabbit

from benchmarks import peers
from benchmarks.broker_latency import Heard, beside_native, ours
from benchmarks.measure import Figure, Sample, paired
from benchmarks.throughput import counted
from benchmarks.work import Counter, Line, order
from tidewire import Options, Service, event, running
from tidewire.chance import UUID7Ids
from tidewire.model import GroupSpec, Message, Topic, TopicSpec
from tidewire.testing.servers.processes import given_or

__all__ = ["rabbitmq"]

_LANES = 4
_BATCH = 100
_PREFETCH = 256


def rabbitmq(rounds: int, scale: float) -> list[Figure]:
    """Measure on the broker that TIDEWIRE_TEST_RABBITMQ names, else on a private one.

    Raises:
        NoServer: there is none.
    """
    with given_or(VARIABLE, private_rabbit) as url:
        return _measure(url, rounds, scale)


def _measure(url: str, rounds: int, scale: float) -> list[Figure]:
    count = max(500, int(5_000 * scale))
    messages = asyncio.run(_made(url, count))
    figures = [
        paired(
            "rabbitmq: consume, trivial handler",
            ours=lambda: asyncio.run(_consume(url, messages)),
            native=lambda: asyncio.run(_native_consume(url, messages)),
            rounds=rounds,
            target=1.0,
        ),
        paired(
            f"rabbitmq: publish, batches of {_BATCH} confirms",
            ours=lambda: asyncio.run(_publish(url, messages)),
            native=lambda: asyncio.run(_native_publish(url, messages)),
            rounds=rounds,
            target=1.0,
        ),
        beside_native("rabbitmq", scale, ours=partial(ours, url), native=partial(_native_latency, url)),
    ]
    if peers.faststream_is_here("rabbitmq"):
        figures.append(
            paired(
                "rabbitmq: consume, beside FastStream at least once",
                ours=lambda: asyncio.run(_consume(url, messages)),
                native=lambda: asyncio.run(_faststream_consume(url, messages)),
                rounds=min(rounds, 3),
                target=2.0,
            )
        )
    return figures


async def _made(url: str, count: int) -> list[Message]:
    """Return *count* messages as a publisher makes them."""
    from tidewire.config import open_transport

    async with open_transport(url) as transport:
        async with running(Service("bench-made"), transport=transport, options=Options(relay=False)) as app:
            return [app.publisher.message(order(number)) for number in range(count)]


def _renamed(messages: list[Message], topic: str) -> list[Message]:
    return [
        Message(Topic(topic), one.id, one.source, one.key, {**one.headers, "ce-type": f"{topic}.placed"}, one.body)
        for one in messages
    ]


async def _consume(url: str, messages: list[Message]) -> Sample:
    """Let a group handle everything, from when its lanes are there."""
    from tidewire.config import open_transport

    topic, counter = f"t{UUID7Ids().event_id()[-12:]}", Counter()
    service = Service("bench")

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
        await transport.provision([TopicSpec(topic, _LANES)], [GroupSpec("bench", [topic])])
        receipts = await transport.publish(_renamed(messages, topic))
        assert all(receipt.ok for receipt in receipts)
        async with running(service, transport=transport, options=Options(lanes=_LANES, relay=False)):
            await counter.reach(1)
            return await counted(len(messages) - counter.count, partial(counter.reach, len(messages)))


async def _native_consume(url: str, messages: list[Message]) -> Sample:
    """One quorum queue a lane, a channel with a prefetch, a callback and an ack for each message."""
    import aio_pika
    import msgspec

    topic, counter = f"n{UUID7Ids().event_id()[-12:]}", Counter()
    decode = msgspec.json.Decoder(dict[str, object]).decode
    connection = await aio_pika.connect(url)
    async with connection:
        channel = await connection.channel()
        await channel.set_qos(_PREFETCH)
        queues = [await _queue(channel, f"{topic}.{number}") for number in range(_LANES)]
        await _native_fill(channel, topic, messages)

        async def seen(message: Any) -> None:
            decode(message.body)
            counter.add()
            await message.ack()

        for queue in queues:
            await queue.consume(seen)
        await counter.reach(1)
        return await counted(len(messages) - counter.count, partial(counter.reach, len(messages)))


async def _faststream_consume(url: str, messages: list[Message]) -> Sample:
    """The same queues and messages as the native twin's, for FastStream."""
    import aio_pika

    topic = f"f{UUID7Ids().event_id()[-12:]}"
    queues = [f"{topic}.{number}" for number in range(_LANES)]
    connection = await aio_pika.connect(url)
    async with connection:
        channel = await connection.channel()
        for name in queues:
            await _queue(channel, name)
        await _native_fill(channel, topic, messages)
    return await peers.rabbitmq_consume(url, queues, len(messages))


@asynccontextmanager
async def _native_latency(url: str, heard: Heard) -> AsyncIterator[Callable[[str], Awaitable[object]]]:
    """Confirmed publishes on one channel, a callback and an ack for each message on another."""
    import aio_pika

    name = f"n{UUID7Ids().event_id()[-12:]}"
    connection = await aio_pika.connect(url)
    async with connection:
        sending, receiving = await connection.channel(on_return_raises=True), await connection.channel()
        await receiving.set_qos(_PREFETCH)
        queue = await _queue(receiving, name)

        async def seen(message: Any) -> None:
            heard(message.body.decode())
            await message.ack()

        async def publish(text: str) -> None:
            message = aio_pika.Message(text.encode(), delivery_mode=aio_pika.DeliveryMode.PERSISTENT)
            await sending.default_exchange.publish(message, name)

        await queue.consume(seen)
        yield publish


async def _publish(url: str, messages: list[Message]) -> Sample:
    from tidewire.config import open_transport

    topic = f"t{UUID7Ids().event_id()[-12:]}"
    async with open_transport(url) as transport:
        await transport.provision([TopicSpec(topic, _LANES)], [GroupSpec("bench", [topic])])
        mine = _renamed(messages, topic)
        await transport.publish(mine[:1])

        async def all_of_them() -> None:
            for start in range(0, len(mine), _BATCH):
                receipts = await transport.publish(mine[start : start + _BATCH])
                assert all(receipt.ok for receipt in receipts)

        return await counted(len(mine), all_of_them)


async def _native_publish(url: str, messages: list[Message]) -> Sample:
    """Persistent, mandatory, confirmed: a hundred at a time."""
    import aio_pika

    topic = f"n{UUID7Ids().event_id()[-12:]}"
    connection = await aio_pika.connect(url)
    async with connection:
        channel = await connection.channel(on_return_raises=True)
        for number in range(_LANES):
            await _queue(channel, f"{topic}.{number}")
        return await counted(len(messages), partial(_native_fill, channel, topic, messages))


async def _native_fill(channel: Any, topic: str, messages: list[Message]) -> None:
    import aio_pika

    for start in range(0, len(messages), _BATCH):
        await asyncio.gather(
            *(
                channel.default_exchange.publish(
                    aio_pika.Message(
                        one.body,
                        headers=dict(one.headers),
                        content_type="application/json",
                        delivery_mode=aio_pika.DeliveryMode.PERSISTENT,
                    ),
                    f"{topic}.{place % _LANES}",
                )
                for place, one in enumerate(messages[start : start + _BATCH])
            )
        )


async def _queue(channel: Any, name: str) -> Any:
    arguments = {"x-queue-type": "quorum", "x-single-active-consumer": True}
    return await channel.declare_queue(name, durable=True, arguments=arguments)
