"""Events of every family of classes, their keys, topics and mistakes, and old versions of them."""

from __future__ import annotations

import dataclasses
import enum
from typing import Any
from uuid import UUID

import attrs
import msgspec
import pydantic
import pytest

from tidewire import domain_event, event, upcast
from tidewire.codecs.json import json_codec
from tidewire.errors import ConfigurationError, DecodeError
from tidewire.rules.events import definition_of
from tidewire.rules.upcasts import decoders


class Colour(enum.Enum):
    """A key that is an enum."""

    RED = "red"


@event("shop.order.placed", version=2, key="order_id")
class OrderPlaced:
    """A plain class."""

    order_id: str
    note: str = "-"


def test_a_plain_class_becomes_a_frozen_slotted_dataclass() -> None:
    """Its name, its docstring and its defaults stay."""
    order = OrderPlaced("1")
    assert ("OrderPlaced", "A plain class.", "-") == (OrderPlaced.__qualname__, OrderPlaced.__doc__, order.note)
    assert not hasattr(order, "__dict__")
    with pytest.raises(dataclasses.FrozenInstanceError):
        order.note = "x"  # type: ignore[misc]


def test_the_topic_is_the_type_without_its_last_segment() -> None:
    """So that the events of one thing share an order; `topic=` overrides."""
    assert ("shop.order", 2, "integration") == (
        definition_of(OrderPlaced).topic,
        definition_of(OrderPlaced).version,
        definition_of(OrderPlaced).kind,
    )

    @event("shop.order.placed", topic="elsewhere")
    class Elsewhere:
        order_id: str

    assert "elsewhere" == definition_of(Elsewhere).topic


@pytest.mark.parametrize("family", ["dataclass", "attrs", "struct", "pydantic"])
def test_other_families_are_taken_as_they_are(family: str) -> None:
    """The very class, with a key."""
    made: Any = {
        "dataclass": lambda: dataclasses.make_dataclass("D", [("order_id", str)]),
        "attrs": lambda: attrs.make_class("A", {"order_id": attrs.field(type=str)}),
        "struct": lambda: msgspec.defstruct("S", [("order_id", str)]),
        "pydantic": lambda: pydantic.create_model("P", order_id=(str, ...)),
    }[family]()
    assert made is event("shop.order.placed", key="order_id")(made)
    assert "7" == definition_of(made).key_of(made(order_id="7"))


@pytest.mark.parametrize(
    ("value", "key"), [("a", "a"), (7, "7"), (UUID(int=1), str(UUID(int=1))), (Colour.RED, "red"), (None, None)]
)
def test_keys_become_text(value: Any, key: str | None) -> None:
    """Texts, numbers, UUIDs and enums; None is no key."""

    @event("a.b", key="k")
    class Keyed:
        k: Any

    assert key == definition_of(Keyed).key_of(Keyed(value))


def test_several_fields_make_one_key_without_collisions() -> None:
    """What separates them cannot be faked by what is in them."""

    @event("a.b", key=("x", "y"))
    class Keyed:
        x: str
        y: str

    key_of = definition_of(Keyed).key_of
    assert key_of(Keyed("a|b", "c")) != key_of(Keyed("a", "b|c"))


def test_every_mistake_is_named_at_once() -> None:
    """Type, version and key, with what was meant."""
    with pytest.raises(ConfigurationError) as refused:

        @event("OrderPlaced", version=0, key="ordr_id")
        class Wrong:
            order_id: str

    for part in ("'OrderPlaced'", "version", "did you mean 'order_id'"):
        assert part in str(refused.value)


def test_what_is_no_event_says_how_to_make_it_one() -> None:
    """A subclass of an event is none by itself."""

    class Sub(OrderPlaced):
        pass

    for cls in (int, Sub):
        with pytest.raises(ConfigurationError, match="@event"):
            definition_of(cls)


def test_domain_events_have_no_topic() -> None:
    """With and without a name."""

    @domain_event
    class Low:
        sku: str

    @domain_event("stock.ran.low")
    class Named:
        sku: str

    assert ("domain", "", "stock.ran.low") == (
        definition_of(Low).kind,
        definition_of(Low).topic,
        definition_of(Named).type,
    )


def test_an_old_version_is_brought_up_to_date_step_by_step() -> None:
    """Small pure functions, one per version; a version without a way is unknown."""

    @event("a.b", version=3)
    class Newest:
        first: str
        last: str

    @upcast(Newest, from_version=2)
    def split(fields: dict[str, Any]) -> dict[str, Any]:
        first, _, last = fields["name"].partition(" ")
        return {"first": first, "last": last}

    @upcast(Newest, from_version=1)
    def rename(fields: dict[str, Any]) -> dict[str, Any]:
        return {"name": fields["title"]}

    readers = decoders(definition_of(Newest), json_codec(Newest), [split, rename])
    assert {"1", "2", "3"} == readers.keys()
    assert Newest("Ada", "Lovelace") == readers["1"](b'{"title":"Ada Lovelace"}')
    with pytest.raises(DecodeError, match="version 3"):
        readers["2"](b"{}")
    assert {"3"} == decoders(definition_of(Newest), json_codec(Newest), [rename]).keys()


def test_an_upcast_from_the_future_is_refused() -> None:
    """A step starts below the class's own version."""
    with pytest.raises(ConfigurationError, match="from version 2"):
        upcast(OrderPlaced, from_version=2)
