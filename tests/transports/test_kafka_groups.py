"""Members of groups on Kafka that keep their name over restarts, by both of its protocols."""

from __future__ import annotations

import asyncio
from contextlib import AsyncExitStack
from datetime import timedelta

import pytest
from confluent_kafka import Consumer
from confluent_kafka.admin import (
    AclBinding,
    AclOperation,
    AclPermissionType,
    AdminClient,
    ResourcePatternType,
    ResourceType,
)
from kafka_server import USERS, KafkaServer
from test_kafka_threads import name

from tidewire.errors import TransportRefused, TransportUnavailable
from tidewire.model import GroupSpec, LaneEvent, Subscription, TopicSpec
from tidewire.protocols import Receiver
from tidewire.transports.kafka import open_kafka_transport

SECOND = timedelta(seconds=1)


class Group:
    """Members of one group on one topic, each with a client of its own."""

    def __init__(self, url: str, protocol: str) -> None:
        self.url = f"{url}?timeout=5&protocol={protocol}"
        self.topic, self.group = name(), name()

    async def join(self, stack: AsyncExitStack, instance: str) -> Receiver:
        """Join as *instance*."""
        transport = await stack.enter_async_context(open_kafka_transport(f"{self.url}&instance={instance}"))
        await transport.provision([TopicSpec(self.topic, 4)], [GroupSpec(self.group, [self.topic])])
        lease = 20 * SECOND
        wanted = Subscription(
            self.group, [self.topic], instance, ordering="key", prefetch=16, lease=lease, grace=SECOND
        )
        return await stack.enter_async_context(transport.subscribe(wanted))


async def lanes_of(receiver: Receiver, lanes: dict[str, int], number: int) -> dict[str, int]:
    """Listen until *number* lanes are ours; return them with their epochs."""
    while len(lanes) != number:
        for one in await receiver.receive(0, SECOND / 10):
            assert isinstance(one, LaneEvent)
            if one.kind == "assigned":
                lanes[one.lane] = one.epoch
            elif one.kind == "lost":
                lanes.pop(one.lane, None)
            else:
                await receiver.steer(drained=[one.lane])
                lanes.pop(one.lane, None)
    return lanes


async def settle_down(members: dict[str, Receiver], lanes: dict[str, dict[str, int]]) -> None:
    """Listen to two members until each has two of four lanes."""
    while [2, 2] != [len(lanes[one]) for one in members]:
        for one, receiver in members.items():
            try:
                async with asyncio.timeout(0.3):
                    await lanes_of(receiver, lanes[one], 2)
            except TimeoutError:
                continue


@pytest.mark.parametrize("protocol", ["consumer", "classic"])
def test_a_named_member_that_restarts_moves_no_lane(kafka_url: str, protocol: str) -> None:
    """Who ends and comes again under its name within the lease gets the lanes it had; the others hear of nothing."""

    async def scenario() -> None:
        group = Group(kafka_url, protocol)
        async with AsyncExitStack() as stack, asyncio.timeout(50):
            stays = await group.join(stack, "a")
            first = AsyncExitStack()
            members = {"a": stays, "b": await group.join(first, "b")}
            lanes: dict[str, dict[str, int]] = {"a": {}, "b": {}}
            await settle_down(members, lanes)
            had = set(lanes["b"])
            await first.aclose()
            again = await lanes_of(await group.join(stack, "b"), {}, 2)
            assert had == set(again)
            assert all(epoch > lanes["b"][lane] for lane, epoch in again.items())
            assert [] == [*await stays.receive(0, SECOND / 2)]

    asyncio.run(scenario())


def test_two_live_members_of_one_name_are_refused(kafka_url: str) -> None:
    """A second process under a name that is taken hears so, and does not wait in silence; the first one goes on."""

    async def scenario() -> None:
        group = Group(kafka_url, "consumer")
        async with AsyncExitStack() as stack, asyncio.timeout(30):
            first = await group.join(stack, "a")
            await lanes_of(first, {}, 4)
            second = await group.join(stack, "a")
            with pytest.raises(TransportUnavailable, match="instance ID is still used"):
                await lanes_of(second, {}, 5)  # it is told before it has any
            assert [] == [*await first.receive(0, SECOND / 10)]

    asyncio.run(scenario())


async def refused(url: str, group: Group) -> None:
    """Join at *url* and listen until the membership ends."""
    wanted = Subscription(group.group, [group.topic], "m", ordering="key", prefetch=16, lease=6 * SECOND, grace=SECOND)
    async with open_kafka_transport(url) as transport, transport.subscribe(wanted) as receiver:
        while True:
            await receiver.receive(1, SECOND)


@pytest.mark.parametrize("protocol", ["consumer", "classic"])
def test_who_may_not_read_as_a_group_hears_so(kafka_server: KafkaServer, protocol: str) -> None:
    """A member that the broker does not let into its group ends with the group's name, and never waits in silence."""
    group = Group(kafka_server.url, protocol)
    place = (ResourceType.GROUP, group.group, ResourcePatternType.LITERAL)
    binding = AclBinding(*place, "User:limited", "*", AclOperation.READ, AclPermissionType.DENY)
    admin = AdminClient({"bootstrap.servers": kafka_server.address})
    for future in admin.create_acls([binding]).values():
        future.result(10.0)
    limited = f"kafka://limited:{USERS['limited']}@127.0.0.1:{kafka_server.password_port}"

    async def scenario() -> None:
        async with open_kafka_transport(kafka_server.url) as transport:
            await transport.provision([TopicSpec(group.topic, 1)], [GroupSpec(group.group, [group.topic])])
        async with asyncio.timeout(30):
            await refused(f"{limited}?sasl=PLAIN&tls=false&protocol={protocol}", group)

    with pytest.raises(TransportRefused, match=group.group):
        asyncio.run(scenario())


def test_who_meets_a_group_of_another_kind_hears_so(kafka_server: KafkaServer) -> None:
    """Where members share lanes by a way that ours do not know, ours end with a hint, and never wait in silence."""
    group = Group(kafka_server.url, "classic")

    async def scenario() -> None:
        async with open_kafka_transport(group.url) as transport:
            await transport.provision([TopicSpec(group.topic, 1)], [GroupSpec(group.group, [group.topic])])
        settings = {"group.protocol": "classic", "partition.assignment.strategy": "range", "group.id": group.group}
        stranger = Consumer({"bootstrap.servers": kafka_server.address, **settings})
        try:
            stranger.subscribe([group.topic])
            while not stranger.assignment():
                await asyncio.to_thread(stranger.poll, 0.1)
            async with asyncio.timeout(30):
                await refused(group.url, group)
        finally:
            await asyncio.to_thread(stranger.close)

    with pytest.raises(TransportRefused, match="must all use the same protocol"):
        asyncio.run(scenario())
