"""The codecs of this repository as the conformance suite wants them."""

from __future__ import annotations

from collections.abc import Callable

from tidewire.codecs.json import json_codec
from tidewire.protocols import Codec
from tidewire.testing.codecs import Site

JSON_BOMBS = [
    b'{"text":' + b"[" * 100_000,
    b'{"ignored":' + b"[" * 100_000 + b"]" * 100_000 + b"}",
    b'{"name":"a","child":' * 100_000 + b"null" + b"}" * 100_000,
    b'{"x":' * 500 + b"1" + b"}" * 500,
    b'{"whole":' + b"9" * 1_000_000 + b"}",
    b'{"ratio":1e' + b"9" * 10_000 + b"}",
    b'{"price":"' + b"9" * 1_000_000 + b'"}',
    b'{"price":"1e999999999"}',
    b'{"ratio":NaN,"price":"NaN"}',
    b'{"text":"\\ud800"}',
    b'{"text":"a\\u0000b"}',
    b'{"text":"' + b"\\u00e9" * 100_000 + b'"}',
    b'{"whole":1,' * 1_000 + b'"whole":2}',
    b'{"named":{' + b",".join(b'"%d":"%d"' % (number, number) for number in range(20_000)) + b"}}",
]


def json_site(codec: Callable[[type], Codec] = json_codec, elsewhere: str = "tidewire.codecs.json:json_codec") -> Site:
    """Return JSON; *codec* may put something between the suite and the codec."""
    return Site(codec=codec, bombs=JSON_BOMBS, elsewhere=elsewhere)
