"""What the Kafka transport does in threads: it needs none of the event loop's, and silence is no answer."""

from __future__ import annotations

import asyncio
import threading

import pytest
from kafka_server import KafkaServer

from tidewire import Options, Service, event, running
from tidewire.chance import UUID7Ids
from tidewire.clock import SystemClock
from tidewire.errors import TransportUnavailable
from tidewire.model import GroupSpec, Topic, TopicSpec
from tidewire.transports.kafka import open_kafka_transport
from tidewire.transports.kafka.asking import Asker, Span
from tidewire.transports.kafka.library import NewTopic
from tidewire.transports.kafka.settings import settings_of

POOL_MAX = 40  # more than the event loop ever has threads on a machine of tests


def name() -> str:
    """Return a name that nobody else uses."""
    return f"t{UUID7Ids().event_id()[-12:]}"


def test_handlers_that_fill_the_loops_threads_delay_nobody(kafka_url: str) -> None:
    """With every thread of the loop in the hands of handlers others settle, questions are answered, and all of it
    ends in good order (AS7)."""
    topic = name()

    @event(f"{topic}.asked", key="number")
    class Asked:
        number: str
        slow: bool

    async def scenario() -> None:
        service, free = Service(name(), concurrency=POOL_MAX + 10), threading.Event()
        begun = {True: asyncio.Semaphore(0), False: asyncio.Semaphore(0)}

        @service.on(Asked, on_dead_letter="continue")
        async def answer(asked: Asked) -> None:
            begun[asked.slow].release()
            if asked.slow:
                await asyncio.to_thread(free.wait)

        options = Options(lanes=2, relay=False)
        async with (
            open_kafka_transport(kafka_url) as transport,
            asyncio.timeout(40),
            running(service, transport=transport, options=options) as app,
        ):
            try:
                for slow, number in ((True, POOL_MAX), (False, 20)):
                    await app.publisher.publish_all([Asked(f"{slow}-{one}", slow) for one in range(number)])
                    for _ in range(number):
                        await begun[slow].acquire()
                stats = await transport.stats(topic, service.name)
                while (stats.ready, stats.in_flight) != (0, POOL_MAX):
                    await asyncio.sleep(0.02)
                    stats = await transport.stats(topic, service.name)
            finally:
                free.set()

    asyncio.run(scenario())


def test_a_topic_that_nobody_answered_for_is_no_conflict(kafka_server: KafkaServer) -> None:
    """A broker that stands still while topics are created has not refused them: it is unavailable, and later they are
    made."""

    async def scenario() -> None:
        asker, wanted = Asker(settings_of(f"{kafka_server.url}?timeout=1"), name(), SystemClock()), name()
        await asker.open()
        try:
            kafka_server.pause()
            try:
                with pytest.raises(TransportUnavailable):
                    await asker.create([NewTopic(wanted, 1, 1)])
            finally:
                kafka_server.resume()
            async with asyncio.timeout(20):
                while wanted not in await asker.partitions():
                    try:
                        await asker.create([NewTopic(wanted, 1, 1)])
                    except TransportUnavailable:
                        await asyncio.sleep(0.1)
        finally:
            await asker.close()

    asyncio.run(scenario())


def test_a_question_that_is_given_up_ends_at_once(kafka_server: KafkaServer) -> None:
    """Who cancels a read of a broker that stands still goes on, and can close, long before the read's own time."""

    async def scenario() -> None:
        topic = name()
        asker = Asker(settings_of(f"{kafka_server.url}?timeout=30"), name(), SystemClock())
        await asker.open()
        await asker.create([NewTopic(topic, 1, 1)])
        kafka_server.pause()
        try:
            async with asyncio.timeout(10):
                with pytest.raises(TimeoutError):
                    async with asyncio.timeout(0.3):
                        await asker.read({topic: Topic(topic)}, {(topic, 0): Span(0, 1, 1)})
                await asker.close()
        finally:
            kafka_server.resume()

    asyncio.run(scenario())


def test_questions_about_groups_are_answered_soon_after_the_broker_died(kafka_server: KafkaServer) -> None:
    """After `kill -9` of the broker a transport that stayed open hears of every group again in seconds, twice."""
    pairs = [(name(), name()) for _ in range(5)]  # more than are asked at once

    async def scenario() -> None:
        async with open_kafka_transport(kafka_server.url) as transport:
            await transport.provision(
                [TopicSpec(topic, 1) for topic, _ in pairs], [GroupSpec(group, [topic]) for topic, group in pairs]
            )
            for _ in range(2):
                kafka_server.kill()
                kafka_server.start()  # in this thread: the broker ends with the one that started it
                async with asyncio.timeout(20):
                    await asyncio.gather(*(transport.stats(topic, group) for topic, group in pairs))

    asyncio.run(scenario())
