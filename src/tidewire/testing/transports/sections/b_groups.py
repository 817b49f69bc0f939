"""Section B: groups and delivery."""

# ruff: noqa: SIM300  (the expected value stands on the left)

from __future__ import annotations

import asyncio

import msgspec

from tidewire.model import GroupSpec, Topic, TopicSpec
from tidewire.testing.transports.bench import LEASE, Bench, Reader, consume_all, demand_key_order, ids, spread


async def test_single_consumer_gets_all(bench: Bench) -> None:
    """CF-16: one member gets every message, with equal body, headers, key, id and source."""
    await bench.provision()
    messages = bench.messages(1000, keys=["a", "b", None, "c"])
    await bench.publish(messages)
    async with bench.member() as reader:
        found = {one.message.id: one.message for one in await reader.consume(1000)}
    assert {one.id: one for one in messages} == found


async def test_two_groups_each_get_all(bench: Bench) -> None:
    """CF-17: each group gets its own copy of everything, whatever the other one does."""
    await bench.provision("billing", "shipping")
    messages = bench.messages(100)
    async with bench.member("billing") as billing, bench.member("shipping") as shipping:
        await bench.publish(messages)
        assert ids(messages) == ids(await billing.consume(100))
        assert ids(messages) == ids(await shipping.consume(100))


async def test_competing_consumers_share(bench: Bench) -> None:
    """CF-18: each message goes to one of four members, and each of them has some."""
    await bench.provision(lanes=8)
    readers = await bench.lives(4)
    if bench.capabilities.lanes:
        await spread(readers, 8)
    messages = bench.messages(200, keys=[f"k{number}" for number in range(64)])
    await bench.publish(messages)
    shares = await consume_all(readers, 200)
    assert sorted(ids(messages)) == sorted(ids(one for share in shares for one in share))
    assert all(shares), f"somebody got nothing: {[len(share) for share in shares]}"


async def test_topics_are_isolated(bench: Bench) -> None:
    """CF-19: a member of one topic never sees another topic's messages, though the group reads both."""
    other = bench.name("refunds")
    await bench.provision()
    group = bench.name("billing")
    await bench.transport.provision([TopicSpec(other, 2)], [GroupSpec(group, [other])])
    here, there = bench.messages(5), bench.messages(5, to=Topic(other))
    await bench.publish([*there, *here])
    async with bench.member() as reader:
        assert ids(here) == ids(await reader.consume(5))
        await reader.silence(0.1)
    both = msgspec.structs.replace(bench.subscription(), topics=[bench.topic, other])
    async with bench.member(subscription=both) as reader:
        assert ids(there) == ids(await reader.consume(5))


async def test_twenty_topics_concurrently(bench: Bench) -> None:
    """CF-20: one subscription may read twenty topics, and each is complete."""
    topics = [bench.name(f"topic-{number}") for number in range(20)]
    await bench.transport.provision(
        [TopicSpec(topic, 2) for topic in topics], [GroupSpec(bench.name("billing"), topics)]
    )
    messages = [one for topic in topics for one in bench.messages(10, to=Topic(topic))]
    await bench.publish(messages)
    everything = msgspec.structs.replace(bench.subscription(), topics=topics)
    async with bench.member(subscription=everything) as reader:
        found = await reader.consume(200)
    for topic in topics:
        wanted = ids(one for one in messages if one.to == Topic(topic))
        assert wanted == ids(one for one in found if one.message.to == Topic(topic))


async def test_group_provisioned_but_not_running_keeps_backlog(bench: Bench) -> None:
    """CF-21: a group that was provisioned and never ran has its full backlog at its first start."""
    await bench.provision("billing", "shipping")
    messages = bench.messages(30)
    await bench.publish(messages)
    async with bench.member("billing") as reader:
        await reader.consume(30)
    async with bench.member("shipping") as reader:
        assert ids(messages) == ids(await reader.consume(30))


async def test_group_start_latest_sees_only_new(bench: Bench) -> None:
    """CF-22: a new group that starts at the latest sees what is published after it joined, and nothing older."""
    await bench.transport.provision([TopicSpec(bench.topic, 2)], [])
    await bench.publish(bench.messages(3))
    latest = msgspec.structs.replace(bench.subscription(), start="latest")
    async with bench.member(subscription=latest) as reader:
        await reader.until_owner(2)
        new = bench.messages(2)
        await bench.publish(new)
        assert ids(new) == ids(await reader.consume(2))
        await reader.silence(0.1)


