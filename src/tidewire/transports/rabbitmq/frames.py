"""The few AMQP 0-9-1 frames that are written for each message: publishes and acks, a batch as one piece of bytes."""

from __future__ import annotations

import struct
from collections.abc import Iterable, Sequence

import msgspec

__all__ = ["HEADERS_BYTES_MAX", "Parcel", "ack_frames", "bare", "entry", "properties", "publish_frames"]

HEADERS_BYTES_MAX = 120_000
"""All headers of a message must fit into one frame, which the broker bounds at 128 KiB."""
_METHOD, _HEADER, _BODY = 1, 2, 3
_END = b"\xce"
_frame = struct.Struct(">BHI").pack
_publish = struct.Struct(">HHH").pack
_content = struct.Struct(">HHQ").pack
_ack = struct.Struct(">BHIHHQBB").pack
_long = struct.Struct(">I").pack
_CONTENT_TYPE, _HEADERS, _DELIVERY_MODE, _MESSAGE_ID = 1 << 15, 1 << 13, 1 << 12, 1 << 7
_PERSISTENT = b"\x02"


class Parcel(msgspec.Struct, frozen=True, gc=False):
    """A message on its way: where to, encoded properties, and the name of this copy, which nothing else has."""

    exchange: str
    key: str
    properties: bytes
    body: bytes
    name: str


def entry(name: str, value: bytes) -> bytes:
    """Return one text of a table.

    Raises:
        ValueError: the name is too long, or no text.
    """
    raw = name.encode()
    if len(raw) > 255:
        raise ValueError(f"{name[:40]!r} is longer than 255 bytes")
    return b"".join((bytes((len(raw),)), raw, b"S", _long(len(value)), value))


def properties(table: bytes, content_type: str | None, message_id: str) -> bytes:
    """Return flags and properties of a message that a broker keeps through its restart; *table*: entries of headers."""
    flags = _HEADERS | _DELIVERY_MODE
    head = b""
    tail = b""
    if content_type is not None:
        raw = content_type.encode()
        flags |= _CONTENT_TYPE
        head = bytes((len(raw),)) + raw
    if message_id and len(message_id) < 256 and message_id.isascii():
        flags |= _MESSAGE_ID
        tail = bytes((len(message_id),)) + message_id.encode()
    return b"".join((flags.to_bytes(2, "big"), head, _long(len(table)), table, _PERSISTENT, tail))


def bare(exchange: str, key: str, *, body: bytes, name: str) -> Parcel:
    """Return a parcel of our own, with no header but its name, by which it is known if it is returned."""
    return Parcel(exchange, key, properties(entry("tw-at", name.encode()), None, ""), body, name)


def publish_frames(channel: int, parcels: Iterable[Parcel], body_max: int) -> bytes:
    """Return the frames that publish *parcels*, mandatory; a body is cut into pieces of *body_max* bytes."""
    pieces: list[bytes] = []
    methods: dict[tuple[str, str], bytes] = {}
    for parcel in parcels:
        route = (parcel.exchange, parcel.key)
        method = methods.get(route)
        if method is None:
            exchange, key = parcel.exchange.encode(), parcel.key.encode()
            payload = b"".join(
                (_publish(60, 40, 0), bytes((len(exchange),)), exchange, bytes((len(key),)), key, b"\x01")
            )
            method = methods[route] = _frame(_METHOD, channel, len(payload)) + payload + _END
        pieces.append(method)
        body, flagged = parcel.body, parcel.properties
        size = len(body)
        pieces += (_frame(_HEADER, channel, 12 + len(flagged)), _content(60, 0, size), flagged, _END)
        if size <= body_max:
            if size:
                pieces += (_frame(_BODY, channel, size), body, _END)
            continue
        for start in range(0, size, body_max):
            piece = body[start : start + body_max]
            pieces += (_frame(_BODY, channel, len(piece)), piece, _END)
    return b"".join(pieces)


def ack_frames(channel: int, upto: int, single: Sequence[int]) -> bytes:
    """Return the frames that ack all tags up to *upto* (0: none), and *single* ones."""
    frames = [_ack(_METHOD, channel, 13, 60, 80, upto, 1, 0xCE)] if upto else []
    return b"".join([*frames, *(_ack(_METHOD, channel, 13, 60, 80, tag, 0, 0xCE) for tag in single)])
