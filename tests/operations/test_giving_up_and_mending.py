"""Discards and edits: what a group is told, what stays, what is written down."""

from __future__ import annotations

import asyncio

import msgspec
import pytest
from operations_world import ANN, GROUP, TOPIC, everything, ids, letter, letters, plan_of, provisioned, until_held
from runtime_world import Opened, OrderPlaced

from tidewire import Context, Reject, Service
from tidewire.errors import ConfigurationError, PublishRejected
from tidewire.model import Browsed, InboxChannel, Reason
from tidewire.operations.audit import acts_of
from tidewire.operations.editing import edit, edited_copy, set_fields, value_of
from tidewire.operations.redrive import discard, redrive
from tidewire.operations.selection import Letter, Selection
from tidewire.rules.letters import EDITED_FROM
from tidewire.transports.memory import MemoryBroker, open_memory_transport


def test_a_discarded_head_frees_its_key(opened: Opened) -> None:
    """The head never runs; what waited behind it is redriven in order, and later events of the key run again."""
    service, seen = Service("billing"), list[int]()

    @service.on(OrderPlaced, on_dead_letter="hold_key")
    async def take(order: OrderPlaced) -> None:
        if order.number == 1:
            raise Reject("never")
        seen.append(order.number)

    async def scenario() -> None:
        async with opened() as world, world.running(service) as app:
            await app.publisher.publish_all([OrderPlaced("a", number=n) for n in (1, 2, 3)])
            await world.until(lambda: world.settled(TOPIC, GROUP))
            plan = await plan_of(world, Selection(reason="permanent"), whole_keys=False)
            done = await discard(world.transport, plan, by=ANN, reason="a test order")
            assert (1, 0, 2) == (done.moved, done.left, done.dead)
            await world.until(lambda: world.observer.count("discarded") == 1)
            await redrive(world.transport, await plan_of(world, everything()), by=ANN)
            await world.until(lambda: seen == [2, 3])
            await app.publisher.publish(OrderPlaced("a", number=4))
            await world.until(lambda: seen == [2, 3, 4])
            await until_held(world, [])
            assert [] == await letters(world)

    asyncio.run(scenario())


def test_an_unkeyed_letter_is_removed_and_the_group_hears_nothing(opened: Opened) -> None:
    """Nobody waits for it, so no note is sent; the audit has the reason."""

    async def scenario() -> None:
        async with opened() as world:
            await provisioned(world)
            await world.transport.publish([letter("1"), letter("2")])
            plan = await plan_of(world, Selection(ids=("1",)), whole_keys=False)
            await discard(world.transport, plan, by=ANN, reason="spam")
            assert ["2"] == await ids(world)
            assert [] == list(await world.transport.browse(InboxChannel(TOPIC, GROUP)))
            acts = [act async for _, act in acts_of(world.transport)]
            assert [("discard", "begun", "spam"), ("discard", "done", "spam")] == [
                (act.verb, act.state, act.reason) for act in acts
            ]

    asyncio.run(scenario())


@pytest.mark.parametrize("reason", ["", "  "])
def test_a_discard_needs_a_reason(opened: Opened, reason: str) -> None:
    """Nothing is given up without a word."""

    async def scenario() -> None:
        async with opened() as world:
            await provisioned(world)
            await world.transport.publish([letter("1")])
            plan = await plan_of(world, everything(), whole_keys=False)
            with pytest.raises(ConfigurationError, match="reason"):
                await discard(world.transport, plan, by=ANN, reason=reason)
            assert ["1"] == await ids(world)

    asyncio.run(scenario())


def test_an_edited_copy_is_handled_and_the_original_stays(opened: Opened) -> None:
    """The copy has its own id, so its effect is its own; the original is kept as evidence until it is discarded."""
    service, seen = Service("billing"), list[tuple[str, str]]()

    @service.on(OrderPlaced, on_dead_letter="continue")
    async def take(order: OrderPlaced, context: Context) -> None:
        if order.note != "mended":
            raise Reject("no note")
        seen.append((context.envelope.id, order.order_id))

    async def scenario() -> None:
        async with opened() as world, world.running(service) as app:
            await app.publisher.publish(OrderPlaced("a"))
            await world.until(lambda: world.settled(TOPIC, GROUP))
            (browsed,) = await letters(world)
            result = await edit(world.transport, Letter.of(browsed), set_fields({"note": "mended"}), by=ANN)
            await world.until(lambda: seen == [(result.copy, "a")])
            assert [browsed] == await letters(world)
            assert (browsed.message.id, False) == (result.original, result.discarded)

    asyncio.run(scenario())


def test_an_edit_that_discards_frees_the_key_for_its_copy(opened: Opened) -> None:
    """The note goes before the copy: under a held key the copy runs, and the original is gone."""
    service, seen = Service("billing"), list[str]()

    @service.on(OrderPlaced, on_dead_letter="hold_key")
    async def take(order: OrderPlaced) -> None:
        if order.note != "mended":
            raise Reject("no note")
        seen.append(order.note)

    async def scenario() -> None:
        async with opened() as world, world.running(service) as app:
            await app.publisher.publish(OrderPlaced("a"))
            await world.until(lambda: world.settled(TOPIC, GROUP))
            (browsed,) = await letters(world)
            new_body = set_fields({"note": "mended"})
            result = await edit(
                world.transport, Letter.of(browsed), new_body, by=ANN, reason="no note", discard_original=True
            )
            await world.until(lambda: seen == ["mended"])
            assert result.discarded
            assert [] == await letters(world)
            await until_held(world, [])
            end = [act async for _, act in acts_of(world.transport)][-1]
            assert ("edit", "done", "no note") == (end.verb, end.state, end.reason)
            assert b"mended" not in msgspec.json.encode(end)

    asyncio.run(scenario())


