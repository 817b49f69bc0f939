"""CloudEvents 1.0: the envelope in headers (binary mode) and as one JSON document (structured mode).

The core spells attributes ``ce-id``, ``ce-source`` …, the media type ``content-type``, and carries W3C trace context
as plain ``traceparent`` and ``tracestate``. Adapters map this to their broker's own spelling.
"""

from __future__ import annotations

import base64
import binascii
import re
from collections.abc import Mapping
from datetime import datetime
from typing import Any
from urllib.parse import quote, unquote_to_bytes

import msgspec

from tidewire.errors import ConfigurationError, DecodeError
from tidewire.model import Envelope
from tidewire.rules.names import has_control, is_header_name

__all__ = [
    "check_event_id",
    "check_headers",
    "envelope_of",
    "from_http",
    "from_structured",
    "headers_of",
    "is_structured",
    "structured",
    "to_http",
]

STRUCTURED = "application/cloudevents+json"
_TEXTS = ("subject", "dataschema", "correlationid", "causationid")
_KNOWN = frozenset(
    ("id", "source", "type", "time", "specversion", "schemaversion", "partitionkey", "datacontenttype", *_TEXTS)
)
_EXTENSION = re.compile(r"[a-z0-9]{1,20}\Z")
_ID = re.compile(r"[\x21-\x7e]{1,128}\Z")
_TRACEPARENT = re.compile(r"(?!ff)[0-9a-f]{2}-(?!0{32})[0-9a-f]{32}-(?!0{16})[0-9a-f]{16}-[0-9a-f]{2}\Z")
_HEADERS_MAX, _HEADERS_BYTES_MAX, _TRACESTATE_MAX = 32, 8_192, 512
_JSON = re.compile(r"(application/json|[^;]*\+json|text/json)\s*(;|\Z)", re.IGNORECASE)


def headers_of(envelope: Envelope) -> dict[str, str]:
    """Return the envelope as headers; the inverse of `envelope_of`."""
    headers = {
        "ce-specversion": "1.0",
        "ce-id": envelope.id,
        "ce-source": envelope.source,
        "ce-type": envelope.type,
        "ce-schemaversion": str(envelope.version),
        "content-type": envelope.datacontenttype,
    }
    if envelope.time is not None:
        headers["ce-time"] = envelope.time.isoformat().replace("+00:00", "Z")
    if envelope.key is not None:
        headers["ce-partitionkey"] = envelope.key
    for name in _TEXTS:
        value = getattr(envelope, name)
        if value is not None:
            headers[f"ce-{name}"] = value
    if envelope.traceparent is not None:
        headers["traceparent"] = envelope.traceparent
        if envelope.tracestate is not None:
            headers["tracestate"] = envelope.tracestate
    for name, value in envelope.extensions.items():
        headers[f"ce-{name}"] = value
    return headers


def envelope_of(headers: Mapping[str, str]) -> Envelope:
    """Return the envelope in *headers*. Malformed trace context is dropped: it never fails an event.

    Raises:
        DecodeError: a required attribute is missing, or an attribute is not what it must be; names the header.
    """
    try:
        return Envelope(
            id=headers["ce-id"],
            source=headers["ce-source"],
            type=headers["ce-type"],
            time=_time(headers.get("ce-time")),
            version=_version(headers.get("ce-schemaversion", "1")),
            key=headers.get("ce-partitionkey"),
            subject=headers.get("ce-subject"),
            dataschema=headers.get("ce-dataschema"),
            datacontenttype=headers.get("content-type", "application/json"),
            correlationid=headers.get("ce-correlationid"),
            causationid=headers.get("ce-causationid"),
            traceparent=_traceparent(headers),
            tracestate=_tracestate(headers),
            extensions={
                name[3:]: value for name, value in headers.items() if name[:3] == "ce-" and name[3:] not in _KNOWN
            },
        )
    except KeyError as error:
        raise DecodeError(f"the header {error.args[0]} is missing: this is not a CloudEvent") from None


