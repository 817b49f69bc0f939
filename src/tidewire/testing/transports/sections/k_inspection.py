"""Section K: inspection, search and audit."""

# ruff: noqa: SIM300  (the expected value stands on the left)

from __future__ import annotations

import asyncio

import msgspec

from tidewire.errors import TransportRefused
from tidewire.model import Act, DeadChannel, Found, InboxChannel, Stats, Topic
from tidewire.testing.transports.bench import Bench, eventually, raises


def _four(stats: Stats) -> tuple[int | None, ...]:
    return stats.ready, stats.in_flight, stats.delayed, stats.dead


async def _expect(
    bench: Bench, wanted: tuple[int, int, int, int], *, group: str = "billing", released: int = 0
) -> None:
    """Demand that ready, in flight, delayed and dead are as *wanted*, soon.

    What a member has *released* it may keep and hand out again, where a broker would lose its place: in flight then.
    """
    seen: list[tuple[int | None, ...]] = []
    ready, in_flight, *rest = wanted

    async def right() -> bool:
        seen.append(_four(await bench.stats(group)))
        return seen[-1] in (wanted, (ready - released, in_flight + released, *rest))

    await eventually(right, f"the counts are {wanted}", seen=seen, within=5.0)


async def test_stats_match_known_state(bench: Bench) -> None:
    """CF-108: after a script of publishes, settles, delays and dead letters the counts are exact."""
    await bench.provision("billing", "shipping", lanes=2)
    await _expect(bench, (0, 0, 0, 0))
    inbox = bench.inbox()
    await bench.publish(bench.messages(10, keys=["a", "b", "c"]))
    await bench.publish(bench.messages(2, to=inbox))
    await bench.publish(bench.messages(1, to=inbox, due=bench.now_us() + 60_000_000))
    await _expect(bench, (12, 0, 1, 0))
    await _expect(bench, (10, 0, 0, 0), group="shipping")
    async with bench.member() as reader:
        found = await reader.take(6)
        await _expect(bench, (6, 6, 1, 0))
        await reader.ack(found[:2])
        await reader.move(found[2], [msgspec.structs.replace(found[2].message, to=bench.dead())])
        await _expect(bench, (6, 3, 1, 1))
        await reader.release(found[3:4], counted=False)
        await _expect(bench, (7, 2, 1, 1), released=1)
    await _expect(bench, (9, 0, 1, 1))
    await _expect(bench, (10, 0, 0, 0), group="shipping")


async def test_stats_none_when_unknown_never_negative(bench: Bench) -> None:
    """CF-109: a count is a number from 0 up or None, whatever was settled twice, released or left."""
    await bench.provision()
    await bench.publish(bench.messages(3))
    async with bench.member() as reader:
        found = await reader.take(3)
        await reader.receiver.settle(ack=[*found, *found])
        await reader.receiver.settle(ack=found)
    for number in (*_four(await bench.stats()), (await bench.stats()).oldest_ready):
        assert number is None or number >= 0
    assert (await bench.stats()).oldest_ready is None
    with raises(TransportRefused):
        await bench.stats("nobody")


async def test_stats_cheap(bench: Bench) -> None:
    """CF-110: the counts of a topic with a backlog take less than 50 ms and do not disturb a member."""
    await bench.provision()
    for _ in range(5):
        await bench.publish(bench.messages(1000, keys=[f"k{number}" for number in range(50)]))
    loop = asyncio.get_running_loop()
    async with bench.member() as reader:
        found = await reader.take(100)
        took: list[float] = []
        for _ in range(5):
            start = loop.time()
            stats = await bench.stats()
            took.append(loop.time() - start)
            assert (4900, 100) == (stats.ready, stats.in_flight)
        await reader.ack(found)
    assert min(took) < 0.05, f"{took}"  # the quickest tells the cost, the others who else is at work


async def test_oldest_ready_age(bench: Bench) -> None:
    """CF-111: the age of the oldest ready message is that of the first one that nobody has."""
    await bench.provision(lanes=1)
    before = bench.now_us()
    await bench.publish(bench.messages(1))
    middle = bench.now_us()
    await asyncio.sleep(0.05)
    await bench.publish(bench.messages(1))
    after = bench.now_us()
    oldest = (await bench.stats()).oldest_ready
    if oldest is None:  # what a broker of queues cannot tell of its own, its members may
        bench.need(replay=bench.capabilities.replay)
    assert oldest is not None
    assert before <= oldest <= middle
    async with bench.member() as reader:
        found = await reader.take(1)
        oldest = (await bench.stats()).oldest_ready
        assert oldest is not None
        assert middle <= oldest <= after
        await reader.release(found)  # which a member may keep to hand out again
        assert before <= ((await bench.stats()).oldest_ready or 0) <= after


