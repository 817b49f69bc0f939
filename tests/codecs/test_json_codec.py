"""Events as JSON: what goes in comes out, what cannot travel is refused with its path, hostile bytes are errors."""

from __future__ import annotations

import contextlib
import enum
import math
import time
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from typing import Any
from uuid import UUID

import attrs
import msgspec
import pydantic
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tidewire.codecs.faithful import checker_for, first_unfaithful
from tidewire.codecs.json import json_codec
from tidewire.errors import ConfigurationError, DecodeError


class Kind(enum.Enum):
    """An enum."""

    SMALL = "small"
    LARGE = "large"


@dataclass(frozen=True)
class Part:
    """Something nested."""

    name: str
    price: Decimal
    tags: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class Everything:
    """Every type an event is made of."""

    text: str
    number: int
    ratio: float
    price: Decimal
    when: datetime
    identity: UUID
    kind: Kind
    parts: list[Part]
    by_name: dict[str, Part]
    pause: timedelta
    raw: bytes
    maybe: Part | None = None
    default: int = 7


texts = st.text(st.characters(codec="utf-8", exclude_characters="\0"), max_size=20)
prices = st.decimals(allow_nan=False, allow_infinity=False, places=2, min_value=-(10**9), max_value=10**9)
parts = st.builds(Part, texts, prices, st.lists(texts, max_size=3))
events = st.builds(
    Everything,
    texts,
    st.integers(-(2**63), 2**64 - 1),
    st.floats(allow_nan=False, allow_infinity=False),
    prices,
    st.datetimes(timezones=st.just(UTC)),
    st.uuids(),
    st.sampled_from(Kind),
    st.lists(parts, max_size=3),
    st.dictionaries(texts, parts, max_size=3),
    st.timedeltas(timedelta(0), timedelta(days=10)),
    st.binary(max_size=20),
    st.none() | parts,
    st.integers(0, 9),
)
CODEC = json_codec(Everything)


@given(events)
def test_what_goes_in_comes_out(event: Everything) -> None:
    """Nested structures, Decimal, datetime, UUID, enums, optional and default fields round-trip."""
    assert event == CODEC.decode(CODEC.encode(event))


@given(st.binary(max_size=200))
def test_no_bytes_raise_anything_but_a_decode_error(body: bytes) -> None:
    """R13: hostile bytes can only yield a dead letter."""
    with pytest.raises(DecodeError):
        CODEC.decode(body)


@pytest.mark.parametrize(
    "body", [b"[" * 100_000, b'{"text":' + b"[" * 100_000, b'{"x":' * 500 + b"1" + b"}" * 500, b"1" * 1_000_000, b""]
)
def test_bombs_are_decode_errors(body: bytes) -> None:
    """Depth, digits, nothing at all."""
    with pytest.raises(DecodeError):
        CODEC.decode(body)


@dataclass(frozen=True)
class Loose:
    """Things that JSON carries badly."""

    ratio: float = 0.0
    price: Decimal = Decimal(0)
    when: datetime = datetime(2026, 1, 1, tzinfo=UTC)
    number: int = 0
    text: str = ""
    anything: Any = None


LOOSE = json_codec(Loose)


@pytest.mark.parametrize(
    ("event", "path"),
    [
        (Loose(ratio=math.nan), "ratio"),
        (Loose(ratio=math.inf), "ratio"),
        (Loose(price=Decimal("NaN")), "price"),
        (Loose(price=Decimal("-Infinity")), "price"),
        (Loose(when=datetime(2026, 1, 1)), "when"),
        (Loose(number=2**64), "number"),
        (Loose(text="a\0b"), "NUL"),
        (Loose(text="\ud800"), "surrogate"),
        (Loose(anything={"deep": [math.nan]}), "deep"),
    ],
)
def test_what_json_carries_badly_is_refused_at_publish(event: Loose, path: str) -> None:
    """DEP-03, DEP-08, SC5: named with its path, never written as null or as something else."""
    with pytest.raises(ConfigurationError, match=path):
        LOOSE.encode(event)


@pytest.mark.parametrize(
    "body",
    [
        b'{"price":"NaN"}',
        b'{"when":"2026-01-01T00:00:00"}',
        b'{"number":18446744073709551616}',
        b'{"text":"a\\u0000b"}',
        b'{"text":"\\ud800"}',
        b'{"anything":' + b"[" * 65 + b"]" * 65 + b"}",
        b'{"ratio":NaN}',
    ],
)
def test_what_json_carries_badly_is_refused_at_decode(body: bytes) -> None:
    """The other way round, for whatever producer."""
    with pytest.raises(DecodeError):
        LOOSE.decode(body)


def test_an_error_names_the_path() -> None:
    """Where in the body, as msgspec writes it."""
    with pytest.raises(DecodeError) as refused:
        json_codec(Part).decode(b'{"name":"a","price":"1","tags":[1]}')
    assert "$.tags[0]" == refused.value.path


def test_unknown_fields_are_ignored() -> None:
    """A newer producer does no harm (DEP-10)."""
    assert Part("a", Decimal(1)) == json_codec(Part).decode(b'{"name":"a","price":"1","new":{}}')


class Model(pydantic.BaseModel):
    """A pydantic model with a rule."""

    number: int

    @pydantic.field_validator("number")
    @classmethod
    def positive(cls, value: int) -> int:
        """Only positive ones."""
        if value < 0:
            raise ValueError("must not be negative")
        return value


@pydantic.dataclasses.dataclass
class Checked:
    """A pydantic dataclass with a rule."""

    number: pydantic.NonNegativeInt


class Blob(pydantic.BaseModel):
    """Bytes without a mode."""

    raw: bytes