def _time(text: str | None) -> datetime | None:
    if text is None:  # optional in CloudEvents 1.0, §3.1 of the specification
        return None
    try:
        when = datetime.fromisoformat(text)
    except ValueError:
        raise DecodeError(f"the header ce-time is not RFC 3339: {text[:40]!r}") from None
    if when.tzinfo is None:
        raise DecodeError(f"the header ce-time has no time zone: {text[:40]!r}")
    return when


def _version(text: str) -> int:
    if not text.isascii() or not text.isdigit() or len(text) > 9 or int(text) < 1:
        raise DecodeError(f"the header ce-schemaversion is not a positive number: {text[:20]!r}")
    return int(text)


def _traceparent(headers: Mapping[str, str]) -> str | None:
    text = headers.get("traceparent")
    return text if text is not None and _TRACEPARENT.match(text) else None


def _tracestate(headers: Mapping[str, str]) -> str | None:
    text = headers.get("tracestate")
    return text if text is not None and len(text) <= _TRACESTATE_MAX and _traceparent(headers) else None


def is_structured(content_type: str) -> bool:
    """Whether a message with this media type is in structured mode (an unknown format of it included)."""
    return content_type[:23].lower() == "application/cloudevents" and "batch" not in content_type.lower()


def structured(headers: Mapping[str, str], body: bytes) -> bytes:
    """Return a binary-mode message as one JSON document: ``data`` where the body is JSON, else ``data_base64``.

    Trace context becomes the attributes of the distributed tracing extension; other application headers are
    not part of a CloudEvent and stay outside.
    """
    document: dict[str, Any] = {name[3:]: value for name, value in headers.items() if name.startswith("ce-")}
    content_type = headers.get("content-type", "application/json")
    document["datacontenttype"] = content_type
    for name in ("traceparent", "tracestate"):
        if name in headers:
            document[name] = headers[name]
    if body:
        if _JSON.match(content_type):
            document["data"] = msgspec.Raw(body)
        else:
            document["data_base64"] = base64.b64encode(body).decode()
    return msgspec.json.encode(document)


def from_structured(document: bytes) -> tuple[dict[str, str], bytes]:
    """Return a structured-mode JSON document as binary-mode headers and body.

    Raises:
        DecodeError: not a CloudEvent in JSON; names what is wrong. Nothing else, whatever the bytes.
    """
    try:
        fields = msgspec.json.decode(document, type=dict[str, msgspec.Raw])
    except (msgspec.MsgspecError, ValueError, RecursionError, MemoryError) as error:
        raise DecodeError(f"not a structured CloudEvent: {error}") from None
    headers: dict[str, str] = {}
    body = b""
    for name, raw in fields.items():
        if name == "data":
            body = bytes(raw)
        elif name == "data_base64":
            body = _unbased(raw)
        elif name == "datacontenttype":
            headers["content-type"] = _attribute(name, raw)
        elif name in ("traceparent", "tracestate"):
            headers[name] = _attribute(name, raw)
        elif bytes(raw) != b"null":
            if not _EXTENSION.match(name):
                raise DecodeError(f"not a CloudEvents attribute name: {name[:40]!r}")
            headers[f"ce-{name}"] = _attribute(name, raw)
    headers.setdefault("content-type", "application/json")
    for name in ("id", "source", "type"):
        if not headers.get(f"ce-{name}"):
            raise DecodeError(f"not a CloudEvent: the attribute {name} is missing or empty")
    if headers.get("ce-specversion") != "1.0":
        raise DecodeError("not a CloudEvent of version 1.0")
    return headers, body


def _attribute(name: str, raw: msgspec.Raw) -> str:
    """An attribute in its canonical text; the JSON types of the specification are string, number, boolean."""
    try:
        value = msgspec.json.decode(raw, type=str | int | bool)
    except (msgspec.MsgspecError, ValueError, RecursionError, MemoryError) as error:
        raise DecodeError(f"the attribute {name} is not a text, an integer or a boolean: {error}") from None
    text = ("true" if value else "false") if isinstance(value, bool) else str(value)
    if has_control(text):
        raise DecodeError(f"the attribute {name} holds control characters")
    return text


