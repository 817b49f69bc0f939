"""Section C: hostile bytes. Whatever comes is an event of the type or a `DecodeError`, soon."""

# ruff: noqa: SIM300  (the expected value stands on the left)

from __future__ import annotations

import contextlib
import time

from tidewire.errors import DecodeError
from tidewire.testing.codecs.bench import Site, event_or_decode_error, properties
from tidewire.testing.codecs.events import EXAMPLE, Everything, Narrow, Newer, Node, Numbers, Older, Texts
from tidewire.testing.transports.bench import raises

NOISE = [
    b"",
    b"\0",
    b"\0" * 10_000,
    b"\xff" * 10_000,
    b"\x80" * 10_000,
    b"\xef\xbb\xbf",
    b"[" * 100_000,
    b"{" * 100_000,
    b'{"a":' * 100_000,
    b"(" * 100_000,
    b"1" * 1_000_000,
    b"-",
    b"1e999999999",
    b'"' + b"\\" * 9_999,
    b"null",
    b"\xde\xad\xbe\xef" * 500,
    bytes(range(256)) * 10,
    b"\x0a\xff\xff\xff\xff\x0f",
    b"\xdd\xff\xff\xff\xff",
    b"\x82\x00\x00\x00\x00",
]


def test_noise_is_a_decode_error(site: Site) -> None:
    """R13, T2: nothing, zeros, brackets, digits, lengths: an event of the type or a DecodeError, for any class."""
    for kind in (Everything, Texts, Numbers, Older, Narrow):
        codec = site.codec(kind)
        for body in NOISE:
            event_or_decode_error(codec, body, kind=kind)


def test_bombs_are_decode_errors(site: Site) -> None:
    """R13, T2, DEP-11: what is known to hurt decoders of this format is a DecodeError, in ignored fields too."""
    assert site.bombs, "the format's own bombs are named by the adapter"
    kinds = [Everything, Texts, Numbers, Older, *([Node] if site.recursive else [])]
    for kind in kinds:
        codec = site.codec(kind)
        for body in site.bombs:
            event_or_decode_error(codec, body, kind=kind)


def test_any_bytes_are_an_event_or_a_decode_error(site: Site) -> None:
    """R13, PB-59: the same for any bytes (a property, tried on many)."""
    codec = site.codec(Everything)
    properties().any_bytes(lambda body: event_or_decode_error(codec, body, kind=Everything))


def test_any_change_to_a_body_is_an_event_or_a_decode_error(site: Site) -> None:
    """R13, PB-59: a good body of which any piece was replaced (a property, tried on many)."""
    codec = site.codec(Everything)
    properties().any_mutation(codec.encode(EXAMPLE), lambda body: event_or_decode_error(codec, body, kind=Everything))


def test_every_beginning_is_an_event_or_a_decode_error(site: Site) -> None:
    """R13: a body that was cut off at any byte."""
    codec = site.codec(Everything)
    body = codec.encode(EXAMPLE)
    for length in range(len(body)):
        event_or_decode_error(codec, body[:length], kind=Everything)


def test_every_flipped_bit_is_an_event_or_a_decode_error(site: Site) -> None:
    """R13, ST-12: a body of which one bit is wrong."""
    codec = site.codec(Everything)
    body = bytearray(codec.encode(EXAMPLE))
    for place in range(len(body)):
        for bit in range(8):
            body[place] ^= 1 << bit
            event_or_decode_error(codec, bytes(body), kind=Everything)
            body[place] ^= 1 << bit


def test_bodies_of_other_classes_are_an_event_or_a_decode_error(site: Site) -> None:
    """R13: what was written as another class's."""
    bodies = [
        site.codec(Everything).encode(EXAMPLE),
        site.codec(Texts).encode(Texts("a", ["b"], {"c": "d"}, b"e")),
        site.codec(Numbers).encode(Numbers(1, 2.0)),
        site.codec(Newer).encode(Newer("1")),
    ]
    for kind in (Everything, Texts, Numbers, Older, Newer, Narrow):
        codec = site.codec(kind)
        for body in bodies:
            event_or_decode_error(codec, body, kind=kind)


def test_nothing_at_all_is_no_event_with_required_fields(site: Site) -> None:
    """A message without a body is no event whose class asks for values that differ from any default."""
    with raises(DecodeError):
        site.codec(Everything).decode(b"")


def test_good_event_after_a_bad_one(site: Site) -> None:
    """R13: the next good event is still read: a codec keeps nothing of a failure."""
    codec = site.codec(Everything)
    good = codec.encode(EXAMPLE)
    for body in (*NOISE, *site.bombs, good[:-1], good[1:]):
        event_or_decode_error(codec, body, kind=Everything)
        assert EXAMPLE == codec.decode(good)


def test_time_grows_with_the_bytes(site: Site) -> None:
    """T2: ten times the bytes take about ten times as long, not a hundred times."""
    codec = site.codec(Texts)

    def seconds(count: int) -> float:
        body = codec.encode(Texts(texts=['a"\\[{'] * count))
        hostile = body[: len(body) // 2]
        best = 1e9
        for _ in range(3):
            started = time.process_time()
            codec.decode(body)
            with contextlib.suppress(DecodeError):
                codec.decode(hostile)
            best = min(best, time.process_time() - started)
        return best

    small = max(seconds(10_000), 0.0005)
    assert seconds(100_000) < 50 * small
