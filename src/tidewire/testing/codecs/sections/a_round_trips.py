"""Section A: what goes in comes out, or is refused when it goes in. Nothing is changed in silence."""

# ruff: noqa: SIM300  (the expected value stands on the left)

from __future__ import annotations

import contextlib
import math
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta, timezone
from decimal import Decimal

from tidewire.errors import ConfigurationError, DecodeError
from tidewire.testing.codecs.bench import Site, properties, same_or_refused
from tidewire.testing.codecs.events import EXAMPLE, Everything, Narrow, Newer, Node, Numbers, Texts, Times
from tidewire.testing.transports.bench import raises


def test_every_type_round_trips(site: Site) -> None:
    """Nested structures, Decimal, datetime, UUID, enums, bytes, optional and default fields come back equal."""
    assert EXAMPLE == site.round_trip(EXAMPLE)


def test_any_event_round_trips(site: Site) -> None:
    """The same for any event (a property, tried on many)."""
    codec = site.codec(Everything)

    def demand(event: Everything) -> None:
        assert event == codec.decode(codec.encode(event))

    properties().any_event(demand)


def test_whole_numbers_keep_every_digit(site: Site) -> None:
    """SC5: whole numbers beyond 2^53 come back exactly; those beyond 64 bits too, or they are refused."""
    for number in (0, -1, 2**53 + 1, -(2**53) - 1, 2**63 - 1, -(2**63)):
        assert Numbers(whole=number) == site.round_trip(Numbers(whole=number))
    for number in (2**63, 2**64 - 1, 2**64, -(2**63) - 1, 10**30):
        same_or_refused(site, Numbers(whole=number), path="whole")


def test_ratios_keep_every_bit(site: Site) -> None:
    """SC5: floats come back bit for bit, the smallest, the largest and minus zero included."""
    for ratio in (0.1, -0.0, 5e-324, 1.7976931348623157e308, 1e16 + 1, 1 / 3):
        back = site.round_trip(Numbers(ratio=ratio)).ratio
        assert (ratio, math.copysign(1, ratio)) == (back, math.copysign(1, back))


def test_what_is_no_number_is_refused_or_kept(site: Site) -> None:
    """SC5, DEP-08: NaN and Infinity never become null or zero."""
    for odd in (math.nan, math.inf, -math.inf):
        same_or_refused(site, Numbers(ratio=odd), path="ratio")
    for text in ("NaN", "Infinity", "-Infinity"):
        same_or_refused(site, Numbers(price=Decimal(text)), path="price")


def test_decimals_keep_every_digit(site: Site) -> None:
    """SC5: amounts are not floats on their way: every digit and the scale come back."""
    for text in ("19.90", "0.1", "-0.000001", "12345678901234567890.123456789", "1E+3", "0.00"):
        assert text == str(site.round_trip(Numbers(price=Decimal(text))).price)


def test_times_keep_their_instant(site: Site) -> None:
    """SC5, DEP-07: instants and spans come back to the microsecond, whatever the zone."""
    zone = timezone(timedelta(hours=-3, minutes=-30))
    for when in (
        datetime(2026, 12, 31, 23, 59, 59, 999_999, tzinfo=UTC),
        datetime(1969, 12, 31, 23, 59, 59, 1, tzinfo=UTC),
        datetime(2024, 2, 29, 0, 0, tzinfo=zone),
        datetime(9990, 1, 1, tzinfo=UTC),
    ):
        assert Times(when=when) == site.round_trip(Times(when=when))
    for pause in (timedelta(microseconds=1), timedelta(days=-1, microseconds=1), timedelta(days=4_000, seconds=59)):
        assert Times(pause=pause) == site.round_trip(Times(pause=pause))


def test_time_without_a_zone_is_refused_or_kept(site: Site) -> None:
    """DEP-03: a naive time is never taken for some zone's."""
    same_or_refused(site, Times(when=datetime(2026, 1, 1, 12)), path="when")


def test_texts_are_not_changed(site: Site) -> None:
    """SC5: no letter is composed, trimmed, escaped twice or cut."""
    for text in (
        "",
        " a ",
        "\u00e9",
        "e\u0301",
        "\U0001f600",
        "\u202e\u2028\ufeff",
        "\"'\\/\b\f\n\r\t\x7f",
        "C:\\u0000",
        "x" * 9,
    ):
        event = Texts(text, [text, text], {text: text})
        assert event == site.round_trip(event)


def test_texts_that_some_formats_lose_are_refused_or_kept(site: Site) -> None:
    """OX-27, SC5: NUL and lone surrogates come back, or are refused."""
    for text in ("a\0b", "\0", "\ud800", "\udfffa"):
        same_or_refused(site, Texts(text))
        same_or_refused(site, Texts(texts=[text]))
        same_or_refused(site, Texts(named={"k": text}))
        same_or_refused(site, Texts(named={text: "v"}))


def test_bytes_are_not_text(site: Site) -> None:
    """DEP-06: any bytes come back, those that are no UTF-8 included."""
    for raw in (b"", b"\0", b"\xff\xfe", bytes(range(256)) * 3):
        assert Texts(raw=raw) == site.round_trip(Texts(raw=raw))


def test_nothing_and_empty_are_told_apart(site: Site) -> None:
    """None, empty, zero and a default are different values, and a field at its default is not lost."""
    for event in (Newer("1"), Newer("1", paid=False), Newer("1", paid=None), Newer("", 0, "", None, [])):
        assert event == site.round_trip(event)
    for changed in (replace(EXAMPLE, maybe=None), replace(EXAMPLE, default=7), replace(EXAMPLE, parts=[], by_name={})):
        assert changed == site.round_trip(changed)


def test_large_events_round_trip(site: Site) -> None:
    """A text of a megabyte and a list of fifty thousand come back."""
    long, many = Texts("\u00e9" * 500_000), Texts(texts=[str(number) for number in range(50_000)])
    assert long == site.round_trip(long)
    assert many == site.round_trip(many)


def test_deep_events_round_trip_or_are_refused(site: Site) -> None:
    """R13, DEP-11: whatever the depth, an event is written and read back, or refused before it is published."""
    site.need(recursive=site.recursive)
    taken: list[int] = []
    for depth in (1, 20, 63, 64, 65, 200, 5_000):
        node = Node("leaf")
        for _ in range(depth):
            node = Node("n", node)
        codec = site.codec(Node)
        try:
            body = codec.encode(node)
        except ConfigurationError:
            continue
        back: object = codec.decode(body)
        steps = 0
        while isinstance(back, Node) and back.child is not None:
            back, steps = back.child, steps + 1
        assert depth == steps
        taken.append(depth)
    assert [1, 20] == taken[:2]


def test_class_that_cannot_travel_is_refused_at_once(site: Site) -> None:
    """A type that the format has no word for is refused when the codec is made, not at the first event."""

    @dataclass(frozen=True)
    class Odd:
        """Has a field that no format has."""

        thing: complex

    with raises(ConfigurationError):
        site.codec(Odd)


def test_wrong_values_are_not_written(site: Site) -> None:
    """What a class was given against its own types never becomes a body that reads as something else."""
    codec = site.codec(Narrow)
    for wrong in ("1", None, 1.5, [1]):
        event = Narrow(1)
        object.__setattr__(event, "count", wrong)
        with contextlib.suppress(ConfigurationError, DecodeError):
            back: object = site.codec(Narrow).decode(codec.encode(event))
            assert Narrow(1) != back
            assert isinstance(back, Narrow)
            assert wrong == back.count, f"{wrong!r} was read as {back.count!r}"
