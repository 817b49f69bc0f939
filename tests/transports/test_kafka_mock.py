"""Kafka's brokers answer with errors, and hand leadership on: what librdkafka's mock cluster can be told to do."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta

import kafka_mock as mock
import pytest
from kafka_mock import MockCluster, mock_cluster

from tidewire.errors import TransportUnavailable
from tidewire.model import Delivery, LaneEvent, Message, Subscription, Topic
from tidewire.transports.kafka import KafkaTransport, open_kafka_transport
from tidewire.transports.kafka.names import dead_topic, inbox_topic

TOPIC, GROUP, LANES, KEYS = "shop.order", "billing", 2, 6
PATIENCE = 40.0


class Traffic:
    """A publisher that says everything again until it is stored, and a member that acks."""

    def __init__(self, transport: KafkaTransport) -> None:
        self.transport = transport
        self.seen: list[Delivery] = []
        self._count = 0

    async def publish(self, number: int) -> None:
        """Publish so many events, the next ones of each key, and return when they are stored."""
        rest = [self.message() for _ in range(number)]
        while rest:
            try:
                receipts = await self.transport.publish(rest)
            except TransportUnavailable:
                continue
            rest = [message for message, receipt in zip(rest, receipts, strict=True) if not receipt.ok]

    def message(self) -> Message:
        number, self._count = self._count, self._count + 1
        headers = {"ce-id": str(number), "ce-source": "test", "ce-type": "shop.order.placed"}
        return Message(Topic(TOPIC), str(number), "test", f"k{number % KEYS}", headers, b"{}")

    async def consume(self, number: int) -> None:
        """Receive and ack until so many different events have come."""
        async with self.transport.subscribe(subscription()) as receiver:
            while len({one.message.id for one in self.seen}) < number:
                found = await receiver.receive(50, timedelta(seconds=0.2))
                deliveries = [one for one in found if not isinstance(one, LaneEvent)]
                self.seen += deliveries
                try:
                    await receiver.settle(ack=deliveries)
                except TransportUnavailable:
                    continue  # what is not settled comes back to somebody

    def demand_order(self) -> None:
        """The first occurrences of each key are in order."""
        first = dict.fromkeys(int(one.message.id) for one in self.seen)
        for key in range(KEYS):
            numbers = [number for number in first if number % KEYS == key]
            assert sorted(numbers) == numbers


def subscription() -> Subscription:
    """Return a membership in the group."""
    second = timedelta(seconds=1)
    return Subscription(GROUP, [TOPIC], "m1", ordering="key", prefetch=64, lease=6 * second, grace=second)


@contextmanager
def cluster_with_topics() -> Iterator[MockCluster]:
    """Run a mock cluster with the topic and the channels of the group."""
    with mock_cluster() as cluster:
        for topic in (TOPIC, inbox_topic(TOPIC, GROUP)):
            cluster.make(topic, LANES)
        cluster.make(dead_topic(TOPIC, GROUP), 1)
        yield cluster


def run(act: Callable[[MockCluster], None], *, protocol: str = "consumer") -> Traffic:
    """Publish and consume; act; publish and consume again."""

    async def scenario(cluster: MockCluster) -> Traffic:
        url = f"kafka://{cluster.address}?timeout=5&protocol={protocol}"
        async with open_kafka_transport(url) as transport, asyncio.timeout(PATIENCE):
            traffic = Traffic(transport)
            await traffic.publish(60)
            async with asyncio.TaskGroup() as tasks:
                consuming = tasks.create_task(traffic.consume(240))
                for _ in range(3):
                    act(cluster)
                    await traffic.publish(60)
                await consuming
        return traffic

    with cluster_with_topics() as cluster:
        traffic = asyncio.run(scenario(cluster))
    assert 240 == len({one.message.id for one in traffic.seen})
    traffic.demand_order()
    return traffic


@pytest.mark.parametrize("protocol", ["consumer", "classic"])
def test_leaders_and_coordinators_that_move_lose_nothing(protocol: str) -> None:
    """CF-91: when what leads the partitions and what coordinates the group move three times, everything comes."""
    turn = iter((2, 3, 1))

    def move(cluster: MockCluster) -> None:
        broker = next(turn)
        for partition in range(LANES):
            cluster.lead(TOPIC, partition, broker)
        cluster.coordinate(GROUP, broker % 3 + 1)

    run(move, protocol=protocol)


@pytest.mark.parametrize(
    ("request_", "errors"),
    [
        (mock.FETCH, (mock.NOT_LEADER, mock.TIMED_OUT, mock.CUT)),
        (mock.OFFSET_COMMIT, (mock.NOT_COORDINATOR, mock.TIMED_OUT, mock.CUT)),
        (mock.OFFSET_FETCH, (mock.NOT_COORDINATOR, mock.CUT)),
        (mock.HEARTBEAT, (mock.NOT_COORDINATOR, mock.CUT)),
    ],
    ids=["fetch", "commit", "offsets", "heartbeat"],
)
def test_a_broker_that_answers_with_errors_loses_nothing(request_: int, errors: tuple[int, ...]) -> None:
    """What brokers say while they are moved, overloaded or cut off is waited out: everything comes, in order.

    Not for publishing: the mock stores what an idempotent producer sends whatever its sequence number is, where a
    real broker refuses a batch whose predecessor it has refused. The storms on real brokers are for that.
    """
    run(lambda cluster: cluster.fail(request_, *errors))


def test_a_slow_broker_is_waited_for() -> None:
    """With every answer of every broker a fifth of a second late the same comes, and nobody loses a lane."""

    def slow(cluster: MockCluster) -> None:
        for broker in (1, 2, 3):
            cluster.slow(broker, 200)

    traffic = run(slow)
    assert LANES == len({(one.lane, one.epoch) for one in traffic.seen})


@pytest.mark.parametrize(
    ("error", "reason"), [(10, "too_large"), (29, "forbidden"), (87, "invalid"), (mock.NOT_ENOUGH_REPLICAS, "")]
)
def test_a_broker_that_refuses_an_event_is_believed(error: int, reason: str) -> None:
    """What a broker refuses for good is rejected with its reason, once; what it refuses for now is tried again."""

    async def scenario(cluster: MockCluster) -> None:
        async with open_kafka_transport(f"kafka://{cluster.address}?timeout=5") as transport:
            traffic = Traffic(transport)
            await traffic.publish(2)
            cluster.fail(mock.PRODUCE, error)
            (receipt,) = await transport.publish([traffic.message()])
            assert ("rejected" if reason else "stored", reason) == (receipt.status, receipt.reason)
            await traffic.publish(2)

    with cluster_with_topics() as cluster:
        asyncio.run(scenario(cluster))
