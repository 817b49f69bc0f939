"""Plain messages of foreign producers, read by a service that declares what they are."""

from __future__ import annotations

import asyncio
import json
from collections import defaultdict
from collections.abc import Sequence
from datetime import timedelta

import msgspec
import pytest
from runtime_world import Opened, OrderPlaced, PageViewed, World

from tidewire import Body, ConfigurationError, Context, Header, Plain, Position, Reject, Retry, Service, event
from tidewire.model import GroupSpec, Message, Topic, TopicSpec
from tidewire.rules.letters import redriven

FAST = Retry(attempts=4, first_delay=timedelta(milliseconds=5), factor=2.0)


def plain(key: str | None, body: object, **headers: str) -> Message:
    raw = body if isinstance(body, bytes) else json.dumps(body).encode()
    return Message(Topic("shop.order"), "", "", key, headers, raw)


def said(key: str | None, order: dict[str, object], *, structured: bool) -> Message:
    """Return *order* as a plain message, or as a structured CloudEvent that names its key itself."""
    if not structured:
        return plain(key, order)
    attributes = {"specversion": "1.0", "id": order["id"], "source": "till", "type": "shop.order.placed"}
    document = {**attributes, "partitionkey": order["order_id"], "data": order}
    return plain(key, document, **{"content-type": "application/cloudevents+json"})


async def published(world: World, messages: Sequence[Message]) -> None:
    topic = TopicSpec("shop.order", lanes=world.options.lanes)
    await world.transport.provision([topic], [GroupSpec("billing", ["shop.order"])])
    receipts = await world.transport.publish(messages)
    assert all(receipt.ok for receipt in receipts), receipts


def test_a_repeat_of_a_foreign_producer_takes_effect_once(opened: Opened) -> None:
    """What it says twice under one id is one event; under a place on the broker only a redelivery is."""
    service, seen = Service("billing"), list[str]()
    service.accept(Plain(OrderPlaced, id=[Header("no"), Position()], source="till"))

    @service.on(OrderPlaced)
    async def take(order: OrderPlaced, context: Context) -> None:
        seen.append(f"{context.envelope.source} {context.envelope.id} {context.envelope.key}")

    async def scenario() -> None:
        async with opened() as world:
            order = {"order_id": "a", "total": "3"}
            await published(world, [plain("a", order, no="1")])
            async with world.running(service):
                await world.until(lambda: world.observer.count("settled") == 1)
                await published(world, [plain("a", order, no="1"), plain("a", order)])
                await world.until(lambda: world.observer.count("settled") == 3)
            assert 1 == world.observer.count("known")
            assert [] == await world.dead("shop.order", "billing")
        assert 2 == len(seen)
        assert "till 1 a" == seen[0]
        assert seen[1].startswith("till shop.order/")

    asyncio.run(scenario())


def test_two_bodies_under_one_id_are_a_conflict(opened: Opened) -> None:
    """An id that is no id is noticed: the second is a dead letter, not silently taken for a repeat."""
    service = Service("billing")
    service.accept(Plain(OrderPlaced, id=Header("no")))

    @service.on(OrderPlaced)
    async def take(order: OrderPlaced) -> None: ...

    async def scenario() -> None:
        async with opened() as world:
            await published(world, [plain("a", {"order_id": "a"}, no="1")])
            async with world.running(service):
                await world.until(lambda: world.observer.count("settled") == 1)
                await published(world, [plain("a", {"order_id": "b"}, no="1")])
                await world.until(lambda: world.observer.count("settled") == 2)
            (letter,) = await world.dead("shop.order", "billing")
            assert "conflict" == letter.message.headers["dl-reason"]

    asyncio.run(scenario())