def _unbased(raw: msgspec.Raw) -> bytes:
    try:
        return base64.b64decode(msgspec.json.decode(raw, type=str), validate=True)
    except (msgspec.MsgspecError, binascii.Error, ValueError, RecursionError) as error:
        raise DecodeError(f"data_base64 is not base64: {error}") from None


def check_event_id(event_id: str) -> None:
    """Check an id given by a caller.

    Raises:
        ConfigurationError: it is not 1 to 128 printable ASCII characters without spaces.
    """
    if not _ID.match(event_id):
        raise ConfigurationError(
            f"the event id {event_id[:40]!r} cannot travel", hint="1 to 128 printable ASCII characters, no spaces"
        )


def check_headers(headers: Mapping[str, str]) -> None:
    """Check application headers and ``ce-`` extensions given by a caller.

    Raises:
        ConfigurationError: names every header that cannot travel, is reserved, or is too much.
    """
    problems: list[str] = []
    for name, value in headers.items():
        if not is_header_name(name):
            problems.append(f"{name[:40]!r}: a name is a-z, then a-z, 0-9, '-'")
        elif name.startswith(("dl-", "tw-")) or name == "content-type" or (name[3:] in _KNOWN and name[:3] == "ce-"):
            problems.append(f"{name!r} is reserved")
        elif name.startswith("ce-") and (not _EXTENSION.match(name[3:]) or name == "ce-data"):
            problems.append(f"{name!r}: an extension attribute is 1 to 20 of a-z and 0-9")
        elif has_control(value):
            problems.append(f"{name!r}: its value holds control characters")
    size = sum(len(name) + len(value.encode("utf-8", "replace")) for name, value in headers.items())
    if len(headers) > _HEADERS_MAX or size > _HEADERS_BYTES_MAX:
        problems.append(
            f"{len(headers)} headers of {size} bytes; at most {_HEADERS_MAX} and {_HEADERS_BYTES_MAX} bytes"
        )
    if problems:
        raise ConfigurationError(f"headers that cannot travel: {'; '.join(problems)}")


# --- HTTP -------------------------------------------------------------------------------------------------------


def from_http(headers: Mapping[str, str], body: bytes) -> tuple[dict[str, str], bytes] | None:
    """Return the event in an HTTP request as binary-mode headers and body, or None: it is not a CloudEvent.

    *headers* have lower-case names. ``ce-`` values are percent-decoded exactly once.

    Raises:
        DecodeError: it says that it is a CloudEvent and is not.
    """
    content_type = headers.get("content-type", "application/json")
    if is_structured(content_type):
        return from_structured(body)
    if "ce-id" not in headers and "ce-specversion" not in headers:
        return None
    found = {name: _unescaped(name, value) for name, value in headers.items() if name.startswith("ce-")}
    found["content-type"] = content_type
    for name in ("traceparent", "tracestate"):
        if name in headers:
            found[name] = headers[name]
    for name in ("ce-id", "ce-source", "ce-type"):
        if not found.get(name):
            raise DecodeError(f"not a CloudEvent: the header {name} is missing or empty")
    if found.get("ce-specversion") != "1.0":
        raise DecodeError("not a CloudEvent of version 1.0")
    return found, body


def to_http(headers: Mapping[str, str]) -> dict[str, str]:
    """Return binary-mode headers as HTTP headers: ``ce-`` values percent-encoded as the HTTP binding asks."""
    return {
        name: quote(value, safe="".join(map(chr, range(0x21, 0x7F))).replace("%", "").replace('"', ""))
        if name.startswith("ce-")
        else value
        for name, value in headers.items()
        if name != "ce-datacontenttype"
    }


def _unescaped(name: str, value: str) -> str:
    if len(value) >= 2 and value[0] == value[-1] == '"':
        value = re.sub(r"\\(.)", r"\1", value[1:-1])
    try:
        return unquote_to_bytes(value).decode("utf-8")
    except UnicodeError:  # bytes that are no UTF-8, or a header that is no text
        raise DecodeError(f"the header {name} is not percent-encoded UTF-8") from None
