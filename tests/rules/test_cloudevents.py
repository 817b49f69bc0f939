"""CloudEvents: headers and back, JSON and back, HTTP as the binding asks, hostile input, and somebody else's reader."""

from __future__ import annotations

from datetime import UTC, datetime

import pytest
from cloudevents.conversion import to_binary, to_structured
from cloudevents.http import CloudEvent
from cloudevents.http import from_http as official_from_http
from hypothesis import given
from hypothesis import strategies as st

from tidewire.errors import ConfigurationError, DecodeError
from tidewire.model import Envelope
from tidewire.rules.cloudevents import (
    check_event_id,
    check_headers,
    envelope_of,
    from_http,
    from_structured,
    headers_of,
    is_structured,
    structured,
    to_http,
)

NOW = datetime(2026, 11, 24, 9, 30, 0, 123456, tzinfo=UTC)
texts = st.text(st.characters(codec="utf-8", exclude_categories=["Cc", "Cs", "Zl", "Zp"]), min_size=1, max_size=20)
TRACE = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"


@given(texts, texts, texts, st.none() | texts)
def test_an_envelope_survives_its_headers(event_id: str, source: str, type_: str, subject: str | None) -> None:
    """Binary mode loses nothing."""
    envelope = Envelope(
        event_id, source, type_, NOW, version=3, key="k", subject=subject, traceparent=TRACE, extensions={"tenant": "a"}
    )
    assert envelope == envelope_of(headers_of(envelope))


@given(texts, texts, st.binary(max_size=50))
def test_a_message_survives_structured_mode(event_id: str, source: str, body: bytes) -> None:
    """One JSON document and back: attributes, trace context and bytes."""
    headers = headers_of(Envelope(event_id, source, "a.b", NOW, traceparent=TRACE, datacontenttype="text/plain"))
    assert (headers, body) == from_structured(structured(headers, body))


@given(texts, texts)
def test_http_headers_are_encoded_once_and_decoded_once(event_id: str, subject: str) -> None:
    """Percent signs, quotes, spaces and everything beyond ASCII survive the HTTP binding."""
    headers = headers_of(Envelope(event_id, "s", "a.b", NOW, subject=f'100% "{subject}"'))
    on_the_wire = to_http(headers)
    assert all(value.isascii() for value in on_the_wire.values())
    found = from_http(on_the_wire, b"{}")
    assert found is not None
    assert headers == found[0]


def test_the_official_sdk_reads_ours_and_we_read_its() -> None:
    """Interop with the reference implementation, both modes, both ways."""
    headers = headers_of(Envelope("1", "shop", "shop.order.placed", NOW, subject="ü"))
    theirs = official_from_http(to_http(headers), b'{"a":1}')
    assert ("1", "shop", "shop.order.placed", {"a": 1}) == (theirs["id"], theirs["source"], theirs["type"], theirs.data)
    theirs = official_from_http({"content-type": "application/cloudevents+json"}, structured(headers, b'{"a":1}'))
    assert {"a": 1} == theirs.data
    event = CloudEvent({"type": "a.b", "source": "them", "id": "7", "subject": "x"}, {"n": 1})
    for made in (to_binary(event), to_structured(event)):
        found = from_http({name.lower(): value for name, value in made[0].items()}, bytes(made[1]))
        assert found is not None
        assert ("7", "them", "a.b", "x") == tuple(
            found[0][f"ce-{name}"] for name in ("id", "source", "type", "subject")
        )


def test_plain_json_is_no_cloudevent() -> None:
    """It is for a declared mapping, or for the door."""
    assert from_http({"content-type": "application/json"}, b"{}") is None


@pytest.mark.parametrize(
    "headers",
    [
        {},
        {"ce-id": "1", "ce-source": "s"},
        {"ce-id": "1", "ce-source": "s", "ce-type": "t", "ce-time": "yesterday"},
        {"ce-id": "1", "ce-source": "s", "ce-type": "t", "ce-time": "2026-01-01T00:00:00"},
        {"ce-id": "1", "ce-source": "s", "ce-type": "t", "ce-time": "2026-01-01T00:00:00Z", "ce-schemaversion": "0"},
    ],
)
def test_what_is_no_envelope_names_the_header(headers: dict[str, str]) -> None:
    """A decode error and nothing else."""
    with pytest.raises(DecodeError, match="ce-"):
        envelope_of(headers)


def test_an_event_may_come_without_its_time() -> None:
    """Optional in CloudEvents 1.0: a foreign event without it has an envelope, and goes out again without it."""
    headers = {"ce-id": "1", "ce-source": "s", "ce-type": "t"}
    envelope = envelope_of(headers)
    assert envelope.time is None
    assert "ce-time" not in headers_of(envelope)


@pytest.mark.parametrize("trace", ["", "nonsense", TRACE[:-1], TRACE.upper(), "ff" + TRACE[2:], "x" * 100_000])
def test_malformed_trace_context_is_dropped(trace: str) -> None:
    """It never fails an event (SC9)."""
    headers = {**headers_of(Envelope("1", "s", "t.u", NOW)), "traceparent": trace, "tracestate": "a=b"}
    envelope = envelope_of(headers)
    assert (None, None) == (envelope.traceparent, envelope.tracestate)


@given(st.binary(max_size=200))
def test_no_bytes_break_the_structured_reader(document: bytes) -> None:
    """Hostile bytes are a DecodeError."""
    with pytest.raises(DecodeError):
        from_structured(document)


@pytest.mark.parametrize("document", [b"[" * 100_000, b'{"id":' + b"[" * 100_000, b'{"id":"\\ud800"}', b'{"ID":"x"}'])
def test_bombs_are_decode_errors(document: bytes) -> None:
    """Depth, lone surrogates, wrong names."""
    with pytest.raises(DecodeError):
        from_structured(document)


@pytest.mark.parametrize("event_id", ["", "a b", "ü", "x" * 129, "a\n"])
def test_an_id_that_cannot_travel_is_refused(event_id: str) -> None:
    """1 to 128 printable ASCII characters."""
    with pytest.raises(ConfigurationError):
        check_event_id(event_id)


@pytest.mark.parametrize(
    "headers",
    [
        {"Bad": "x"},
        {"dl-reason": "x"},
        {"tw-failure": "x"},
        {"ce-id": "x"},
        {"content-type": "x"},
        {"a": "line\r\nbreak"},
        {"ce-toolongforanextension": "x"},
        {f"h{n}": "x" for n in range(40)},
        {"a": "x" * 9_000},
    ],
)
def test_headers_that_cannot_travel_are_refused(headers: dict[str, str]) -> None:
    """Reserved names, bombs and injections are named before anything is published."""
    with pytest.raises(ConfigurationError, match="headers that cannot travel"):
        check_headers(headers)


def test_structured_mode_is_known_by_its_media_type() -> None:
    """Case and parameters do not matter; batches are another mode."""
    assert is_structured("Application/CloudEvents+json; charset=utf-8")
    assert not is_structured("application/cloudevents-batch+json")
    assert not is_structured("application/json")


def test_a_header_that_is_no_text_is_no_cloudevent() -> None:
    """What a server decoded with surrogates is a `DecodeError`, as any other header that is no UTF-8."""
    with pytest.raises(DecodeError, match="ce-source"):
        from_http({"ce-specversion": "1.0", "ce-id": "1", "ce-source": "s\udcff", "ce-type": "a.b"}, b"{}")
