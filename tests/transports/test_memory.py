"""What is the memory transport's own: its switches, its clock, its balance, its bounds."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from datetime import UTC, datetime, timedelta

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tidewire.clock import microseconds
from tidewire.errors import ConfigurationError, TransportRefused, TransportUnavailable
from tidewire.model import (
    DeadChannel,
    Delivery,
    GroupSpec,
    InboxChannel,
    LaneEvent,
    Message,
    Release,
    Subscription,
    Topic,
    TopicSpec,
)
from tidewire.transports.memory import MemoryBroker, MemoryTransport, open_memory_transport
from tidewire.transports.memory.balance import plan

HOUR = timedelta(hours=1)
SOON = timedelta(seconds=1)


class JumpLoop(asyncio.SelectorEventLoop):
    """A loop whose time jumps to the next timer instead of waiting for it."""

    now = 0.0

    def time(self) -> float:
        """Return the virtual time."""
        return self.now

    def _run_once(self) -> None:
        if not self._ready and self._scheduled:  # type: ignore[attr-defined]
            self.now = max(self.now, self._scheduled[0].when())  # type: ignore[attr-defined]
        super()._run_once()  # type: ignore[misc]


class LoopClock:
    """A clock that shows the running loop's time; it begins in the year 2026."""

    begin = microseconds(datetime(2026, 1, 1, tzinfo=UTC))

    def now_us(self) -> int:
        """Return the wall time."""
        return self.begin + round(asyncio.get_running_loop().time() * 1e6)

    def now(self) -> datetime:
        """Return the wall time."""
        return datetime.fromtimestamp(self.now_us() / 1e6, UTC)

    def ticks(self) -> int:
        """Return nanoseconds."""
        return round(asyncio.get_running_loop().time() * 1e9)


def message(number: int, *, key: str | None = "k", due: int | None = None) -> Message:
    """Return message *number* to the topic "t"."""
    return Message(Topic("t"), f"id-{number}", "test", key, {"h": "v"}, b"%d" % number, due)


def member(name: str = "m", *, group: str = "g", lease: timedelta = HOUR, prefetch: int = 256) -> Subscription:
    """Return a subscription of group "g" to the topic "t" that leaves without waiting."""
    return Subscription(group, ["t"], name, lease=lease, grace=timedelta(0), prefetch=prefetch)


def run(test: Callable[[MemoryTransport], Awaitable[None]], *, spec: TopicSpec | None = None) -> float:
    """Run *test* in virtual time on a broker with the topic "t" and the group "g"; return the seconds it took there."""

    async def life() -> float:
        async with open_memory_transport(clock=LoopClock()) as transport:
            await transport.provision([spec or TopicSpec("t", 4)], [GroupSpec("g", ["t"])])
            await test(transport)
        return asyncio.get_running_loop().time()

    with asyncio.Runner(loop_factory=JumpLoop) as runner:
        return runner.run(life())


def deliveries(found: Sequence[Delivery | LaneEvent]) -> list[Delivery]:
    """Return the deliveries of what a receive gave."""
    return [one for one in found if isinstance(one, Delivery)]


def test_waiting_happens_on_the_loop_alone() -> None:
    """A loop whose time jumps needs no real time for a delay of a week, and the delay is exact."""

    async def test(transport: MemoryTransport) -> None:
        week = 7 * 86_400 * 1_000_000
        await transport.publish([message(1, due=transport.broker.clock.now_us() + week)])
        async with transport.subscribe(member()) as receiver:
            await receiver.receive(0, SOON)
            found = deliveries(await receiver.receive(1, timedelta(days=30)))
        assert [b"1"] == [one.message.body for one in found]

    assert 7 * 86_400 <= run(test) < 7 * 86_400 + 0.1


def test_an_idle_member_sets_no_timer_of_its_own() -> None:
    """A receive with nothing to come ends when its wait does, in one jump: no heartbeat turns the loop."""

    async def test(transport: MemoryTransport) -> None:
        async with transport.subscribe(member(lease=SOON)) as receiver:
            await receiver.receive(0, SOON)
            assert [] == await receiver.receive(1, timedelta(days=1))

    assert 86_400 <= run(test) < 86_402


