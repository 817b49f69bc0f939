"""Plain messages as events: what a declaration makes of headers, bytes and places."""

from __future__ import annotations

import json
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tidewire import Body, ConfigurationError, ContentHash, Header, Plain, Position, domain_event, event
from tidewire.model import Delivery, InboxChannel, Message, Reason, Topic
from tidewire.rules.cloudevents import envelope_of
from tidewire.rules.plain import Mapped, Unmapped, plain_topic, read_plain

TAKEN_AT = 1_764_320_400_000_000


@event("shop.order.placed", version=2, key="order_id")
class OrderPlaced:
    """An order."""

    order_id: str


@event("shop.order.paid", key="order_id")
class OrderPaid:
    """Its money."""

    order_id: str


@event("shop.page.viewed")
class PageViewed:
    """On another topic."""

    number: int


@domain_event
class Inside:
    """Goes through no broker."""


def delivery(body: Any = None, *, key: str | None = None, **headers: str) -> Delivery:
    names = {name.replace("_", "-"): value for name, value in headers.items()}
    raw = body if isinstance(body, bytes) else json.dumps(body).encode()
    return Delivery(Message(Topic("shop.order"), "", "", key, names, raw), "shop.order/3", 1, 1042, stored_at=TAKEN_AT)


def read(plain: Plain, given: Delivery) -> Mapped:
    found = read_plain(plain_topic(plain), given)
    assert isinstance(found, Mapped), found
    return found


def refused(plain: Plain, given: Delivery) -> tuple[Reason, str]:
    found = read_plain(plain_topic(plain), given)
    assert isinstance(found, Unmapped), found
    return found.reason, found.detail


def event_in(plain: Plain, given: Delivery) -> Message:
    message = read(plain, given).event
    assert message is not None
    return message


def test_the_least_declaration_gives_a_whole_envelope() -> None:
    """A class and where the id stands are enough: source, time, version and key have defaults that are there."""
    given = delivery({"order_id": "a"}, key="k", message_id="77", tenant="acme")
    message = event_in(Plain(OrderPlaced, id=Header("message-id")), given)
    envelope = envelope_of(message.headers)
    assert ("77", "shop.order", "shop.order.placed", 2) == (
        envelope.id,
        envelope.source,
        envelope.type,
        envelope.version,
    )
    assert ("k", "2025-11-28T09:00:00+00:00") == (envelope.key, envelope.time and envelope.time.isoformat())
    assert ("77", "shop.order", "k", "acme") == (message.id, message.source, message.key, message.headers["tenant"])
    assert given.message.body == message.body


def test_everything_may_stand_in_the_body() -> None:
    """Fields are found by a path, numbers count as texts, and one object inside may be the event."""
    document = {
        "what": "paid",
        "meta": {"no": 17, "till": "till-3", "at": 1_764_320_400_123, "v": 1},
        "payload": {"order_id": "ä"},
    }
    plain = Plain(
        {"placed": OrderPlaced, "paid": OrderPaid},
        type=Body("what"),
        id=Body("meta.no"),
        source=Body("meta.till"),
        key=Body("payload.order_id"),
        time=Body("meta.at"),
        version=Body("meta.v"),
        data=Body("payload"),
        content_type="application/json",
    )
    message = event_in(plain, delivery(document, content_type="text/plain"))
    envelope = envelope_of(message.headers)
    assert ("17", "till-3", "ä", "shop.order.paid", 1) == (
        envelope.id,
        envelope.source,
        envelope.key,
        envelope.type,
        envelope.version,
    )
    assert "2025-11-28T09:00:00.123000+00:00" == (envelope.time and envelope.time.isoformat())
    assert ("application/json", {"order_id": "ä"}) == (envelope.datacontenttype, json.loads(message.body))


def test_what_is_kept_of_it_is_as_it_came() -> None:
    """A retry or a dead letter holds the original headers and bytes, under the event's id, source and key."""
    given = delivery({"data": {"order_id": "a"}, "no": 1}, key="k", kind="placed")
    original = read(Plain(OrderPlaced, id=Body("no"), data=Body("data"), source="till"), given).original
    assert ("1", "till", "k", given.message.body) == (original.id, original.source, original.key, original.body)
    assert {"kind": "placed", "ce-time": "2025-11-28T09:00:00Z"} == original.headers


