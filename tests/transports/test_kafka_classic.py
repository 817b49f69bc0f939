"""The older protocol of groups on Kafka: what several members make of it, and a broker that has no other."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from datetime import timedelta

import kafka_server as kafka
import pytest
from test_conformance_kafka import OPENER
from test_kafka_threads import name

from tidewire import Options, Service, event, running
from tidewire.errors import TransportRefused, TransportUnavailable
from tidewire.model import GroupSpec, LaneEvent, Subscription, TopicSpec
from tidewire.protocols import Receiver
from tidewire.testing.transports import Faults, Site, run_case, spawn_client
from tidewire.testing.transports.sections import b_groups, c_order, d_settle
from tidewire.testing.transports.suite import Case
from tidewire.transports.kafka import open_kafka_transport

SECOND = timedelta(seconds=1)
CASES = (
    b_groups.test_competing_consumers_share,
    b_groups.test_consumer_joins_late_and_lanes_rebalance,
    b_groups.test_consumer_killed_takeover,
    b_groups.test_many_consumers_more_than_lanes,
    c_order.test_key_order_four_consumers,
    c_order.test_topic_and_inbox_copies_of_a_key_share_a_member,
    d_settle.test_paused_member_recovers,
    d_settle.test_stale_settle_is_lost_not_stolen,
)


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.__name__.removeprefix("test_"))
def test_members_of_the_older_protocol_keep_the_promises(kafka_server: kafka.KafkaServer, case: Case) -> None:
    """Members share lanes, hand them over, die and stand still by the older protocol too, and every key keeps its
    order."""
    url = f"{kafka_server.url}?timeout=3&protocol=classic"
    faults = Faults(spawn=lambda: spawn_client(OPENER, url))
    run_case(case, Site(open=lambda: open_kafka_transport(url), faults=faults, patience=15.0))


@pytest.fixture(scope="module")
def old_broker(kafka_server: kafka.KafkaServer) -> Iterator[kafka.KafkaServer]:
    """A broker that offers the older protocol only, allows no short sessions and one member for each group."""
    try:
        with kafka.private_kafka(
            group_coordinator_rebalance_protocols="classic",
            group_min_session_timeout_ms="6000",
            group_max_size="1",
        ) as server:
            yield server
    except kafka.NoServer as error:
        pytest.skip(f"not proven: needs an Apache Kafka server: {error}")


def test_a_broker_without_the_newer_protocol_is_recognised(old_broker: kafka.KafkaServer) -> None:
    """A service on a broker that has the older protocol alone joins, handles and ends, with no setting at all."""
    topic = name()

    @event(f"{topic}.asked", key="number")
    class Asked:
        number: str

    async def scenario() -> None:
        service, seen = Service(name()), asyncio.Semaphore(0)

        @service.on(Asked, on_dead_letter="continue")
        async def answer(asked: Asked) -> None:
            seen.release()

        options = Options(lanes=2, relay=False, lease=6 * SECOND)
        async with (
            open_kafka_transport(old_broker.url) as transport,
            asyncio.timeout(40),
            running(service, transport=transport, options=options) as app,
        ):
            await app.publisher.publish_all([Asked(str(number)) for number in range(20)])
            for _ in range(20):
                await seen.acquire()

    asyncio.run(scenario())


def membership(topic: str, group: str, lease: timedelta) -> Subscription:
    """Return a place in *group*."""
    return Subscription(group, [topic], name(), ordering="key", prefetch=16, lease=lease, grace=SECOND)


async def listen(receiver: Receiver) -> None:
    """Receive until the membership ends."""
    while True:
        await receiver.receive(1, SECOND)


async def heard(receiver: Receiver) -> str:
    """Return what is first told of a lane."""
    (one, *_) = await receiver.receive(0, 20 * SECOND)
    assert isinstance(one, LaneEvent)
    return one.kind


def test_a_lease_that_the_broker_does_not_allow_is_refused(old_broker: kafka.KafkaServer) -> None:
    """A session shorter than the broker's minimum is told with a hint, and is no member that waits in silence."""

    async def scenario() -> None:
        topic, group = name(), name()
        async with open_kafka_transport(old_broker.url) as transport, asyncio.timeout(30):
            await transport.provision([TopicSpec(topic, 1)], [GroupSpec(group, [topic])])
            async with transport.subscribe(membership(topic, group, 4 * SECOND)) as receiver:
                await listen(receiver)

    with pytest.raises(TransportRefused, match=r"group\.min\.session\.timeout\.ms"):
        asyncio.run(scenario())


def test_a_group_that_is_full_lets_another_in_later(old_broker: kafka.KafkaServer) -> None:
    """One member too many is told, and may try again: there is room when another leaves, as in a rolling restart."""

    async def scenario() -> None:
        topic, group = name(), name()
        async with open_kafka_transport(old_broker.url) as transport, asyncio.timeout(40):
            await transport.provision([TopicSpec(topic, 1)], [GroupSpec(group, [topic])])
            async with transport.subscribe(membership(topic, group, 6 * SECOND)) as first:
                assert "assigned" == await heard(first)
                with pytest.raises(TransportUnavailable, match="no more members"):
                    async with transport.subscribe(membership(topic, group, 6 * SECOND)) as second:
                        await listen(second)
            async with transport.subscribe(membership(topic, group, 6 * SECOND)) as third:
                assert "assigned" == await heard(third)

    asyncio.run(scenario())
