"""Section I: topology."""

# ruff: noqa: SIM300  (the expected value stands on the left)

from __future__ import annotations

import asyncio
from datetime import timedelta

import msgspec

from tidewire.errors import ConfigurationError
from tidewire.model import Change, DeadChannel, GroupSpec, InboxChannel, Topic, TopicSpec
from tidewire.testing.transports.bench import Bench, ids, raises


async def test_provision_idempotent_and_concurrent(bench: Bench) -> None:
    """CF-97: ten clients that provision the same at once all succeed, and each thing is made once."""
    topics = [TopicSpec(bench.name(f"topic-{number}"), 3) for number in range(5)]
    groups = [GroupSpec(bench.name(f"group-{number}"), [topic.name for topic in topics]) for number in range(3)]
    clients = [await bench.open() for _ in range(10)]
    async with asyncio.TaskGroup() as tasks:
        running = [tasks.create_task(client.provision(topics, groups)) for client in clients]
    changes: list[Change] = [change for one in running for change in one.result()]
    assert 80 == len(changes)
    assert 8 == sum(change.kind == "create" for change in changes)
    assert 72 == sum(change.kind == "unchanged" for change in changes)
    again = await bench.transport.provision(topics, groups)
    assert ["unchanged"] * 8 == [change.kind for change in again]


async def test_provision_conflict_detected(bench: Bench) -> None:
    """CF-98: other settings for what exists are a conflict that says why; what exists stays as it is."""
    await bench.provision(lanes=4)
    for other in (
        TopicSpec(bench.topic, 5),
        TopicSpec(bench.topic, 4, retention=timedelta(days=1)),
        TopicSpec(bench.topic, 4, size_bytes_max=1000),
    ):
        (change,) = await bench.transport.provision([other], [])
        assert "conflict" == change.kind
        assert change.detail
    (change,) = await bench.transport.provision([], [GroupSpec(bench.name("lost"), [bench.name("nowhere")])])
    assert "conflict" == change.kind
    assert bench.name("nowhere") in change.detail
    (change,) = await bench.transport.provision([TopicSpec(bench.topic, 4)], [])
    assert "unchanged" == change.kind
    async with bench.member() as reader:
        await reader.until_owner(4)


async def test_provision_adds_a_topic_to_a_group(bench: Bench) -> None:
    """CF-98: a group that is to read one topic more does so; one that is named with fewer keeps all."""
    await bench.provision()
    other, group = bench.name("refunds"), bench.name("billing")
    (_, change) = await bench.transport.provision([TopicSpec(other, 1)], [GroupSpec(group, [bench.topic, other])])
    assert "create" == change.kind
    (change,) = await bench.transport.provision([], [GroupSpec(group, [other])])
    assert "unchanged" == change.kind
    messages = [*bench.messages(1), *bench.messages(1, to=Topic(other))]
    await bench.publish(messages)
    both = msgspec.structs.replace(bench.subscription(), topics=[bench.topic, other])
    async with bench.member(subscription=both) as reader:
        assert sorted(ids(messages)) == sorted(ids(await reader.consume(2)))


async def test_dry_run_changes_nothing(bench: Bench) -> None:
    """CF-99: a dry run says what would be made and makes nothing."""
    topics, groups = [TopicSpec(bench.topic, 2)], [GroupSpec(bench.name("billing"), [bench.topic])]
    for _ in range(2):
        changes = await bench.transport.provision(topics, groups, dry_run=True)
        assert ["create", "create"] == [change.kind for change in changes]
    (receipt,) = await bench.transport.publish(bench.messages(1))
    assert ("rejected", "unknown_topic") == (receipt.status, receipt.reason)


async def test_names_roundtrip_and_do_not_collide(bench: Bench) -> None:
    """CF-101: names that differ in dots, hyphens or at their end are different things, in all three channels."""
    words = ["a.b", "a-b", "ab", "a.b.c", "a.b-c", "a-b.c", "x" * 40 + "a", "x" * 40 + "b", "a.inbox", "a.dead", "a"]
    topics = [bench.name(word) for word in words]
    group = bench.name("g.inbox")
    await bench.transport.provision([TopicSpec(name, 1) for name in topics], [GroupSpec(group, topics)])
    for topic in topics:
        await bench.publish(
            [
                *bench.messages(1, to=Topic(topic)),
                *bench.messages(2, to=InboxChannel(topic, group)),
                *bench.messages(3, to=DeadChannel(topic, group)),
            ]
        )
    for topic in topics:
        counts = await bench.inspector.stats(topic, group)
        assert (3, 3) == (counts.ready, counts.dead), f"{topic} shares a place with another one"
        letters = await bench.inspector.browse(DeadChannel(topic, group))
        assert {DeadChannel(topic, group)} == {one.message.to for one in letters}
        if bench.capabilities.replay:
            browsed = await bench.inspector.browse(Topic(topic))
            assert [Topic(topic)] == [one.message.to for one in browsed]


async def test_subscribe_to_unknown_topic_refused(bench: Bench) -> None:
    """CF-4: a member that asks for a topic which does not exist is refused at once, by name."""
    await bench.provision()
    wanted = msgspec.structs.replace(bench.subscription(), topics=[bench.topic, bench.name("order")])
    with raises(ConfigurationError) as caught:
        async with bench.transport.subscribe(wanted):
            pass
    assert bench.name("order") in str(caught.error)


async def test_publish_after_provision_reaches_group_made_by_another_client(bench: Bench) -> None:
    """CF-5: a group that one client has made gets what another client publishes from then on."""
    await bench.provision()
    publisher = await bench.open()
    await publisher.publish(bench.messages(1))
    await bench.transport.provision([], [GroupSpec(bench.name("late"), [bench.topic], "latest")])
    messages = bench.messages(5)
    await publisher.publish(messages)
    async with bench.member("late") as reader:
        assert ids(messages) == ids(await reader.consume(5))
        await reader.silence(0.05)