@pytest.mark.parametrize("structured", [False, True])
def test_order_is_kept_by_the_key_inside_a_message(opened: Opened, structured: bool) -> None:
    """The broker knows no key; the event declares one, or a structured CloudEvent names it: events of one key follow
    one another in their lane, behind one that fails too."""
    service, seen = Service("billing"), defaultdict[str, list[int]](list)
    service.accept(Plain(OrderPlaced, id=Body("id")))
    failed: set[str] = set()

    @service.on(OrderPlaced, retry=FAST)
    async def take(order: OrderPlaced, context: Context) -> None:
        if order.number == 1 and order.order_id not in failed:
            failed.add(order.order_id)
            raise RuntimeError("at first")
        seen[str(context.envelope.key)].append(order.number)

    async def scenario() -> None:
        async with opened() as world:
            world.options = msgspec.structs.replace(world.options, lanes=1)
            orders = [{"id": f"{key}{n}", "order_id": key, "number": n} for n in range(1, 6) for key in "abc"]
            await published(world, [said(None, order, structured=structured) for order in orders])
            async with world.running(service):
                await world.until(lambda: world.observer.count("settled") == 15)
        assert {key: [1, 2, 3, 4, 5] for key in "abc"} == seen

    asyncio.run(scenario())


@event("shop.order.weighed", key="kilos")
class OrderWeighed:
    """Its key is no text."""

    kilos: float


def test_an_event_whose_own_key_is_no_text_is_a_dead_letter(opened: Opened) -> None:
    """It is found by its id and says what was wrong, and the service goes on."""
    service = Service("billing")
    service.accept(Plain(OrderWeighed, id=Body("id")))

    @service.on(OrderWeighed)
    async def take(order: OrderWeighed) -> None: ...

    async def scenario() -> None:
        async with opened() as world:
            await published(world, [plain(None, {"id": "1", "kilos": 1.5})])
            async with world.running(service):
                await world.until(lambda: world.observer.count("settled") == 1)
            (letter,) = await world.dead("shop.order", "billing")
            told = letter.message.headers
            assert ("1", "undecodable", "shop.order.weighed") == (
                letter.message.id,
                told["dl-reason"],
                told["dl-type"],
            )
            assert "not float" in told["dl-detail"]

    asyncio.run(scenario())


def test_what_was_not_declared_can_be_redriven_once_it_is(opened: Opened) -> None:
    """Nothing is lost by a declaration that lacks something: the dead letter is as it came, and is read anew."""
    kinds = {"order": OrderPlaced, "look": None}
    seen = list[tuple[str, int]]()

    def service_with(declaration: Plain) -> Service:
        service = Service("billing")
        service.accept(declaration)

        @service.on(OrderPlaced)
        async def take(order: OrderPlaced) -> None:
            seen.append((order.order_id, order.number))

        return service

    early = service_with(Plain(kinds, type=Body("what"), id=Body("id")))
    late = service_with(Plain({**kinds, "ordr": OrderPlaced}, type=Body("what"), id=Body("id")))

    async def scenario() -> None:
        async with opened() as world:
            body = {"what": "ordr", "id": "1", "order_id": "a", "number": 7}
            await published(world, [plain("a", body), plain("a", {"what": "look"}), plain("b", b"\x00\xff")])
            async with world.running(early):
                await world.until(lambda: world.observer.count("settled") == 3)
            letters = {
                one.message.headers["dl-reason"]: one.message for one in await world.dead("shop.order", "billing")
            }
            assert {"unknown-type", "undecodable"} == set(letters)
            assert (b"\x00\xff", "b") == (letters["undecodable"].body, letters["undecodable"].key)
            assert json.dumps(body).encode() == letters["unknown-type"].body
            assert [] == seen
            async with world.running(late):
                await world.transport.publish([redriven(letters["unknown-type"])])
                await world.until(lambda: seen == [("a", 7)])

    asyncio.run(scenario())