def test_what_comes_back_is_the_same_event() -> None:
    """From the group's own channel, at another place and time, a message has the identity it was given at first."""
    plain = Plain(OrderPlaced, id=Position())
    first = read(plain, delivery({"order_id": "a"}, key="k"))
    back = Delivery(
        msgspec.structs.replace(first.original, to=InboxChannel("shop.order", "billing")), "shop.order/0", 1, 5
    )
    assert "shop.order/3/1042" == first.original.id
    again = read(plain, back)
    assert first.event is not None
    assert again.event is not None
    assert (first.event.headers, first.event.id) == (again.event.headers, again.event.id)


def test_the_first_id_that_is_there_counts() -> None:
    """Where a header is missing, the next one is taken; a place on the broker is always there."""
    plain = Plain(OrderPlaced, id=[Header("message-id"), Body("no"), Position()])
    assert "7" == event_in(plain, delivery({"no": 8}, message_id="7")).id
    assert "8" == event_in(plain, delivery({"no": 8}, message_id="")).id
    assert "shop.order/3/1042" == event_in(plain, delivery({"no": None})).id


def test_a_hash_knows_what_is_sent_twice() -> None:
    """The same bytes under the same key are one event, wherever they lie; other bytes or another key are not."""
    plain = Plain(OrderPlaced, id=ContentHash())
    once = event_in(plain, delivery({"order_id": "a"}, key="k")).id
    elsewhere = msgspec.structs.replace(delivery({"order_id": "a"}, key="k"), position=9)
    assert once == event_in(plain, elsewhere).id
    assert once != event_in(plain, delivery({"order_id": "a"}, key="l")).id
    assert once != event_in(plain, delivery({"order_id": "b"}, key="k")).id


def test_a_kind_that_nobody_wants_is_skipped_and_an_unknown_one_is_not() -> None:
    """None says that a kind is known; what was not declared at all becomes a dead letter that names what was."""
    plain = Plain({"placed": OrderPlaced, "viewed": None}, type=Header("kind"), id=Position())
    assert read(plain, delivery({}, kind="viewed")).event is None
    reason, detail = refused(plain, delivery({}, kind="plaecd"))
    assert Reason.UNKNOWN_TYPE == reason
    assert "its kind is 'plaecd', and the service accepts placed, viewed" == detail


@pytest.mark.parametrize(
    ("plain", "given", "said"),
    [
        (Plain(OrderPlaced, id=Header("no")), delivery({}), "it has no id: the header no is not there"),
        (
            Plain(OrderPlaced, id=[Header("no"), Body("a.b")]),
            delivery({"a": {}}),
            "it has no id: the header no and the field a.b of the body is not there",
        ),
        (Plain(OrderPlaced, id=Body("no")), delivery(b"\xff"), "the body is no JSON object"),
        (Plain(OrderPlaced, id=Body("no")), delivery(b"[" * 100_000), "the body is no JSON object"),
        (Plain(OrderPlaced, id=Body("a.b")), delivery({"a": 1}), "the field a of the body is no JSON object"),
        (
            Plain(OrderPlaced, id=Body("no")),
            delivery({"no": True}),
            "the field no of the body is neither a text nor a number",
        ),
        (
            Plain(OrderPlaced, id=Body("no")),
            delivery({"no": "x" * 300}),
            "its id cannot travel: the field no of the body has control characters, or more than 256",
        ),
        (Plain(OrderPlaced, id=Position(), key=Header("k")), delivery({}), "it has no key: the header k is not there"),
        (
            Plain(OrderPlaced, id=Position(), data=Body("d")),
            delivery({"d": None}),
            "it has no data: the field d of the body is not there",
        ),
        (
            Plain(OrderPlaced, id=Position(), time=Header("at")),
            delivery({}, at="2026-11-28 09:00"),
            "its time is neither RFC 3339 with a time zone nor a number since 1970: the header at is "
            "'2026-11-28 09:00'",
        ),
        (
            Plain({"a": OrderPlaced}, type=Body("k"), id=Position()),
            delivery({}),
            "it has no kind: the field k of the body is not there",
        ),
    ],
)  # fmt: skip
def test_what_is_declared_must_be_there(plain: Plain, given: Delivery, said: str) -> None:
    """A message that lacks it becomes a dead letter whose detail names the place."""
    assert (Reason.UNDECODABLE, said) == refused(plain, given)