async def test_group_start_earliest_sees_history(bench: Bench) -> None:
    """CF-22: a new group that starts at the earliest sees what is retained."""
    bench.need(replay=bench.capabilities.replay)
    await bench.transport.provision([TopicSpec(bench.topic, 2)], [])
    messages = bench.messages(3)
    await bench.publish(messages)
    async with bench.member() as reader:
        assert ids(messages) == ids(await reader.consume(3))


async def test_consumer_joins_late_and_lanes_rebalance(bench: Bench) -> None:
    """CF-23: when a member joins a busy group, both own lanes, nothing is lost and each key keeps its order."""
    bench.need(lanes=bench.capabilities.lanes)
    await bench.provision(lanes=6)
    messages = bench.messages(300, keys=[f"k{number}" for number in range(40)])
    await bench.publish(messages[:200])
    first, *_ = await bench.lives(1)
    await first.consume(50)
    second, *_ = await bench.lives(1)
    await consume_all([first, second], 100)
    await spread([first, second], 6, each=3)
    await bench.publish(messages[200:])
    await consume_all([first, second], 300 - len(bench.journal))
    assert sorted(ids(messages)) == sorted(ids(bench.journal))
    if bench.capabilities.order:
        demand_key_order(messages, bench.journal)


async def test_consumer_leaves_gracefully_takeover_fast(bench: Bench) -> None:
    """CF-24: what a leaving member had not settled reaches its peer within three seconds, at the same attempt."""
    await bench.provision()
    messages = bench.messages(10, keys=["a", "b", "c"])
    await bench.publish(messages)
    peer = await bench.open()
    async with bench.member() as reader:
        await reader.take(10)
    async with bench.member(transport=peer) as reader:
        found = await reader.consume(10, within=3.0)
    assert sorted(ids(messages)) == sorted(ids(found))
    assert {(1, False)} == {(one.attempt, one.suspect) for one in found}


async def test_leaving_waits_for_settles_no_longer_than_its_grace(bench: Bench) -> None:
    """CF-24: while a member leaves, what it has may still be settled; it waits its grace for that and no more."""
    await bench.provision()
    await bench.publish(bench.messages(2, keys=["a"]))
    loop = asyncio.get_running_loop()
    wanted = bench.calm()
    async with asyncio.TaskGroup() as tasks:
        async with bench.member(subscription=wanted) as reader:
            first, second = await reader.take(2)

            async def late() -> None:
                await asyncio.sleep(0.1)
                await reader.ack([first, second])

            tasks.create_task(late())
            start = loop.time()
        assert 0.1 <= loop.time() - start < 4.5, f"left after {loop.time() - start} s, not when all was settled"
    async with bench.member() as reader:
        await reader.silence(0.1)


async def test_consumer_killed_takeover(bench: Bench) -> None:
    """CF-25: what a killed member had comes back within its lease and five seconds, as attempt 2 and suspect."""
    bench.need(lease=bench.capabilities.lease)
    await bench.provision()
    messages = bench.messages(6, keys=["a", "b"])
    await bench.publish(messages)
    client = await bench.spawn()
    await client.join(bench.subscription())
    before = await Reader(client).take(6)
    await client.kill()
    assert {(1, False)} == {(one.attempt, one.suspect) for one in before}
    async with bench.member() as reader:
        found = await reader.consume(6, within=LEASE.total_seconds() + 5.0)
    assert sorted(ids(messages)) == sorted(ids(found))
    assert {(2, True)} == {(one.attempt, one.suspect) for one in found}
    epochs = {one.lane: one.epoch for one in before}
    assert all(one.epoch > epochs[one.lane] for one in found), "the epoch of a lane grows with its owner"


async def test_group_scales_to_zero_and_back(bench: Bench) -> None:
    """CF-26: what is published while nobody is there is delivered when somebody comes, and nothing else is."""
    await bench.provision()
    messages = bench.messages(60)
    for start in range(0, 60, 20):
        await bench.publish(messages[start : start + 20])
        async with bench.member() as reader:
            assert ids(messages[start : start + 20]) == ids(await reader.consume(20))


async def test_many_consumers_more_than_lanes(bench: Bench) -> None:
    """CF-27: members beyond the number of lanes stay idle, and take over when an owner is killed."""
    bench.need(lease=bench.capabilities.lease, lanes=bench.capabilities.lanes)
    await bench.provision(lanes=1)
    client = await bench.spawn()
    await client.join(bench.subscription())
    await Reader(client).until_owner(1)
    readers = await bench.lives(2)
    await bench.publish(bench.messages(3))
    for reader in readers:
        await reader.silence(0.1)
    await client.kill()
    shares = await consume_all(readers, 3)
    assert [0, 3] == sorted(len(share) for share in shares)