def test_a_dead_letter_holds_its_key_and_comes_back_as_the_same_event(opened: Opened) -> None:
    """It is held under the event's own key and id, says what it was read as, and frees its key when it is handled."""
    service, seen, mended = Service("billing"), list[str](), list[bool]()
    service.accept(Plain(OrderPlaced, id=Body("id"), data=Body("data"), source="till"))

    @service.on(OrderPlaced)
    async def take(order: OrderPlaced, context: Context) -> None:
        if order.number == 1 and not mended:
            raise Reject("not yet")
        seen.append(context.envelope.id)

    async def scenario() -> None:
        async with opened() as world, world.running(service):
            orders = [{"id": f"o{n}", "data": {"order_id": "a", "number": n}} for n in range(1, 4)]
            await published(world, [plain("a", order) for order in orders])
            await world.until(lambda: world.observer.count("dead_lettered") == 3)
            await world.until(lambda: world.settled("shop.order", "billing"))
            letters = [one.message for one in await world.dead("shop.order", "billing")]
            assert ["permanent", "held", "held"] == [one.headers["dl-reason"] for one in letters]
            assert ["shop.order.placed"] * 3 == [one.headers["dl-type"] for one in letters]
            assert [json.dumps(order).encode() for order in orders] == [one.body for one in letters]
            mended.append(True)
            await world.transport.publish([redriven(letter) for letter in letters])
            await world.until(lambda: seen == ["o1", "o2", "o3"])
            await world.until(lambda: world.settled("shop.order", "billing"))
            assert [] == list(await world.store.held.keys("billing", ["shop.order"]))

    asyncio.run(scenario())


@pytest.mark.parametrize("structured", [False, True])
def test_a_key_in_a_foreign_lane_keeps_its_order_over_the_inbox_channel(opened: Opened, structured: bool) -> None:
    """A producer may choose lanes in its own way. What waits goes through the lane of ours, perhaps to another member,
    and what follows it waits for it all the same; afterwards the key is free."""
    seen = defaultdict[str, list[int]](list)
    failed_by, handled_by = dict[str, str](), dict[str, str]()
    tries = defaultdict[str, int](int)

    def member(name: str) -> Service:
        service = Service("billing")
        if not structured:
            service.accept(Plain(OrderPlaced, id=Body("id"), key=Body("order_id")))

        @service.on(OrderPlaced, retry=Retry(attempts=9, first_delay=timedelta(milliseconds=50), factor=1.0))
        async def take(order: OrderPlaced) -> None:
            if order.number == 1:
                tries[order.order_id] += 1
                if tries[order.order_id] == 1:
                    failed_by.setdefault(order.order_id, name)
                    raise RuntimeError("a while")
                handled_by[order.order_id] = name
            seen[order.order_id].append(order.number)

        return service

    async def scenario() -> None:
        async with opened() as world:
            world.options = msgspec.structs.replace(world.options, max_hold=timedelta(0))
            keys = [f"key-{n}" for n in range(8)]
            orders = [{"id": f"{key}/{n}", "order_id": key, "number": n} for n in range(1, 6) for key in keys]
            async with world.running(member("one")), world.running(member("two")):
                for order in orders:
                    await published(world, [said("all in one lane", order, structured=structured)])
                await world.until(lambda: sum(map(len, seen.values())) == len(orders), 30)
                await world.until(lambda: world.settled("shop.order", "billing"))
                assert [] == list(await world.store.held.keys("billing", ["shop.order"]))
            assert {key: [1, 2, 3, 4, 5] for key in keys} == seen
            assert any(failed_by[key] != handled_by[key] for key in keys), "no key went to another member"

    asyncio.run(scenario())


def test_a_declaration_without_a_handler_is_refused_at_start(opened: Opened) -> None:
    """Its topic would not even be read: the error names the type."""
    service = Service("billing")
    service.accept(Plain(PageViewed, id=Position()))

    @service.on(OrderPlaced)
    async def take(order: OrderPlaced) -> None: ...

    async def scenario() -> None:
        async with opened() as world:
            with pytest.raises(ConfigurationError, match=r"no handler takes shop\.page\.viewed"):
                async with world.running(service):
                    pass

    asyncio.run(scenario())


def test_one_declaration_for_a_topic() -> None:
    """Two would contradict each other; the hint says how events of several kinds are declared."""
    service = Service("billing")
    service.accept(Plain(OrderPlaced, id=Position()))
    with pytest.raises(ConfigurationError, match=r"accepts plain messages of shop\.order already"):
        service.accept(Plain(OrderPlaced, id=Header("no")))