def test_silence_ends_with_the_lease_and_not_before() -> None:
    """What a silent member has is handed to another one exactly when its lease ends, counted and suspect."""

    async def test(transport: MemoryTransport) -> None:
        await transport.publish([message(1)])
        loop = asyncio.get_running_loop()
        patient = msgspec.structs.replace(member("a", lease=30 * SOON), grace=HOUR)
        async with transport.subscribe(patient) as zombie:
            (mine,) = deliveries(await zombie.receive(1, SOON))
            zombie.silence()
            start = loop.time()
            async with transport.subscribe(member("b")) as heir:
                found: list[Delivery] = []
                while not found:
                    found = deliveries(await heir.receive(1, HOUR))
                assert 30 <= loop.time() - start < 30.1
                assert (2, True, "lost") == (
                    found[0].attempt,
                    found[0].suspect,
                    (await zombie.settle(ack=[mine]))[0].status,
                )
                zombie.wake()
                events = [one for one in await zombie.receive(0, SOON) if isinstance(one, LaneEvent)]
                assert "lost" in {one.kind for one in events}

    run(test)


def test_a_member_that_wakes_in_time_has_lost_nothing() -> None:
    """A pause shorter than the lease is no death: the member still owns its lanes and may settle."""

    async def test(transport: MemoryTransport) -> None:
        await transport.publish([message(1)])
        async with transport.subscribe(member(lease=10 * SOON)) as receiver:
            found = deliveries(await receiver.receive(1, SOON))
            receiver.silence()
            await asyncio.sleep(9)
            receiver.wake()
            await asyncio.sleep(9)
            assert ["settled"] == [one.status for one in await receiver.settle(ack=found)]

    run(test)


def test_switch_down_raises_everywhere_and_loses_nothing() -> None:
    """While the broker is down every call raises `TransportUnavailable`; afterwards all is as it was."""

    async def test(transport: MemoryTransport) -> None:
        await transport.publish([message(1)])
        async with transport.subscribe(member()) as receiver:
            found = deliveries(await receiver.receive(1, SOON))
            transport.broker.down = True
            for call in (
                lambda: transport.publish([message(2)]),
                lambda: transport.provision([], []),
                lambda: transport.stats("t", "g"),
                lambda: receiver.receive(1, SOON),
                lambda: receiver.settle(ack=found),
                lambda: receiver.steer(),
            ):
                with pytest.raises(TransportUnavailable):
                    await call()
            transport.broker.down = False
            assert ["settled"] == [one.status for one in await receiver.settle(ack=found)]
        assert 0 == (await transport.stats("t", "g")).ready

    run(test)


def test_switch_refuse_names_the_reason() -> None:
    """A message that the refuse switch answers for is rejected with that reason; a move with it fails whole."""

    async def test(transport: MemoryTransport) -> None:
        transport.broker.refuse = lambda message: "full" if message.id == "id-2" else None
        receipts = await transport.publish([message(1), message(2, key="other")])
        assert [("stored", ""), ("rejected", "full")] == [(one.status, one.reason) for one in receipts]

    run(test)


def test_brokers_may_be_shared_and_have_one_clock() -> None:
    """Transports opened on one broker see each other; a second clock for it is refused."""

    async def life() -> None:
        broker = MemoryBroker()
        async with open_memory_transport(broker) as one, open_memory_transport(broker) as two:
            await one.provision([TopicSpec("t")], [GroupSpec("g", ["t"])])
            await two.publish([message(1)])
            assert 1 == (await one.stats("t", "g")).ready
        with pytest.raises(ConfigurationError, match="own clock"):
            async with open_memory_transport(broker, clock=LoopClock()):
                pass

    asyncio.run(life())


