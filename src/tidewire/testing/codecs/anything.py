"""Any event and any bytes: the strategies and settings of the suite. The one module that imports hypothesis."""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, timedelta, timezone

from hypothesis import given, settings
from hypothesis import strategies as st

from tidewire.testing.codecs.events import Everything, Kind, Part

__all__ = ["any_bytes", "any_event", "any_mutation"]

_same_every_time = settings(
    max_examples=150, derandomize=True, database=None, deadline=None, report_multiple_bugs=False
)

_texts = st.text(st.characters(codec="utf-8", exclude_characters="\0"), max_size=20)
_prices = st.decimals(allow_nan=False, allow_infinity=False, places=2, min_value=-(10**9), max_value=10**9)
_parts = st.builds(Part, _texts, _prices, st.lists(_texts, max_size=3))
_zones = st.just(UTC) | st.builds(
    timezone, st.integers(-14 * 60, 14 * 60).map(lambda minutes: timedelta(minutes=minutes))
)
_events = st.builds(
    Everything,
    text=_texts,
    number=st.integers(-(2**63), 2**63 - 1),
    ratio=st.floats(allow_nan=False, allow_infinity=False),
    price=_prices,
    when=st.datetimes(timezones=_zones).filter(lambda when: 2 < when.year < 9_998),
    identity=st.uuids(),
    kind=st.sampled_from(Kind),
    parts=st.lists(_parts, max_size=3),
    by_name=st.dictionaries(_texts, _parts, max_size=3),
    pause=st.timedeltas(timedelta(days=-10), timedelta(days=10_000)),
    raw=st.binary(max_size=20),
    yes=st.booleans(),
    maybe=st.none() | _parts,
    default=st.integers(0, 9),
)


def any_event(demand: Callable[[Everything], None]) -> None:
    """Call *demand* with events of every kind."""

    @_same_every_time
    @given(_events)
    def each(event: Everything) -> None:
        demand(event)

    each()


def any_bytes(demand: Callable[[bytes], None]) -> None:
    """Call *demand* with bytes of every kind."""

    @_same_every_time
    @given(st.binary(max_size=300))
    def each(body: bytes) -> None:
        demand(body)

    each()


def any_mutation(body: bytes, demand: Callable[[bytes], None]) -> None:
    """Call *demand* with *body* after a piece of it was replaced: by other bytes, by nothing, or by itself twice."""
    places = st.integers(0, len(body))
    pieces = st.binary(max_size=8) | st.sampled_from([body[:20], body[-20:], b"\x00", b"\xff" * 9, b"\x80" * 4])

    @_same_every_time
    @given(st.tuples(places, places), pieces)
    def each(between: tuple[int, int], piece: bytes) -> None:
        demand(body[: min(between)] + piece + body[max(between) :])

    each()