def test_a_refused_copy_leaves_the_original_where_it_was() -> None:
    """The copy is confirmed before the original is removed."""

    async def scenario() -> None:
        broker = MemoryBroker()
        async with open_memory_transport(broker) as transport:
            world = _World(transport)
            await provisioned(world)
            await transport.publish([letter("1")])
            (browsed,) = await letters(world)
            broker.refuse = lambda message: "too_large" if EDITED_FROM in message.headers else None
            with pytest.raises(PublishRejected, match="too_large"):
                await edit(
                    transport, Letter.of(browsed), lambda _: b"{}", by=ANN, reason="broken", discard_original=True
                )
            assert ["1"] == await ids(world)
            assert "failed" == [act async for _, act in acts_of(transport)][-1].state

    asyncio.run(scenario())


class _World:
    """A transport where the helpers expect a world."""

    def __init__(self, transport: object) -> None:
        self.transport = transport


def one(body: bytes, **headers: str) -> Letter:
    """Return a letter with *body*."""
    message = letter("1", key="k", **headers)
    return Letter.of(Browsed(msgspec.structs.replace(message, body=body), 1, 1))


def test_a_copy_links_back_and_carries_nothing_of_the_dead_letter() -> None:
    """The event's own headers travel on; those of the dead letter and of its failures do not."""
    copy = edited_copy(one(b'{"a":1}', tenant="acme", tw_failure="{}"), set_fields({"a": 2}), event_id="new")
    assert (InboxChannel(TOPIC, GROUP), "new", "k", b'{"a":2}') == (copy.to, copy.id, copy.key, copy.body)
    assert ("new", "1", "acme") == (copy.headers["ce-id"], copy.headers[EDITED_FROM], copy.headers["tenant"])
    assert [] == [name for name in copy.headers if name.startswith("dl-") or name in ("tw-failure", "tw-redriven")]


def test_a_structured_event_is_edited_in_its_data() -> None:
    """The copy of a structured CloudEvent is a binary one with the data as its body."""
    body = (
        b'{"specversion":"1.0","id":"1","source":"shop","type":"shop.order.placed","partitionkey":"p",'
        b'"time":"2026-01-01T00:00:00Z","data":{"a":1}}'
    )
    copy = edited_copy(one(body, content_type="application/cloudevents+json"), set_fields({"a": 2}), event_id="new")
    assert (b'{"a":2}', "p", "new", "shop.order.placed") == (copy.body, copy.key, copy.id, copy.headers["ce-type"])
    with pytest.raises(ConfigurationError, match="structured"):
        edited_copy(one(b"{}", content_type="application/cloudevents+json"), set_fields({"a": 2}), event_id="new")


@pytest.mark.parametrize(
    ("body", "values", "wanted"),
    [
        (b'{"a":{"b":[1,{"c":2}]}}', {"a.b[1].c": 3}, b'{"a":{"b":[1,{"c":3}]}}'),
        (b'{"a":[1,2]}', {"$.a[0]": None}, b'{"a":[null,2]}'),
        (b"[1,2]", {"$[1]": "x"}, b'[1,"x"]'),
        (
            b'{"a":0.10,"b":12345678901234567890.5}',
            {"c": value_of("1.50")},
            b'{"a":0.10,"b":12345678901234567890.5,"c":1.50}',
        ),
    ],
)
def test_fields_are_set_by_path_and_numbers_keep_their_digits(
    body: bytes, values: dict[str, object], wanted: bytes
) -> None:
    """What was not set is what it was, to the last digit."""
    assert wanted == set_fields(values)(body)


@pytest.mark.parametrize("path", ["", "$", "a..b", "[x]", ".a", "a[1", "a]"])
def test_a_path_that_is_none_is_refused(path: str) -> None:
    """A path is names and numbers, nothing else."""
    with pytest.raises(ConfigurationError, match="no path"):
        set_fields({path: 1})


@pytest.mark.parametrize(
    ("body", "path"), [(b'{"a":1}', "a.b"), (b'{"a":{}}', "a.b.c"), (b'{"a":[1]}', "a[1]"), (b"[1]", "a"), (b"no", "a")]
)
def test_a_path_that_leads_nowhere_is_refused(body: bytes, path: str) -> None:
    """Nothing is made on the way, and a list does not grow."""
    with pytest.raises(ConfigurationError):
        set_fields({path: 1})(body)


def test_a_new_body_that_says_json_must_be_json() -> None:
    """A typing error becomes no second dead letter."""
    with pytest.raises(ConfigurationError, match="not JSON"):
        edited_copy(one(b"{}"), lambda _: b"{", event_id="new")
    assert b"\x00" == edited_copy(one(b"{}", content_type="image/png"), lambda _: b"\x00", event_id="new").body


def test_a_held_letter_can_be_discarded_where_it_waits(opened: Opened) -> None:
    """A discarded follower leaves the key's order to the others."""

    async def scenario() -> None:
        async with opened() as world:
            await provisioned(world)
            follower = letter("2", key="k", reason=Reason.HELD)
            await world.transport.publish([letter("1", key="k"), follower, letter("3", key="k", reason=Reason.HELD)])
            plan = await plan_of(world, Selection(ids=("2",)), whole_keys=False)
            assert 1 == (await discard(world.transport, plan, by=ANN, reason="twice")).moved
            assert ["1", "3"] == await ids(world)
            (note,) = await world.transport.browse(InboxChannel(TOPIC, GROUP))
            assert ("2", b"", "twice") == (note.message.id, note.message.body, note.message.headers["tw-discarded"])

    asyncio.run(scenario())