def test_closing_the_transport_gives_everything_back() -> None:
    """A transport that is closed around an open receiver leaves its group at once, uncounted."""

    async def life() -> None:
        broker = MemoryBroker()
        async with open_memory_transport(broker) as other:
            await other.provision([TopicSpec("t")], [GroupSpec("g", ["t"])])
            await other.publish([message(1)])
            transport = MemoryTransport(broker)
            async with transport.subscribe(member("a")) as receiver:
                deliveries(await receiver.receive(1, SOON))
                transport.close()
                async with other.subscribe(member("b")) as heir:
                    (found,) = deliveries(await heir.receive(1, SOON))
                    assert (1, False) == (found.attempt, found.suspect)

    asyncio.run(life())


def test_epochs_grow_over_a_restart_of_the_process() -> None:
    """A new broker begins with epochs above those of an older one: a store remembers the highest it has seen."""

    async def epoch() -> int:
        async with open_memory_transport() as transport:
            await transport.provision([TopicSpec("t", 1)], [GroupSpec("g", ["t"])])
            events: list[Delivery | LaneEvent] = []
            for _ in range(5):
                async with transport.subscribe(member()) as receiver:
                    events += await receiver.receive(0, SOON)
            assert sorted(event.epoch for event in events) == [event.epoch for event in events]
            return events[-1].epoch

    assert asyncio.run(epoch()) < asyncio.run(epoch())


def test_a_busy_publisher_lets_others_run() -> None:
    """A loop of publishes, and one of receives that always have something, yield to other tasks each time."""

    async def test(transport: MemoryTransport) -> None:
        turns = 0

        async def count() -> None:
            nonlocal turns
            while True:
                await asyncio.sleep(0)
                turns += 1

        async with asyncio.TaskGroup() as tasks:
            counter = tasks.create_task(count())
            for number in range(20):
                await transport.publish([message(number)])
            published = turns
            async with transport.subscribe(member()) as receiver:
                while deliveries(await receiver.receive(1, timedelta(0))):
                    pass
            counter.cancel()
        assert published >= 19
        assert turns - published >= 20

    run(test)


def test_duplicates_are_known_for_the_window_and_no_longer() -> None:
    """An id is recognised for ten minutes; what is remembered is forgotten then."""

    async def test(transport: MemoryTransport) -> None:
        statuses: list[str] = []
        for seconds in (0, 599, 2, 0):
            await asyncio.sleep(seconds)
            statuses += [one.status for one in await transport.publish([message(1)])]
        assert ["stored", "duplicate", "stored", "duplicate"] == statuses
        assert 1 == len(transport.broker.topics["t"].seen)

    run(test)


def test_retention_lets_go_while_messages_flow() -> None:
    """With a retention of a minute, a topic that everybody has settled does not grow with time."""

    async def test(transport: MemoryTransport) -> None:
        async with transport.subscribe(member()) as receiver:
            for number in range(2000):
                await asyncio.sleep(0.5)
                await transport.publish([message(number)])
                await receiver.settle(ack=deliveries(await receiver.receive(10, SOON)))
        kept = sum(len(lane.entries) for lane in transport.broker.topics["t"].lanes)
        assert 100 < kept < 100 + 2 * 120

    run(test, spec=TopicSpec("t", 1, retention=timedelta(minutes=1)))


def test_subscribing_wrongly_names_the_fix() -> None:
    """An unknown topic is answered with the one that was meant; a prefetch of nothing is refused."""

    async def test(transport: MemoryTransport) -> None:
        await transport.provision([TopicSpec("shop.order")], [])
        wrong = msgspec.structs.replace(member(), topics=["shop.orders"])
        with pytest.raises(ConfigurationError, match=r"did you mean shop\.order\?"):
            async with transport.subscribe(wrong):
                pass
        with pytest.raises(ConfigurationError, match="prefetch"):
            async with transport.subscribe(member(prefetch=0)):
                pass

    run(test)


