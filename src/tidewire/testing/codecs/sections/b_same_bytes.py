"""Section B: one event, one body. Repeats of an event are recognised by the digest of their bytes."""

# ruff: noqa: SIM300  (the expected value stands on the left)

from __future__ import annotations

import subprocess
import sys
import threading
from copy import deepcopy

import msgspec

from tidewire.testing.codecs.bench import Site, properties
from tidewire.testing.codecs.events import EXAMPLE, Everything, Older, Texts

_PROGRAM = """
import json, pkgutil, sys
sys.path[:] = json.loads(sys.argv[1])
from tidewire.testing.codecs.events import EXAMPLE, Everything
sys.stdout.write(pkgutil.resolve_name(sys.argv[2])(Everything).encode(EXAMPLE).hex())
"""


def test_content_type_is_one_word_for_the_format(site: Site) -> None:
    """It is a media type, and the same for every class and at any time."""
    kinds = {site.codec(kind).content_type for kind in (Everything, Texts, Older, Everything)}
    (content_type,) = kinds
    kind, _, name = content_type.partition("/")
    assert kind
    assert name
    assert content_type == content_type.strip().lower()


def test_equal_events_have_equal_bytes(site: Site) -> None:
    """IX-7: encoding again, by another codec, of a copy, or of what was decoded, gives the same bytes."""
    body = site.codec(Everything).encode(EXAMPLE)
    assert isinstance(body, bytes)
    codec = site.codec(Everything)
    assert [body] * 3 == [codec.encode(EXAMPLE), codec.encode(deepcopy(EXAMPLE)), codec.encode(codec.decode(body))]


def test_any_event_has_one_body(site: Site) -> None:
    """The same for any event (a property, tried on many)."""
    codec = site.codec(Everything)

    def demand(event: Everything) -> None:
        body = codec.encode(event)
        assert body == codec.encode(deepcopy(event))
        assert codec.decode(body) == codec.decode(codec.encode(codec.decode(body)))

    properties().any_event(demand)


def test_processes_write_the_same_bytes(site: Site) -> None:
    """IX-7: what another process writes of the same event is the same, whatever its hash seed."""
    here = site.codec(Everything).encode(EXAMPLE).hex()
    path = msgspec.json.encode(sys.path).decode()
    for seed in ("1", "2"):
        asked = [sys.executable, "-c", _PROGRAM, path, site.elsewhere]
        said = subprocess.run(asked, capture_output=True, text=True, check=True, env={"PYTHONHASHSEED": seed})  # noqa: S603
        assert here == said.stdout


def test_decoding_leaves_nothing_shared(site: Site) -> None:
    """A codec is pure: two events of one body share no list or dict, and a default is not one either."""
    codec = site.codec(Texts)
    for event in (Texts(texts=["a"], named={"a": "b"}), Texts()):
        body = codec.encode(event)
        first: object = codec.decode(body)
        second: object = codec.decode(body)
        assert isinstance(first, Texts)
        first.texts.append("changed")
        first.named["changed"] = "c"
        assert event == second == codec.decode(body)


def test_encoding_changes_nothing(site: Site) -> None:
    """The event is as it was."""
    event = deepcopy(EXAMPLE)
    site.codec(Everything).encode(event)
    assert event == EXAMPLE


def test_threads_share_a_codec(site: Site) -> None:
    """Handlers that are plain functions run in threads: one codec serves many at a time."""
    codec = site.codec(Texts)
    wrong: list[object] = []

    def work(name: str) -> None:
        event = Texts(name * 50, [name] * 20)
        for _ in range(100):
            back: object = codec.decode(codec.encode(event))
            if back != event:
                wrong.append(back)

    threads = [threading.Thread(target=work, args=(letter,)) for letter in "abcd"]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [] == wrong