async def test_topics_are_described(bench: Bench) -> None:
    """K-01: every topic is named with its lanes, what it holds if it is a log, and the places and times of its ends."""
    await bench.provision(lanes=3, retention=None)
    (empty,) = [topic for topic in await bench.inspector.topics() if topic.name == bench.topic]
    assert (3, None, None, None) == (empty.lanes, empty.retention, empty.first, empty.newest_at)
    assert empty.messages == 0 or (empty.messages is None and not bench.capabilities.replay)
    bench.need(replay=bench.capabilities.replay)  # else the broker keeps nothing of a topic that could be told of
    before = bench.now_us()
    await bench.publish(bench.messages(4, keys=["a", "b"]))
    (full,) = [topic for topic in await bench.inspector.topics() if topic.name == bench.topic]
    assert 4 == full.messages
    assert before - 1_000_000 <= (full.oldest_at or 0) <= (full.newest_at or 0) <= bench.now_us() + 1_000_000
    browsed = await bench.inspector.browse(Topic(bench.topic))
    assert {full.first, full.last} <= {one.position for one in browsed}


async def test_groups_are_described_with_their_owners(bench: Bench) -> None:
    """K-02: every group of a topic is listed with its counts, and each lane names its live member or nobody."""
    await bench.provision("billing", "shipping", lanes=2)
    await bench.publish(bench.messages(3, keys=["a", "b", "c"]))
    found = await bench.inspector.groups(bench.topic)
    assert [bench.name("billing"), bench.name("shipping")] == [group.group for group in found]
    assert [3, 3] == [group.stats.ready for group in found]
    assert all(not group.owners for group in found)
    subscription = bench.subscription()
    async with bench.member(subscription=subscription) as reader:
        await reader.take(3)
        (billing, shipping) = await bench.inspector.groups(bench.topic)
        if billing.owners is not None:
            assert {subscription.member} == set(billing.owners.values())
            assert 2 == len(billing.owners)
            assert not shipping.owners
    assert not (await bench.inspector.groups(bench.topic))[0].owners
    assert {bench.topic} <= {group.topic for group in await bench.inspector.groups()}


def _told(found: list[Found]) -> dict[str, tuple[str, ...]]:
    """Return the states of each place, by the kind of place."""
    return {type(one.message.to).__name__: tuple(standing.state for standing in one.standings) for one in found}


async def test_an_event_is_found_with_how_far_each_group_is(bench: Bench) -> None:
    """K-03: settled by one group and waiting for another; a wait or a dead letter is found in its channel."""
    finder = bench.finder
    await bench.provision("billing", "shipping", lanes=1)
    first, second, third = bench.messages(3)
    await bench.publish([first, second, third])
    async with bench.member() as reader:
        one, two, three = await reader.take(3)
        assert {"Topic": ("waiting", "waiting")} == _told(list(await finder.find(first.id)))
        await reader.ack([one])
        later = msgspec.structs.replace(second, to=bench.inbox(), not_before=bench.now_us() + 60_000_000)
        await reader.move(two, [later])
        await reader.move(three, [msgspec.structs.replace(third, to=bench.dead())])
    (found,) = await finder.find(first.id)
    assert (first.body, first.source, Topic(bench.topic)) == (
        found.message.body,
        found.message.source,
        found.message.to,
    )
    assert {bench.name("billing"): "settled", bench.name("shipping"): "waiting"} == {
        standing.group: standing.state for standing in found.standings
    }
    assert {"Topic": ("settled", "waiting"), "InboxChannel": ("delayed",)} == _told(list(await finder.find(second.id)))
    assert {"Topic": ("settled", "waiting"), "DeadChannel": ("dead",)} == _told(list(await finder.find(third.id)))
    assert [] == list(await finder.find("no such id"))
    assert {InboxChannel, DeadChannel, Topic} == {
        type(one.message.to) for id in (second.id, third.id) for one in await finder.find(id)
    }


async def test_what_belongs_together_is_found(bench: Bench) -> None:
    """K-04: an event and everything with its id as correlation id, oldest first, and nothing else."""
    finder = bench.finder
    await bench.provision()
    cause, other, *effects = bench.messages(5)
    correlated = [
        msgspec.structs.replace(one, headers={**one.headers, "ce-correlationid": cause.id}) for one in effects
    ]
    for message in [cause, other, *correlated]:
        await bench.publish([message])
    found = await finder.related(cause.id)
    assert [cause.id, *(one.id for one in effects)] == [one.message.id for one in found]
    assert [cause.id, effects[0].id] == [one.message.id for one in await finder.related(cause.id, limit=2)]


async def test_acts_are_kept_in_order(bench: Bench) -> None:
    """K-05: an act that was noted is there for every client, unchanged, in order, behind the number asked for."""
    ledger = bench.ledger
    start = max((number for number, _ in await ledger.acts(limit=1_000_000)), default=0)
    acts = [
        Act(id=bench.name("job"), at=number, who="anna", verb="discard", topic=bench.topic, reason="a test", count=3)
        for number in range(3)
    ]
    for act in acts:
        await ledger.note(act)
    found = await ledger.acts(after=start)
    assert acts == [act for _, act in found if act.id == bench.name("job")]
    assert acts[1:] == [act for _, act in await ledger.acts(after=found[0][0]) if act.id == bench.name("job")]
