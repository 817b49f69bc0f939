"""Section O: what operators rely on: where an event is and how far, who owns what, and that looking changes nothing."""

# ruff: noqa: SIM300  (the expected value stands on the left)

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from datetime import timedelta

import msgspec

from tidewire.errors import TransportClosed, TransportRefused
from tidewire.model import Act, DeadChannel, Delivery, Found, GroupSpec, InboxChannel, Message, Topic, TopicSpec
from tidewire.protocols import Finder
from tidewire.testing.transports.bench import LEASE, Bench, Reader, eventually, ids, raises

LATER = 60_000_000


def _states(found: Sequence[Found]) -> list[tuple[str, str]]:
    """Return the group and the state of each standing of each place."""
    return [(standing.group, standing.state) for one in found for standing in one.standings]


def _at(found: Sequence[Found], kind: type[Topic | InboxChannel | DeadChannel]) -> list[Found]:
    """Return those of *found* that lie in an address of this kind."""
    return [one for one in found if isinstance(one.message.to, kind)]


async def _expect(bench: Bench, finder: Finder, message: Message, wanted: str) -> None:
    """Demand that the one group is so far with *message*, where it was published, soon."""
    seen: list[object] = []

    async def right() -> bool:
        seen.append(_states(_at(await finder.find(message.id), Topic)))
        return [(bench.name("billing"), wanted)] == seen[-1]

    await eventually(right, f"{message.id} is {wanted}", seen=seen, within=5.0)


async def test_standings_know_what_was_settled_out_of_order(bench: Bench) -> None:
    """O-01: settled is what was settled, also in front of what is not; handed out is still waiting."""
    finder = bench.finder
    await bench.provision(lanes=1)
    messages = bench.messages(4)
    await bench.publish(messages)
    async with bench.member() as reader:
        found = await reader.take(3)
        await reader.ack([found[2], found[0]])
        for message, wanted in zip(messages, ["settled", "waiting", "settled", "waiting"], strict=True):
            await _expect(bench, finder, message, wanted)
        await reader.release(found[1:2], counted=False)
        await _expect(bench, finder, messages[1], "waiting")
        await reader.consume(2)
    for message in messages:
        await _expect(bench, finder, message, "settled")


async def test_a_group_that_starts_at_the_latest_has_nothing_to_do_with_the_past(bench: Bench) -> None:
    """O-02: what was published before such a group began is settled for it, and waits for the others."""
    finder = bench.finder
    await bench.provision("billing", lanes=1)
    (message,) = bench.messages(1)
    await bench.publish([message])
    late = msgspec.structs.replace(bench.subscription("shipping"), start="latest")
    async with bench.member(subscription=late):
        states = _states(await finder.find(message.id))
    assert [(bench.name("billing"), "waiting"), (bench.name("shipping"), "settled")] == states


async def test_what_was_released_with_a_delay_is_delayed(bench: Bench) -> None:
    """O-03: a message that was given back for later is delayed, and waits again when it is due."""
    finder = bench.finder
    await bench.provision(lanes=1)
    (message,) = bench.messages(1)
    await bench.publish([message])
    async with bench.member(subscription=msgspec.structs.replace(bench.subscription(), ordering="none")) as reader:
        found = await reader.take(1)
        await reader.release(found, delay=timedelta(milliseconds=500))
        await _expect(bench, finder, message, "delayed")
    await _expect(bench, finder, message, "waiting")


async def test_a_delayed_message_is_found_before_its_time(bench: Bench) -> None:
    """O-04: what waits for its time is delayed for every group, in its topic and in an inbox channel."""
    finder = bench.finder
    await bench.provision("billing", "shipping")
    due = bench.now_us() + LATER
    (public,) = bench.messages(1, due=due)
    (private,) = bench.messages(1, to=bench.inbox("shipping"), due=due)
    await bench.publish([public, private])
    both = [(bench.name("billing"), "delayed"), (bench.name("shipping"), "delayed")]
    assert both == _states(await finder.find(public.id))
    assert both[1:] == _states(await finder.find(private.id))
    assert [bench.inbox("shipping")] == [one.message.to for one in await finder.find(private.id)]