def test_a_message_that_cannot_be_read_is_named_as_far_as_it_can_be() -> None:
    """So its key can be held behind it, and an operator finds it."""
    found = read_plain(
        plain_topic(Plain({"placed": OrderPlaced}, type=Header("kind"), id=Position(), source="till")),
        delivery({}, key="k"),
    )
    assert ("shop.order/3/1042", "till", "k") == (found.original.id, found.original.source, found.original.key)
    found = read_plain(plain_topic(Plain(OrderPlaced, id=Body("no"), key=Body("k"))), delivery({"k": "l"}, key="k"))
    assert ("", "shop.order", "l") == (found.original.id, found.original.source, found.original.key)


@given(
    body=st.binary() | st.recursive(
        st.none() | st.booleans() | st.floats(allow_nan=False) | st.text(),
        lambda inner: st.lists(inner) | st.dictionaries(st.sampled_from(["id", "kind", "at", "a"]), inner),
    ).map(lambda value: json.dumps(value).encode()),
    headers=st.dictionaries(st.sampled_from(["id", "kind", "at", "ce-time"]), st.text()),
    plain=st.sampled_from(
        [
            Plain({"placed": OrderPlaced}, type=Body("kind"), id=Body("id"), time=Body("at"), key=Body("a.id")),
            Plain({"placed": OrderPlaced}, type=Header("kind"), id=Header("id"), time=Header("at")),
            Plain(OrderPlaced, id=[Body("id"), ContentHash()], version=Body("a"), data=Body("a")),
            Plain(OrderPlaced, id=Position(), source=Header("id")),
        ]
    ),
)  # fmt: skip
def test_no_bytes_make_reading_fail(body: bytes, headers: dict[str, str], plain: Plain) -> None:
    """Whatever a stranger sends is an event, or is said not to be one; and an event has a whole envelope."""
    found = read_plain(plain_topic(plain), delivery(body, **headers))
    if isinstance(found, Mapped) and found.event is not None:
        envelope = envelope_of({**found.event.headers, "ce-schemaversion": "1"})
        assert (envelope.id, envelope.key) == (found.original.id, found.original.key)
        assert envelope.id


@pytest.mark.parametrize(
    ("declare", "said"),
    [
        (lambda: Plain(OrderPlaced, id="order_id"), r"id= is Header\(…\), Body\(…\), Position\(\), ContentHash\(\)"),
        (lambda: Plain(OrderPlaced, id=[Position(), Header("a")]), "can only come last"),
        (lambda: Plain(OrderPlaced, id=[]), "id= is Header"),
        (lambda: Plain({"placed": OrderPlaced}, id=Position()), "need type="),
        (lambda: Plain(OrderPlaced, id=Position(), type=Header("kind")), "needs events by kind"),
        (lambda: Plain({"a": OrderPlaced, "b": PageViewed}, type=Header("k"), id=Position()), "of several topics"),
        (lambda: Plain({"a": None}, type=Header("k"), id=Position()), "it names no event"),
        (lambda: Plain(Inside, id=Position()), "is a domain event"),
        (lambda: Plain(OrderPlaced, id=Position(), version=0), "a number from 1"),
        (lambda: Plain(str, id=Position()), "str is not an event"),
    ],
)
def test_a_declaration_that_cannot_be_meant_is_refused_where_it_stands(declare: Any, said: str) -> None:
    """The error comes at import, and says what to write instead."""
    with pytest.raises(ConfigurationError, match=said):
        declare()