@pytest.mark.parametrize("cls", [Model, Checked])
def test_pydantics_validators_run(cls: Any) -> None:
    """DEP-01: for models and for pydantic dataclasses alike."""
    codec = json_codec(cls)
    assert 3 == codec.decode(codec.encode(cls(number=3))).number
    with pytest.raises(DecodeError):
        codec.decode(b'{"number":-1}')


def test_pydantic_bytes_need_a_mode() -> None:
    """DEP-06: refused when the codec is made, with the fix."""
    with pytest.raises(ConfigurationError, match="base64"):
        json_codec(Blob)


@attrs.frozen
class Attrs:
    """An attrs class."""

    name: str


class Struct(msgspec.Struct, frozen=True):
    """A msgspec Struct."""

    name: str


@pytest.mark.parametrize("cls", [Attrs, Struct])
def test_attrs_classes_and_structs_are_taken_as_they_are(cls: Any) -> None:
    """All families of classes have one codec function."""
    codec = json_codec(cls)
    assert cls(name="a") == codec.decode(codec.encode(cls(name="a")))


def test_a_type_that_json_cannot_carry_is_refused_when_the_codec_is_made() -> None:
    """Not at the first event."""

    @dataclass
    class Odd:
        thing: complex

    with pytest.raises(ConfigurationError, match="Odd has a field"):
        json_codec(Odd)


def test_a_backslash_before_u0000_is_text() -> None:
    """Only the escape is the character NUL; a path such as ``C:\\u0000`` is not."""
    codec = json_codec(Part)
    part = Part("C:\\u0000", Decimal(1))
    assert part == codec.decode(codec.encode(part))
    with pytest.raises(DecodeError, match="NUL"):
        codec.decode(b'{"name":"\\u0000","price":"1"}')


@pytest.mark.parametrize("part", [b'"[\\"",', b'["\\', b'"', b"[],", b'\\"['])
def test_looking_for_depth_takes_linear_time(part: bytes) -> None:
    """Ten times the brackets and quotes take about ten times as long, not a hundred times."""
    codec = json_codec(Loose)

    def seconds(count: int) -> float:
        body = b'{"anything":[[[' + b"[]," * 600 + part * count
        started = time.process_time()
        with contextlib.suppress(DecodeError):
            codec.decode(body)
        return time.process_time() - started

    seconds(1_000)
    assert min(seconds(200_000) for _ in range(3)) < 40 * max(min(seconds(20_000) for _ in range(3)), 0.001)


@dataclass(frozen=True)
class Leaves:
    """What a number or a time can be, once, in a list and in a list of lists."""

    whole: int
    ratio: float
    price: Decimal
    when: datetime
    maybe: Decimal | None
    prices: list[Decimal]
    table: list[list[int]]
    parts: list[Part]


NUMBERS = st.integers() | st.sampled_from([-(2**63) - 1, -(2**63), 2**63, 2**64 - 1, 2**64]) | st.floats()
ODD = st.one_of(NUMBERS, st.decimals(), st.datetimes(), st.none(), st.text(max_size=2), st.booleans())
TIMES = st.datetimes() | st.datetimes(timezones=st.just(UTC))


@given(
    st.builds(
        Leaves,
        whole=NUMBERS | ODD,
        ratio=NUMBERS | ODD,
        price=st.decimals() | ODD,
        when=TIMES | ODD,
        maybe=st.decimals() | ODD,
        prices=st.lists(st.decimals() | ODD, max_size=3),
        table=st.lists(st.lists(NUMBERS, max_size=3), max_size=3),
        parts=st.lists(st.builds(Part, name=st.text(max_size=2), price=st.decimals() | ODD), max_size=3),
    )
)
def test_the_quick_look_passes_nothing_that_the_close_one_refuses(leaves: Leaves) -> None:
    """What the statements that are written for a type let through is faithful, looked at one by one, too."""
    check, _ = checker_for(msgspec.inspect.type_info(Leaves))
    assert check is not None
    assert bool(check(leaves)) == bool(first_unfaithful(leaves))


def test_a_field_may_have_a_name_that_python_cannot_write() -> None:
    """A field that is called like a word of the language is held to the same as any other."""
    named = msgspec.defstruct("Named", [("class", float), ("lines", list[float])])
    codec = json_codec(named)
    assert named(1.5, [2.5]) == codec.decode(codec.encode(named(1.5, [2.5])))
    for value, path in ((named(math.inf, []), "class is inf"), (named(1.5, [1.0, math.nan]), r"lines\[1\] is nan")):
        with pytest.raises(ConfigurationError, match=path):
            codec.encode(value)


def test_lists_may_lie_in_lists_deeper_than_python_has_loops() -> None:
    """A number is found however many lists it lies in."""
    kind: Any = float
    well, wrong = [1.5], [math.inf]
    for _ in range(30):
        kind, well, wrong = list[kind], [well], [wrong]
    deep = msgspec.defstruct("Deep", [("table", kind)])
    codec = json_codec(deep)
    assert deep(well[0]) == codec.decode(codec.encode(deep(well[0])))
    with pytest.raises(ConfigurationError, match="is inf"):
        codec.encode(deep(wrong[0]))


def test_backslashes_are_no_nul() -> None:
    """Only an escaped NUL is one: a text may hold backslashes, and what looks like the escape of one."""
    codec = json_codec(Part)
    for text in ("a\\b", "\\u0000", "\\\\u0000", 'quote "', "line\n"):
        part = Part(text, Decimal(1))
        assert part == codec.decode(codec.encode(part))
    with pytest.raises(ConfigurationError, match="NUL"):
        codec.encode(Part("a\0\\", Decimal(1)))