async def test_a_redrive_can_be_followed(bench: Bench) -> None:
    """O-05: dead, then waiting in the inbox channel, handed out, and gone: at each step it is found where it is."""
    finder = bench.finder
    await bench.provision(lanes=1)
    (message,) = bench.messages(1)
    await bench.publish([message])
    async with bench.member() as reader:
        (one,) = await reader.take(1)
        await reader.move(one, [msgspec.structs.replace(message, to=bench.dead())])
        letters = _at(await finder.find(message.id), DeadChannel)
        assert [(bench.name("billing"), "dead")] == _states(letters)
        browsed = await bench.inspector.browse(bench.dead())
        assert [letters[0].position] == [one.position for one in browsed]
    await bench.publish([msgspec.structs.replace(message, to=bench.inbox())])
    assert 1 == await bench.inspector.remove(bench.dead(), [letters[0].position])
    assert [] == _at(await finder.find(message.id), DeadChannel)
    waiting = [(bench.name("billing"), "waiting")]
    assert waiting == _states(_at(await finder.find(message.id), InboxChannel))
    async with bench.member() as reader:
        found = await reader.take(1)
        assert waiting == _states(_at(await finder.find(message.id), InboxChannel))
        await reader.ack(found)
    assert [] == _at(await finder.find(message.id), InboxChannel)


async def test_an_id_is_found_in_every_topic_and_of_every_source(bench: Bench) -> None:
    """O-06: the same id in two topics and of two sources is three messages; none is found by another id or by none."""
    finder = bench.finder
    await bench.provision()
    elsewhere, group = bench.name("returns"), bench.name("shipping")
    await bench.transport.provision([TopicSpec(elsewhere)], [GroupSpec(group, [elsewhere])])
    (message,) = bench.messages(1)
    twin = msgspec.structs.replace(message, source="suite/two")
    copy = msgspec.structs.replace(message, to=Topic(elsewhere))
    nameless = msgspec.structs.replace(message, id="", source="")
    for one in (message, twin, copy, nameless):
        await bench.publish([one])
    found = await finder.find(message.id)
    assert [message, twin, copy] == [one.message for one in found]
    assert [[bench.name("billing")], [bench.name("billing")], [group]] == [
        [standing.group for standing in one.standings] for one in found
    ]
    assert [message] == [one.message for one in await finder.find(message.id, limit=1)]
    assert [[], [], []] == [list(await finder.find(other)) for other in ("", message.id[:-1], message.id + "0")]


async def test_related_covers_topics_and_dead_channels(bench: Bench) -> None:
    """O-07: dead letters and what waits for its time belong to it; what another correlation id only begins with not."""
    finder = bench.finder
    await bench.provision()
    cause, effect, letter, later, other = bench.messages(5)
    mine = {"ce-correlationid": cause.id}
    effect = msgspec.structs.replace(effect, headers=mine)
    letter = msgspec.structs.replace(letter, headers=mine, to=bench.dead())
    later = msgspec.structs.replace(later, headers=mine, not_before=bench.now_us() + LATER)
    other = msgspec.structs.replace(other, headers={"ce-correlationid": cause.id + "0"})
    for one in (cause, effect, letter, later, other):
        await bench.publish([one])
    found = await finder.related(cause.id)
    assert ids([cause, effect, letter, later]) == [one.message.id for one in found]
    assert ids([cause, effect]) == [one.message.id for one in await finder.related(cause.id, limit=2)]
    assert [(bench.name("billing"), "dead")] == _states(_at(found, DeadChannel))
    assert [] == list(await finder.related(""))


async def test_owners_have_live_leases(bench: Bench) -> None:
    """O-08: a lane whose member has died has no owner once its lease has ended; another one appears with the lane."""
    bench.need(lease=bench.capabilities.lease)
    inspector = bench.inspector
    await bench.provision(lanes=2)
    first, second = bench.subscription(), bench.subscription()

    async def owners() -> set[str] | None:
        (group,) = await inspector.groups(bench.topic)
        return None if group.owners is None else set(group.owners.values())

    client = await bench.spawn()
    await client.join(first)
    await Reader(client).until_owner(2)
    assert await owners() in (None, {first.member})  # a broker may not be able to tell
    await client.kill()

    async def nobody() -> bool:
        return not await owners()

    await eventually(nobody, "nobody owns a lane", within=LEASE.total_seconds() + 5.0)
    async with bench.member(subscription=second) as reader:
        await reader.until_owner(2)
        assert await owners() in (None, {second.member})


