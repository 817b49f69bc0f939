"""Messages as AMQP messages and back: CloudEvents in binary mode (``cloudEvents_…``), and what only tidewire reads.

Every header comes back as it was written, by name and order; a broker sorts them, so an order that is not the usual one
travels too. What AMQP has no place for travels in headers of our own, which are taken off again: ``tw-at`` (when its
publisher gave it away, and the name of this copy), ``tw-id``, ``tw-source`` and ``tw-key`` (where the event's own
headers say something else), ``tw-due``, ``tw-spent`` (attempts of earlier copies), ``tw-topic`` (it was on its way to
the topic, and is in a queue of the inbox channel only because it waits).

A message without a ``tw-at`` is somebody else's. What it says by AMQP's own properties and by its routing key becomes
headers of the message that is read: ``message-id``, ``correlation-id``, ``type``, ``app-id`` and ``routing-key``,
unless it has a header of that name.
"""

from __future__ import annotations

import zlib
from collections.abc import Iterable, Mapping
from datetime import datetime
from decimal import Decimal

import msgspec
from pamqp import commands as spec

from tidewire.clock import microseconds
from tidewire.model import Address, Message
from tidewire.transports.rabbitmq.frames import entry, properties

__all__ = ["Read", "message_properties", "name_of", "read_message"]

_AT, _ID, _SOURCE, _KEY, _KEYLESS = "tw-at", "tw-id", "tw-source", "tw-key", "tw-keyless"
_DUE, _SPENT, _TOPIC, _ORDER = "tw-due", "tw-spent", "tw-topic", "tw-order"
_OURS = frozenset({_AT, _ID, _SOURCE, _KEY, _KEYLESS, _DUE, _SPENT, _TOPIC, _ORDER})
_QUOTED = "tw-h-"
_BROKERS = (
    *("x-death", "x-first-death", "x-last-death", "x-delivery-", "x-acquired-", "x-opt-", "x-stream-", "x-received-"),
    *("x-routed-by", "timestamp_in_ms"),  # of its interceptors
)
_QUOTE = ("cloudEvents", "ce_", _QUOTED, *_BROKERS)
_READ_AS_OURS = ("cloudEvents_", "cloudEvents:", "ce-", "ce_")
_TYPE = "content-type"
_TEXTS = ("subject", "dataschema", "correlationid", "causationid")
_RANKS = {
    name: rank
    for rank, name in enumerate(
        (
            *("ce-specversion", "ce-id", "ce-source", "ce-type", "ce-schemaversion", _TYPE, "ce-time"),
            *("ce-partitionkey", *(f"ce-{name}" for name in _TEXTS), "traceparent", "tracestate"),
        )
    )
}
_PLANS_MAX = 1_000
_encode = msgspec.json.Encoder().encode


class Read(msgspec.Struct, frozen=True, gc=False):
    """A message as it came. *name*: of this copy, which nothing else has · *count*: how often the broker says it was
    given back · *spent*: attempts of earlier copies · *stored_at*: when its publisher gave it away (µs since 1970)."""

    message: Message
    foreign: dict[str, bytes] | None
    name: str
    count: int
    spent: int
    stored_at: int | None


class _Plan(msgspec.Struct, frozen=True):
    """How messages with the same names of headers are written: the beginning of each entry, and what is added."""

    starts: tuple[bytes, ...]
    type_at: int
    order: bytes


_PLANS: dict[tuple[str, ...], _Plan] = {}
_READINGS: dict[tuple[str, ...], tuple[tuple[str, str], ...]] = {}


def _rank(name: str) -> tuple[int, str]:
    return _RANKS.get(name, len(_RANKS)), name


def _plan(names: tuple[str, ...]) -> _Plan:
    plan = _PLANS.get(names)
    if plan is None:
        usual = tuple(sorted(names, key=_rank))
        order = b"" if usual == names else entry(_ORDER, _encode(names))
        starts = tuple(entry(_wire_name(name), b"")[:-4] for name in names)
        plan = _Plan(starts, names.index(_TYPE) if _TYPE in names else -1, order)
        if len(_PLANS) < _PLANS_MAX:
            _PLANS[names] = plan
    return plan


def _wire_name(name: str) -> str:
    if name.startswith("ce-"):
        return "cloudEvents_" + name[3:]
    if name.startswith(_QUOTE) or name in _OURS or name in ("CC", "BCC"):
        return _QUOTED + name
    return name


def message_properties(message: Message, name: str, *, spent: int = 0, of_topic: bool = False) -> bytes:
    """Return the properties of the AMQP message that *message* becomes; *name* begins with when we hand it over.

    Raises:
        ValueError: a header cannot be carried: it is no text, or its name is too long.
    """
    headers = message.headers
    plan = _plan(tuple(headers))
    pieces: list[bytes] = []
    content_type: str | None = None
    for place, (start, value) in enumerate(zip(plan.starts, headers.values(), strict=True)):
        if place == plan.type_at and len(value) < 64:
            content_type = value
            continue
        raw = value.encode()
        pieces += (start, len(raw).to_bytes(4, "big"), raw)
    pieces += (b"\x05tw-atS", len(name).to_bytes(4, "big"), name.encode(), plan.order)
    if message.id != headers.get("ce-id", ""):
        pieces.append(entry(_ID, message.id.encode()))
    if message.source != headers.get("ce-source", ""):
        pieces.append(entry(_SOURCE, message.source.encode()))
    if message.key != headers.get("ce-partitionkey"):
        pieces.append(entry(_KEYLESS, b"") if message.key is None else entry(_KEY, message.key.encode()))
    if message.not_before is not None:
        pieces.append(entry(_DUE, b"%d" % message.not_before))
    if spent:
        pieces.append(entry(_SPENT, b"%d" % spent))
    if of_topic:
        pieces.append(entry(_TOPIC, b""))
    return properties(b"".join(pieces), content_type, message.id)


