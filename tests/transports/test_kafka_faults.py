"""Real trouble with a real Kafka: silence in one direction, a slow network, what is taken away, a full disk."""

from __future__ import annotations

import asyncio
import os
import shutil
import subprocess
from collections.abc import Callable, Collection, Iterator
from datetime import timedelta
from pathlib import Path

import kafka_server as kafka
import pytest
from confluent_kafka.admin import (
    AclBinding,
    AclOperation,
    AclPermissionType,
    AdminClient,
    ResourcePatternType,
    ResourceType,
)
from kafka_proxy import Proxy, proxy
from test_kafka_threads import name

from tidewire import Options, Service, event, running
from tidewire.errors import TransportRefused, TransportUnavailable
from tidewire.model import Delivery, GroupSpec, LaneEvent, Message, Receipt, Subscription, Topic, TopicSpec
from tidewire.transports.kafka import KafkaTransport, open_kafka_transport

SECOND = timedelta(seconds=1)
KEYS = 5
PATIENCE = 50.0


def numbers(end: int) -> list[str]:
    """Return the ids of the first events of a `Traffic`."""
    return [str(number) for number in range(end)]


class Traffic:
    """Events of five keys on a topic of their own, a group that reads it, and what has come of it."""

    def __init__(self, transport: KafkaTransport) -> None:
        self.transport = transport
        self.topic, self.group = name(), name()
        self.seen: list[Delivery] = []
        self.doubt = asyncio.Event()  # something was not stored at once
        self._count = 0

    async def provision(self) -> None:
        """Make the topic and the group."""
        await self.transport.provision([TopicSpec(self.topic, 2)], [GroupSpec(self.group, [self.topic])])

    def messages(self, number: int) -> list[Message]:
        """Return the next events."""
        self._count += number
        return [
            Message(Topic(self.topic), str(one), "test", f"k{one % KEYS}", {"ce-type": "a.b"}, b"x" * 500)
            for one in range(self._count - number, self._count)
        ]

    async def publish(self, number: int) -> None:
        """Publish events until each is stored."""
        rest = self.messages(number)
        while rest:
            receipts = await self.attempt(rest)
            rest = [one for one, receipt in zip(rest, receipts, strict=True) if not receipt.ok]

    async def attempt(self, messages: list[Message]) -> list[Receipt]:
        """Publish once; whoever is not reached has stored nothing."""
        try:
            receipts = [*await self.transport.publish(messages)]
        except TransportUnavailable:
            receipts = [Receipt(one.id, "rejected", "unavailable") for one in messages]
        if not all(receipt.ok for receipt in receipts):
            self.doubt.set()
        return receipts

    async def consume(self, ids: Collection[str]) -> None:
        """Receive and ack until all of these events have come."""
        missing = set(ids)
        wanted = Subscription(
            self.group, [self.topic], name(), ordering="key", prefetch=64, lease=6 * SECOND, grace=SECOND
        )
        while missing:
            try:
                async with self.transport.subscribe(wanted) as receiver:
                    while missing:
                        found = await receiver.receive(50, SECOND / 5)
                        deliveries = [one for one in found if not isinstance(one, LaneEvent)]
                        self.seen += deliveries
                        missing -= {one.message.id for one in deliveries}
                        await receiver.settle(ack=deliveries)
            except TransportUnavailable:
                self.doubt.set()  # the membership is made anew, as the runtime does

    def demand_order(self) -> None:
        """The first occurrences of each key are in order."""
        first = dict.fromkeys(int(one.message.id) for one in self.seen)
        for key in range(KEYS):
            numbers = [number for number in first if number % KEYS == key]
            assert sorted(numbers) == numbers


@pytest.fixture
def through(kafka_server: kafka.KafkaServer) -> Iterator[tuple[str, Proxy]]:
    """The URL of the broker behind a proxy, and the proxy."""
    with proxy(kafka_server.proxy_port, kafka_server.behind_port) as between:
        yield f"kafka://127.0.0.1:{kafka_server.proxy_port}?timeout=2", between


@pytest.mark.parametrize("word", ["deaf", "quiet"])
def test_silence_in_one_direction_is_got_over(through: tuple[str, Proxy], word: str) -> None:
    """When the broker hears nobody, or nobody hears the broker, publishes end in time, undecided; afterwards all of
    it is there, and every key in order."""
    url, between = through

    async def scenario() -> None:
        async with open_kafka_transport(url) as transport, asyncio.timeout(PATIENCE), asyncio.TaskGroup() as tasks:
            traffic = Traffic(transport)
            await traffic.provision()
            tasks.create_task(traffic.consume(numbers(90)))
            await traffic.publish(30)
            await asyncio.to_thread(between.say, word)
            traffic.doubt.clear()
            publishing = tasks.create_task(traffic.publish(30))
            await traffic.doubt.wait()
            await asyncio.to_thread(between.say, "go")
            await publishing
            await traffic.publish(30)
        traffic.demand_order()

    asyncio.run(scenario())


