"""From an event to the message that carries it: one stamp per event type and source, made once."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, datetime
from hashlib import blake2b
from uuid import UUID

import msgspec

from tidewire.errors import ConfigurationError
from tidewire.model import Message, Topic
from tidewire.protocols import Codec
from tidewire.rules.cloudevents import check_headers
from tidewire.rules.events import EventType
from tidewire.rules.names import has_control

__all__ = ["Cause", "Stamp", "cause_in", "derived_id"]

_KEY_MAX = 1_024
_second, _second_text = -1, ""


class Cause(msgspec.Struct, frozen=True, gc=False):
    """What a new event inherits: the correlation of its cause, the cause's id, and the trace it belongs to."""

    correlationid: str = ""
    causationid: str = ""
    traceparent: str = ""
    tracestate: str = ""


NO_CAUSE = Cause()


def cause_in(headers: Mapping[str, str], event_id: str) -> Cause:
    """Return what an event caused by the message with these *headers* inherits."""
    return Cause(
        headers.get("ce-correlationid") or event_id,
        event_id,
        headers.get("traceparent", ""),
        headers.get("tracestate", ""),
    )


def rfc3339(us: int) -> str:
    """Return microseconds since 1970 as RFC 3339 in UTC (``2026-11-24T09:30:00.123456Z``)."""
    global _second, _second_text
    second, micro = divmod(us, 1_000_000)
    if second != _second:  # every event of a second shares its text
        _second_text = datetime.fromtimestamp(second, UTC).strftime("%Y-%m-%dT%H:%M:%S")
        _second = second
    return f"{_second_text}.{micro:06d}Z"


class Stamp:
    """Makes the messages of one event type from one source."""

    __slots__ = ("_codec", "_headers", "_key_of", "_source", "_topic", "definition")

    def __init__(self, definition: EventType, codec: Codec, source: str) -> None:
        self.definition = definition
        self._codec = codec
        self._source = source
        self._topic = Topic(definition.topic)
        self._key_of = definition.key_of
        self._headers = {
            "ce-specversion": "1.0",
            "ce-source": source,
            "ce-type": definition.type,
            "ce-schemaversion": str(definition.version),
            "content-type": codec.content_type,
        }

    def message(
        self,
        event: object,
        *,
        event_id: str,
        now_us: int,
        cause: Cause = NO_CAUSE,
        not_before: int | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> Message:
        """Return the message that carries *event*.

        *headers* are application headers and ``ce-`` extensions of the caller.

        Raises:
            ConfigurationError: the event, its key or a header cannot travel; names the place.
        """
        body = self._codec.encode(event)
        key = self._key_of(event)
        made = self._headers.copy()
        made["ce-id"] = event_id
        made["ce-time"] = rfc3339(now_us)
        made["ce-correlationid"] = cause.correlationid or event_id
        if cause.causationid:
            made["ce-causationid"] = cause.causationid
        if cause.traceparent:
            made["traceparent"] = cause.traceparent
            if cause.tracestate:
                made["tracestate"] = cause.tracestate
        if key is not None:
            if not key or len(key) > _KEY_MAX or has_control(key):
                raise ConfigurationError(
                    f"{self.definition.type}: a key is 1 to {_KEY_MAX} characters without controls, not {key[:40]!r}"
                )
            made["ce-partitionkey"] = key
        if headers:
            check_headers(headers)
            made.update(headers)
        return Message(self._topic, event_id, self._source, key, made, body, not_before)


def derived_id(cause_source: str, cause_id: str, handler: str, ordinal: int) -> str:
    """Return the id of the *ordinal*-th event that *handler* made of a cause: a repeat repeats it (UUIDv8).

    For services without a store, whose handlers may run twice for one event (RFC 9562 §5.8).
    """
    text = f"{cause_source}\0{cause_id}\0{handler}\0{ordinal}".encode()
    digest = blake2b(text, digest_size=16, person=b"tidewire-cause").digest()
    number = int.from_bytes(digest, "big") & ~(0xF << 76) & ~(0x3 << 62) | 0x8 << 76 | 0x2 << 62
    return str(UUID(int=number))
