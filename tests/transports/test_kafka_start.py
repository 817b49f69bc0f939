"""What a service asks of Kafka when it starts."""

from __future__ import annotations

import asyncio
from datetime import timedelta

import pytest
from confluent_kafka.admin import AdminClient, NewTopic

from tidewire.chance import UUID7Ids
from tidewire.kit.looks import topics_there
from tidewire.model import DeadChannel, GroupSpec, Message, Subscription, TopicSpec
from tidewire.transports.kafka import open_kafka_transport


def test_a_service_looks_at_its_own_topics_alone(kafka_url: str) -> None:
    """How its topics are kept is asked without reading those of others, of which a cluster may have thousands."""
    space = f"t{UUID7Ids().event_id()[-12:]}"
    kept = [TopicSpec(f"{space}.a", 2, timedelta(days=3)), TopicSpec(f"{space}.b", 1, None)]

    async def scenario() -> None:
        async with open_kafka_transport(kafka_url) as transport:
            await transport.provision([*kept, TopicSpec(f"{space}.c", 1)], [])
            assert kept == await topics_there(transport, [f"{space}.a", f"{space}.b", f"{space}.none"])

    asyncio.run(scenario())


@pytest.mark.parametrize(
    ("log", "partitions", "config", "said"),
    [
        ("{0}.INBOX.billing", 2, {"cleanup.policy": "compact"}, "cleanup.policy=compact, which loses events"),
        ("{0}.INBOX.billing", 2, {}, "retention.ms=604800000, so Kafka removes what nobody has settled"),
        ("{0}.INBOX.billing", 3, {"retention.ms": "-1"}, "has 3 partitions, not 2"),
        ("{0}.DEAD.billing", 1, {"cleanup.policy": "compact,delete"}, "retention.ms=604800000"),
        ("{0}.DEAD.billing", 4, {"cleanup.policy": "compact"}, "has 4 partitions, not 1"),
        ("{0}.DEAD.billing", 1, {"cleanup.policy": "compact", "max.message.bytes": "1000"}, "takes 1000 bytes at most"),
        ("{0}", 2, {"retention.ms": "604800000", "max.message.bytes": "1000"}, "takes 1000 bytes at most"),
    ],
)
def test_what_others_made_and_would_lose_events_is_refused(
    kafka_url: str, log: str, partitions: int, config: dict[str, str], said: str
) -> None:
    """A topic or a channel that is there, and would drop what nobody has settled or refuse what fits into it, is a
    conflict that says so."""
    topic = f"t{UUID7Ids().event_id()[-12:]}.a"
    _make(kafka_url, NewTopic(log.format(topic), partitions, 1, config=config))

    async def scenario() -> None:
        async with open_kafka_transport(kafka_url) as transport:
            wanted = [TopicSpec(topic, 2)], [GroupSpec("billing", [topic])]
            conflicts = [one.detail for one in await transport.provision(*wanted) if one.kind == "conflict"]
            assert said in conflicts[0], conflicts

    asyncio.run(scenario())


def test_a_dead_channel_that_is_gone_is_made_anew(kafka_url: str) -> None:
    """A group whose dead channel somebody deleted is not complete: it is told, and ``--provision`` makes it again."""
    topic = f"t{UUID7Ids().event_id()[-12:]}.a"
    dead = f"{topic}.DEAD.billing"

    async def scenario() -> None:
        async with open_kafka_transport(kafka_url) as transport:
            wanted = [TopicSpec(topic, 2)], [GroupSpec("billing", [topic])]
            await transport.provision(*wanted)
            await asyncio.to_thread(_delete, kafka_url, dead)
        async with open_kafka_transport(kafka_url) as transport:
            assert [0] == [info.stats.dead for info in await transport.groups(topic)]  # it is seen all the same
            kinds = [
                [one.kind for one in await transport.provision(*wanted, dry_run=dry)] for dry in (True, False, False)
            ]
            assert [["unchanged", "create"], ["unchanged", "create"], ["unchanged", "unchanged"]] == kinds
            letter = Message(DeadChannel(topic, "billing"), "1", "s", None, {}, b"")
            assert [True] == [receipt.ok for receipt in await transport.publish([letter])]

    asyncio.run(scenario())


def test_a_group_that_has_members_may_get_another_topic(kafka_url: str) -> None:
    """Where a group begins on a topic is written down by whoever makes it there; where members of it are at work on
    another topic, that is left to them, and nobody's start ends by it."""
    space = f"t{UUID7Ids().event_id()[-12:]}"
    group = f"g{space}"
    first, second = f"{space}.a", f"{space}.b"

    async def scenario() -> None:
        async with open_kafka_transport(kafka_url) as transport, open_kafka_transport(kafka_url) as other:
            await transport.provision([TopicSpec(first, 1), TopicSpec(second, 1)], [GroupSpec(group, [first])])
            async with transport.subscribe(Subscription(group, [first], "one", "key")) as receiver:
                async with asyncio.timeout(60):
                    while not await receiver.receive(0, timedelta(seconds=1)):
                        pass
                assert ["create"] == [one.kind for one in await other.provision([], [GroupSpec(group, [second])])]

    asyncio.run(scenario())


def _make(url: str, topic: NewTopic) -> None:
    admin = AdminClient({"bootstrap.servers": url.removeprefix("kafka://")})
    admin.create_topics([topic])[topic.topic].result(30)


def _delete(url: str, topic: str) -> None:
    admin = AdminClient({"bootstrap.servers": url.removeprefix("kafka://")})
    admin.delete_topics([topic])[topic].result(30)
    while topic in admin.list_topics().topics:  # until the broker itself knows
        pass