# --- reading --------------------------------------------------------------------------------------------------


def name_of(found: spec.Basic.Properties) -> str:
    """Return the name of a copy that we have published; empty for one of somebody else's."""
    at = (found.headers or {}).get(_AT)
    return at if isinstance(at, str) else ""


def read_message(
    to: Address, found: spec.Basic.Properties, body: bytes, *, topic: Address | None = None, routing_key: str = ""
) -> Read:
    """Return what a message holds; *topic*: where it belongs if it only waited in *to*.

    Nothing in it can make this fail: values that are no text are kept as bytes.
    """
    table: Mapping[str, object] = found.headers or {}
    if _AT not in table:
        table = {**_said_outside(found, routing_key), **table}
    if found.content_type is not None:
        table = {**table, _TYPE: found.content_type}
    headers: dict[str, str] = {}
    foreign: dict[str, bytes] | None = None
    for wire_name, name in _reading(tuple(table)):
        value = table[wire_name]
        if isinstance(value, str):
            headers[name] = value
        elif isinstance(value, (bytes, bytearray)):
            foreign = {} if foreign is None else foreign
            foreign[wire_name] = bytes(value)
        else:
            headers[name] = _text(value)
    if _ORDER in table:
        headers = _in_order(headers, table[_ORDER])
    at = table.get(_AT)
    name = at if isinstance(at, str) else f"{zlib.crc32(body)}.{found.message_id or ''}"
    stored_at = _number(name.partition(".")[0]) if isinstance(at, str) else _seconds(found.timestamp)
    key = table.get(_KEY, headers.get("ce-partitionkey")) if _KEYLESS not in table else None
    count = table.get("x-delivery-count", 0)
    message = Message(
        topic if topic is not None and _TOPIC in table else to,
        _own(table, _ID, headers.get("ce-id", "")),
        _own(table, _SOURCE, headers.get("ce-source", "")),
        key if isinstance(key, str) else None,
        headers,
        body,
        _number(table.get(_DUE)),
    )
    return Read(message, foreign, name, count if type(count) is int else 0, _number(table.get(_SPENT)) or 0, stored_at)


def _said_outside(found: spec.Basic.Properties, routing_key: str) -> dict[str, str]:
    """Return what somebody else's message says by properties, as headers."""
    said = {
        "message-id": found.message_id,
        "correlation-id": found.correlation_id,
        "type": found.message_type,
        "app-id": found.app_id,
        "routing-key": routing_key,
    }
    return {name: value for name, value in said.items() if value}


def _reading(wire_names: tuple[str, ...]) -> tuple[tuple[str, str], ...]:
    """Return the headers that are for readers, by their names on the wire and ours, in their usual order."""
    known = _READINGS.get(wire_names)
    if known is None:
        pairs = ((wire, ours) for wire in wire_names if (ours := _our_name(wire)) is not None)
        known = tuple(sorted(pairs, key=_rank_of_pair))
        if len(_READINGS) < _PLANS_MAX:
            _READINGS[wire_names] = known
    return known


def _rank_of_pair(pair: tuple[str, str]) -> tuple[int, str]:
    return _rank(pair[1])


def _our_name(wire: str) -> str | None:
    """Return our name for a header, None for one that only the adapter or the broker reads."""
    if wire in _OURS or wire.startswith(_BROKERS):
        return None
    if wire.startswith(_QUOTED):
        return wire.removeprefix(_QUOTED)
    for prefix in _READ_AS_OURS:
        if wire.startswith(prefix):
            return "ce-" + wire.removeprefix(prefix)
    return wire


def _in_order(headers: dict[str, str], order: object) -> dict[str, str]:
    """Return *headers* in the order in which they were written; those it does not name come last."""
    try:
        names = msgspec.json.decode(order if isinstance(order, str) else b"", type=list[str])
    except msgspec.MsgspecError:
        return headers
    known: Iterable[str] = (name for name in names if name in headers)
    return {name: headers[name] for name in dict.fromkeys([*known, *headers])}


def _text(value: object) -> str:
    """Return a value of another type as text: as CloudEvents writes it, or as JSON."""
    if value is None:
        return ""
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, datetime):
        return value.isoformat().replace("+00:00", "Z")
    if isinstance(value, (int, float, Decimal)):
        return str(value)
    try:  # an array or a table
        return _encode(value).decode()
    except (msgspec.MsgspecError, TypeError, ValueError, RecursionError):
        return ""


def _own(table: Mapping[str, object], name: str, otherwise: str) -> str:
    value = table.get(name, otherwise)
    return value if isinstance(value, str) else otherwise


def _seconds(stamp: datetime | None) -> int | None:
    return None if stamp is None or stamp.tzinfo is None else microseconds(stamp)


def _number(text: object) -> int | None:
    sound = isinstance(text, str) and text.isascii() and text.isdigit() and len(text) < 19
    return int(str(text)) if sound else None