def test_strange_places_are_refused() -> None:
    """A position that is none, a removal from a topic and a look at what does not exist are refused by name."""

    async def test(transport: MemoryTransport) -> None:
        for call in (
            lambda: transport.browse(Topic("nowhere")),
            lambda: transport.browse(InboxChannel("t", "nobody")),
            lambda: transport.browse(Topic("t"), after="x"),
            lambda: transport.remove(Topic("t"), [1]),
            lambda: transport.remove(DeadChannel("t", "g"), ["x"]),
        ):
            with pytest.raises(TransportRefused):
                await call()
        assert 0 == await transport.remove(DeadChannel("t", "g"), [1, "2"])
        with pytest.raises(TransportRefused, match="'t' is no address"):
            await transport.browse("t")  # type: ignore[arg-type]

    run(test)


def test_a_delayed_release_is_not_early_after_a_replay() -> None:
    """A delay that belongs to an earlier hand-out says nothing about a message that was replayed and delayed again."""

    async def test(transport: MemoryTransport) -> None:
        unordered = msgspec.structs.replace(member(), ordering="none")
        await transport.publish([message(1)])
        for delay in (10, 20):
            async with transport.subscribe(unordered) as receiver:
                (one,) = deliveries(await receiver.receive(1, SOON))
                await receiver.settle(release=[Release(one, timedelta(seconds=delay))])
            if delay == 10:
                await transport.seek("t", "g", to=0)
        start = asyncio.get_running_loop().time()
        async with transport.subscribe(unordered) as receiver:
            await receiver.receive(0, SOON)
            await receiver.receive(1, HOUR)
        assert 20 <= asyncio.get_running_loop().time() - start < 20.1

    run(test)


# --- balance --------------------------------------------------------------------------------------------------

TOPICS: list[str] = ["a", "b", "c"]
members = st.lists(st.frozensets(st.sampled_from(TOPICS), min_size=1), min_size=1, max_size=5)


@st.composite
def held(draw: st.DrawFn) -> tuple[list[tuple[str, int | None]], list[frozenset[str]]]:
    """Draw members, and lanes that some of them own."""
    readers = draw(members)
    lanes: list[tuple[str, int | None]] = []
    for topic in draw(st.lists(st.sampled_from(TOPICS), max_size=20)):
        able = [index for index, topics in enumerate(readers) if topic in topics]
        lanes.append((topic, draw(st.sampled_from([*able, None]))))
    return lanes, readers


@given(held())
def test_a_plan_is_fair_and_complete(case: tuple[list[tuple[str, int | None]], list[frozenset[str]]]) -> None:
    """After a plan every lane that anybody reads is owned by a reader, none of whom has two more of a topic."""
    lanes, readers = case
    changes = plan(lanes, readers)
    owners = [changes.get(index, owner) for index, (_, owner) in enumerate(lanes)]
    for topic in TOPICS:
        able = [index for index, topics in enumerate(readers) if topic in topics]
        loads = [
            sum(owner == index for (name, _), owner in zip(lanes, owners, strict=True) if name == topic)
            for index in able
        ]
        assert all(
            (owner in able) if able else owner is None
            for (name, _), owner in zip(lanes, owners, strict=True)
            if name == topic
        )
        assert not loads or max(loads) - min(loads) <= 1


@given(held())
def test_a_plan_that_was_followed_asks_for_nothing_more(
    case: tuple[list[tuple[str, int | None]], list[frozenset[str]]],
) -> None:
    """Once everybody has what the plan says, the next plan moves at most what evens out whole members."""
    lanes, readers = case
    for _ in range(6):
        changes = plan(lanes, readers)
        lanes = [(topic, changes.get(index, owner)) for index, (topic, owner) in enumerate(lanes)]
    assert {} == plan(lanes, readers)


def test_many_topics_of_one_lane_are_spread() -> None:
    """Ten topics with one lane each give each of two members five."""
    changes = plan([(f"t{number}", None) for number in range(10)], [{f"t{number}" for number in range(10)}] * 2)
    assert [5, 5] == [list(changes.values()).count(index) for index in (0, 1)]


def test_a_newcomer_gets_its_share_and_no_other_lane_moves() -> None:
    """A second member takes half of eight lanes; the other half stays where it is."""
    changes = plan([("t", 0)] * 8, [{"t"}, {"t"}])
    assert {1} == set(changes.values())
    assert 4 == len(changes)