def test_a_slow_network_only_takes_longer(through: tuple[str, Proxy]) -> None:
    """At 20 kB a second each way everything comes, once and in order, and no lane is lost."""
    url, between = through

    async def scenario() -> None:
        async with open_kafka_transport(f"{url}0") as transport, asyncio.timeout(PATIENCE):
            traffic = Traffic(transport)
            await traffic.provision()
            await traffic.publish(10)
            async with asyncio.TaskGroup() as tasks:
                tasks.create_task(traffic.consume(numbers(60)))
                await asyncio.to_thread(between.say, "slow")
                await traffic.publish(50)
            await asyncio.to_thread(between.say, "go")
        assert 60 == len(traffic.seen)
        assert 2 >= len({(one.lane, one.epoch) for one in traffic.seen})
        traffic.demand_order()

    asyncio.run(scenario())


def deny_reading(server: kafka.KafkaServer, topic: str) -> None:
    """Let the user "limited" read *topic* no more."""
    place = (ResourceType.TOPIC, topic, ResourcePatternType.LITERAL)
    binding = AclBinding(*place, "User:limited", "*", AclOperation.READ, AclPermissionType.DENY)
    admin = AdminClient({"bootstrap.servers": server.address})
    for future in admin.create_acls([binding]).values():
        future.result(10.0)


def delete(server: kafka.KafkaServer, topic: str) -> None:
    """Delete *topic* behind everybody's back."""
    admin = AdminClient({"bootstrap.servers": server.address})
    for future in admin.delete_topics([topic]).values():
        future.result(10.0)


@pytest.mark.parametrize("take_away", [deny_reading, delete])
def test_a_service_whose_topic_is_taken_away_ends_and_says_why(
    kafka_server: kafka.KafkaServer, take_away: Callable[[kafka.KafkaServer, str], None]
) -> None:
    """A topic that is deleted, or may not be read any more, ends a running service with its name: it never waits in
    silence."""
    topic = name()

    @event(f"{topic}.asked", key="number")
    class Asked:
        number: str

    async def scenario() -> None:
        service, seen = Service(name()), asyncio.Event()

        @service.on(Asked, on_dead_letter="continue")
        async def answer(asked: Asked) -> None:
            seen.set()

        url = f"kafka://limited:{kafka.USERS['limited']}@127.0.0.1:{kafka_server.password_port}?sasl=PLAIN&tls=false"
        async with open_kafka_transport(kafka_server.url) as maker:
            await maker.provision([TopicSpec(topic, 2)], [GroupSpec(service.name, [topic])])
        options = Options(lanes=2, relay=False, provision=False)
        async with (
            asyncio.timeout(PATIENCE),
            open_kafka_transport(url) as transport,
            running(service, transport=transport, options=options) as app,
        ):
            await app.publisher.publish(Asked("1"))
            await seen.wait()
            await asyncio.to_thread(take_away, kafka_server, topic)
            await asyncio.Event().wait()  # until the service ends by itself

    with pytest.raises(TransportRefused, match=topic):
        asyncio.run(scenario())


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 40 MiB."""
    if os.geteuid() or shutil.which("mount") is None:
        pytest.skip("not proven: a full disk: only root may mount a small file system")
    place = tmp_path / "disk"
    place.mkdir()
    done = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=40m", "tidewire-test", str(place)], capture_output=True)
    if done.returncode:
        pytest.skip(f"not proven: a full disk: {done.stderr.decode().strip()}")
    yield place
    subprocess.run(["umount", "-l", str(place)], check=True)


def test_a_broker_whose_disk_is_full_loses_nothing_that_it_confirmed(small_disk: Path) -> None:
    """A broker ends when its disk is full. With room again it has everything that it had confirmed, in order."""
    server = kafka.KafkaServer(small_disk / "kafka")
    try:
        server.create()
        server.start()
    except kafka.NoServer as error:
        server.remove()
        pytest.skip(f"not proven: needs an Apache Kafka server: {error}")
    stored: list[str] = []

    async def fill() -> tuple[str, str]:
        async with open_kafka_transport(f"{server.url}?timeout=3") as transport, asyncio.timeout(PATIENCE):
            traffic = Traffic(transport)
            await traffic.provision()
            while not traffic.doubt.is_set():
                batch = [Message(one.to, one.id, "test", one.key, one.headers, os.urandom(100_000))
                         for one in traffic.messages(20)]  # fmt: skip
                stored.extend(receipt.id for receipt in await traffic.attempt(batch) if receipt.ok)
            return traffic.topic, traffic.group

    async def read(topic: str, group: str) -> None:
        async with open_kafka_transport(server.url) as transport, asyncio.timeout(PATIENCE):
            traffic = Traffic(transport)
            traffic.topic, traffic.group = topic, group
            await traffic.consume(stored)
            traffic.demand_order()

    try:
        topic, group = asyncio.run(fill())
        server.kill()
        subprocess.run(["mount", "-o", "remount,size=120m", str(small_disk)], check=True)
        server.start()
        asyncio.run(read(topic, group))
        assert len(stored) > 50
    finally:
        server.remove()
