"""Keys that wait: behind a dead letter, and behind an event that failed for too long."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from datetime import timedelta

import msgspec
from runtime_world import Opened, OrderPlaced

from tidewire import Context, Options, Reject, Retry, Service
from tidewire.clock import SystemClock
from tidewire.model import DeadLetter, Delivery, InboxChannel, Message, Reason, Topic
from tidewire.rules.letters import EDITED_FROM, discarded, redriven
from tidewire.runtime.holds import Holds
from tidewire.runtime.work import Work
from tidewire.stores.memory.records import MemoryHeldKeys
from tidewire.stores.memory.store import MemoryStore


def test_what_follows_a_dead_letter_waits_with_it_and_is_redriven_in_order(opened: Opened) -> None:
    """RL-5: successors go to the dead channel as held, other keys go on, a redrive brings them back in order."""
    service, seen = Service("billing"), list[tuple[str, int]]()
    mended = asyncio.Event()

    @service.on(OrderPlaced, on_dead_letter="hold_key")
    async def take(order: OrderPlaced) -> None:
        if order.order_id == "a" and order.number == 2 and not mended.is_set():
            raise Reject("not this one")
        seen.append((order.order_id, order.number))

    async def scenario() -> None:
        async with opened() as world:
            async with world.running(service) as app:
                await app.publisher.publish_all([OrderPlaced("a", number=n) for n in range(1, 5)])
                await app.publisher.publish(OrderPlaced("b", number=1))
                await world.until(lambda: world.settled("shop.order", "billing"))
            assert sorted(seen) == [("a", 1), ("b", 1)]
            async with world.running(service) as app:  # the hold is kept over a restart
                await app.publisher.publish(OrderPlaced("a", number=5))
                await world.until(lambda: world.settled("shop.order", "billing"))
                letters = await world.dead("shop.order", "billing")
                reasons = [letter.message.headers["dl-reason"] for letter in letters]
                assert ["permanent", "held", "held", "held"] == reasons
                mended.set()
                await world.transport.publish([redriven(letter.message) for letter in letters])
                await world.transport.remove(letters[0].message.to, [letter.position for letter in letters])
                await world.until(lambda: len(seen) == 6)
                await app.publisher.publish(OrderPlaced("a", number=6))
                await world.until(lambda: len(seen) == 7)
            assert [1, 2, 3, 4, 5, 6] == [number for key, number in seen if key == "a"]
            assert [] == list(await world.store.held.keys("billing", ["shop.order"]))

    asyncio.run(scenario())


def test_a_discarded_head_frees_its_key_for_what_waits_behind_it(opened: Opened) -> None:
    """Giving an event up is no handler call; its successors are redriven in order, and the key is free again."""
    service, seen = Service("billing"), list[int]()

    @service.on(OrderPlaced, on_dead_letter="hold_key")
    async def take(order: OrderPlaced) -> None:
        if order.number == 1:
            raise Reject("never")
        seen.append(order.number)

    async def scenario() -> None:
        async with opened() as world, world.running(service) as app:
            await app.publisher.publish_all([OrderPlaced("a", number=n) for n in range(1, 4)])
            await world.until(lambda: world.settled("shop.order", "billing"))
            head, *rest = await world.dead("shop.order", "billing")
            await world.transport.publish([discarded(head.message, "a test order")])
            await world.until(lambda: world.observer.count("discarded") == 1)
            await world.transport.publish([redriven(letter.message) for letter in rest])
            await world.until(lambda: seen == [2, 3])
            await app.publisher.publish(OrderPlaced("a", number=4))
            await world.until(lambda: seen == [2, 3, 4])
            assert [] == list(await world.store.held.keys("billing", ["shop.order"]))

    asyncio.run(scenario())


def test_an_edited_copy_takes_the_place_of_a_held_head(opened: Opened) -> None:
    """The copy has another id and is the head all the same; what waits behind it follows in order."""
    service, seen = Service("billing"), list[tuple[int, str]]()

    @service.on(OrderPlaced, on_dead_letter="hold_key")
    async def take(order: OrderPlaced) -> None:
        if order.number == 1 and not order.note:
            raise Reject("a note is missing")
        seen.append((order.number, order.note))

    async def scenario() -> None:
        async with opened() as world, world.running(service) as app:
            await app.publisher.publish_all([OrderPlaced("a", number=n) for n in range(1, 4)])
            await world.until(lambda: world.settled("shop.order", "billing"))
            head, *rest = await world.dead("shop.order", "billing")
            back = redriven(head.message)
            copy = msgspec.structs.replace(
                back,
                id="edited",
                headers={**back.headers, "ce-id": "edited", EDITED_FROM: back.id},
                body=b'{"order_id":"a","number":1,"note":"mended"}',
            )
            await world.transport.publish([copy, *(redriven(letter.message) for letter in rest)])
            await world.until(lambda: seen == [(1, "mended"), (2, ""), (3, "")])
            await app.publisher.publish(OrderPlaced("a", number=4))
            await world.until(lambda: len(seen) == 4)
            assert [] == list(await world.store.held.keys("billing", ["shop.order"]))

    asyncio.run(scenario())


def test_a_second_copy_of_an_event_that_took_effect_is_no_held_letter(opened: Opened) -> None:
    """Two copies come in together: when the first has taken effect, the second is known, not held."""
    service, seen = Service("billing"), list[int]()

    @service.on(OrderPlaced, on_dead_letter="hold_key")
    async def take(order: OrderPlaced) -> None:
        if order.number == 1 and not seen:
            seen.append(0)
            raise Reject("not now")
        await asyncio.sleep(0.05)
        seen.append(order.number)

    async def scenario() -> None:
        async with opened() as world, world.running(service) as app:
            await app.publisher.publish_all([OrderPlaced("a", number=n) for n in range(1, 3)])
            await world.until(lambda: world.settled("shop.order", "billing"))
            letters = await world.dead("shop.order", "billing")
            await world.transport.remove(letters[0].message.to, [letter.position for letter in letters])
            copies = [redriven(letter.message) for letter in letters]
            await world.transport.publish([*copies, *copies])
            await world.until(lambda: seen == [0, 1, 2])
            await world.until(lambda: world.settled("shop.order", "billing"))
            assert [] == await world.dead("shop.order", "billing")
            assert [] == list(await world.store.held.keys("billing", ["shop.order"]))

    asyncio.run(scenario())


def test_a_hold_that_lasts_too_long_is_moved_and_keeps_its_order(opened: Opened) -> None:
    """RL-4: the event and its successors go through the inbox channel, noted before the settle, in order."""
    service, seen = Service("billing"), list[int]()

    @service.on(OrderPlaced, retry=Retry(attempts=9, first_delay=timedelta(milliseconds=120), factor=1.0))
    async def take(order: OrderPlaced, context: Context) -> None:
        if order.order_id == "a" and order.number == 1 and context.attempt < 4:
            raise RuntimeError("not yet")
        if order.order_id == "a":
            seen.append(order.number)

    async def scenario() -> None:
        async with opened() as world:
            world.options = Options(max_hold=timedelta(milliseconds=1), grace=timedelta(seconds=1), lanes=2)
            async with world.running(service) as app:
                await app.publisher.publish_all([OrderPlaced("a", number=n) for n in range(1, 5)])
                await world.until(lambda: len(seen) == 4, 20)
                await world.until(lambda: world.settled("shop.order", "billing"))
            assert [1, 2, 3, 4] == seen
            assert [] == list(await world.store.held.keys("billing", ["shop.order"]))

    asyncio.run(scenario())


def test_many_successors_never_overtake_a_moved_head(opened: Opened) -> None:
    """More of one key than a member may hold: the head comes back first, whatever came behind it meanwhile."""
    service, seen = Service("billing", prefetch=4), list[int]()

    @service.on(OrderPlaced, retry=Retry(attempts=9, first_delay=timedelta(milliseconds=60), factor=1.0))
    async def take(order: OrderPlaced, context: Context) -> None:
        if order.number % 10 == 1 and context.attempt < 3:
            raise RuntimeError("not yet")
        seen.append(order.number)

    async def scenario() -> None:
        async with opened() as world, world.running(service) as app:
            await app.publisher.publish_all([OrderPlaced("a", number=n) for n in range(30)])
            await world.until(lambda: len(seen) == 30, 20)
            assert list(range(30)) == seen

    asyncio.run(scenario())


def test_a_full_book_of_held_keys_is_relieved(opened: Opened) -> None:
    """When everything a member holds waits behind failing keys, the longest held is moved and others get room."""
    service, seen = Service("billing", prefetch=4), list[str]()
    mended = asyncio.Event()

    @service.on(OrderPlaced, retry=Retry(attempts=50, first_delay=timedelta(milliseconds=400), factor=1.0))
    async def take(order: OrderPlaced) -> None:
        if order.order_id.startswith("bad") and not mended.is_set():
            raise RuntimeError("not yet")
        seen.append(order.order_id)

    async def scenario() -> None:
        async with opened() as world, world.running(service) as app:
            await app.publisher.publish_all([OrderPlaced(f"bad-{n}") for n in range(4)])
            await app.publisher.publish(OrderPlaced("good"))
            await world.until(lambda: "good" in seen, 15)
            mended.set()
            await world.until(lambda: len(seen) == 5, 15)

    asyncio.run(scenario())


class DistantKeys(MemoryHeldKeys):
    """Held keys whose answer takes a while to arrive."""

    def __init__(self) -> None:
        super().__init__()
        self.read, self.arrive = asyncio.Event(), asyncio.Event()

    async def keys(self, group: str, topics: Sequence[str]) -> Sequence[tuple[str, str]]:
        """Read at once; the answer arrives when it is told to."""
        found = await super().keys(group, topics)
        self.read.set()
        await self.arrive.wait()
        return found


def test_a_key_that_is_noted_while_a_lane_is_taken_stays_held() -> None:
    """What the store read before a key was noted does not make the process forget that key (seed 18 on SQLite)."""

    async def scenario() -> None:
        store = MemoryStore(SystemClock())
        store.held = keys = DistantKeys()
        holds = Holds(store, "billing", ["shop.order"])
        message = Message(Topic("shop.order"), "1", "shop", "a", {}, b"{}")
        work = Work(Delivery(message, "shop.order/0", 1, 1), ("shop.order/0", "a"))
        loading = asyncio.ensure_future(holds.load())
        await keys.read.wait()
        await holds.note(work, "inbox", 1)
        keys.arrive.set()
        await loading
        assert holds.holds(work)

    asyncio.run(scenario())


def test_what_follows_a_late_head_comes_back_a_little_later() -> None:
    """While a moved head is due and not yet there, what follows it does not come and go at once (seed 125 on amqp)."""

    async def scenario() -> None:
        holds = Holds(MemoryStore(SystemClock()), "billing", ["shop.order"])
        head, next_one = (Message(Topic("shop.order"), name, "shop", "a", {}, b"{}") for name in "12")
        works = [Work(Delivery(one, "shop.order/0", 1, one.id), ("shop.order/0", "a")) for one in (head, next_one)]
        works[1].verdict = DeadLetter(Reason.UNDECODABLE, "it is not done")
        await holds.note(works[0], "inbox", 1_000)
        soon = await holds.follow(works[1], soonest=200)
        late = await holds.follow(works[1], soonest=1_700)
        assert isinstance(soon, Message)
        assert isinstance(late, Message)
        assert (1_000, 1_700) == (soon.not_before, late.not_before)

    asyncio.run(scenario())


def test_a_member_without_lanes_learns_what_others_hold() -> None:
    """Where any member may be given any key, what another has noted is known before it runs (seed 55 on sqs); where
    members have lanes, with what comes back through the inbox channel, which a foreign producer's key may not share."""

    async def scenario() -> None:
        store = MemoryStore(SystemClock())
        one, alone, sharing = (
            Holds(store, "billing", ["shop.order"], shared=shared) for shared in (False, False, True)
        )
        message = Message(Topic("shop.order"), "1", "shop", "a", {}, b"{}")
        work = Work(Delivery(message, "shop.order/0", 1, 1), ("shop.order/0", "a"))
        await one.note(work, "inbox", 1)
        for holds in (alone, sharing):
            await holds.refresh([work])
        assert [False, True] == [holds.holds(work) for holds in (alone, sharing)]
        back = msgspec.structs.replace(message, to=InboxChannel("shop.order", "billing"))
        await alone.refresh([Work(msgspec.structs.replace(work.delivery, message=back), work.key)])
        assert alone.holds(work)

    asyncio.run(scenario())