async def test_looking_disturbs_nobody(bench: Bench) -> None:
    """O-09: a member that works while everything is looked at has each message once, in order, at the first attempt."""
    finder, inspector = bench.finder, bench.inspector
    await bench.provision()
    messages = bench.messages(200, keys=["a", "b", "c"])
    consumed: list[Delivery] = []

    async def work(reader: Reader) -> None:
        for start in range(0, 200, 20):
            await bench.publish(messages[start : start + 20])
            consumed.extend(await reader.consume(20))

    async with bench.member() as reader, asyncio.TaskGroup() as tasks:
        working = tasks.create_task(work(reader))
        while not working.done():
            await inspector.topics()
            await inspector.groups(bench.topic)
            await finder.find(messages[7].id)
            await finder.related(messages[7].id)
            await asyncio.sleep(0)
    assert {1} == {one.attempt for one in consumed}
    for key in ("a", "b", "c"):
        wanted = [one.id for one in messages if one.key == key]
        assert wanted == [one.message.id for one in consumed if one.message.key == key]


async def test_nothing_is_described_that_is_not_there(bench: Bench) -> None:
    """O-10: a topic that is not there has no groups, and a position that cannot be one is refused, typed."""
    inspector = bench.inspector
    assert [] == list(await inspector.groups(bench.topic))
    assert bench.topic not in {topic.name for topic in await inspector.topics()}
    await bench.provision("shipping", "billing")
    names = [topic.name for topic in await inspector.topics()]
    assert sorted(names) == names
    groups = [(group.topic, group.group) for group in await inspector.groups()]
    assert sorted(groups) == groups
    with raises(TransportRefused):
        await inspector.browse(Topic(bench.topic), after="no position")
    with raises(TransportRefused):
        await inspector.remove(bench.dead(), ["no position"])


async def test_acts_outlive_the_broker_and_keep_every_field(bench: Bench) -> None:
    """O-11: an act comes back as it was noted, text of every kind included, after the broker was killed as well."""
    bench.need(durability=bench.capabilities.durability != "none")
    act = Act(
        id=bench.name("job"),
        at=bench.now_us(),
        who="Zoë \N{SNOWMAN} 'quoted' \"twice\"",
        verb="import",
        topic=bench.topic,
        group=bench.name("billing"),
        state="failed",
        reason="two\nlines; and -- a dash",
        count=(1 << 53) + 1,
        detail='{"file":"C:\\\\letters"}',
    )
    before = max((number for number, _ in await _acts(bench)), default=0)
    await bench.ledger.note(act)
    await bench.restart()
    found = [(number, one) for number, one in await _acts(bench) if one.id == act.id]
    assert [act] == [one for _, one in found]
    assert before < found[0][0]


async def _acts(bench: Bench) -> list[tuple[int, Act]]:
    """Read the whole audit, a page at a time."""
    found: list[tuple[int, Act]] = []
    while page := await bench.ledger.acts(after=found[-1][0] if found else 0, limit=7):
        assert len(page) <= 7
        found += page
    return found


async def test_a_closed_transport_finds_nothing(bench: Bench) -> None:
    """O-12: after closing, whatever is asked is refused, typed."""
    async with bench.site.open() as bench.transport:
        inspector, finder, ledger = bench.inspector, bench.finder, bench.ledger
        await inspector.topics()
    asked: list[Callable[[], Awaitable[object]]] = [
        inspector.topics,
        inspector.groups,
        lambda: finder.find("x"),
        lambda: finder.related("x"),
        lambda: ledger.note(Act(id="1", at=0, who="anna", verb="redrive")),
        ledger.acts,
    ]
    for ask in asked:
        with raises(TransportClosed):
            await ask()
