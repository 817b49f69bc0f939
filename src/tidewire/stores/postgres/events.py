"""Events as rows of the outbox tables, whoever writes or reads them.

A row of the outbox is known by one number, its place in the sequence and its partition: ``row << 6 | part``.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import NamedTuple
from zlib import crc32

import msgspec

from tidewire.kit.postgres.place import PostgresPlace
from tidewire.kit.postgres.text import given, kept
from tidewire.kit.postgres.wire import Statement
from tidewire.model import Message, Topic

__all__ = [
    "COLUMNS",
    "PARTITIONS",
    "Leaving",
    "channel_of",
    "leaving_row",
    "message_of",
    "notification",
    "number_of",
]

PARTITIONS = 64
COLUMNS = "id, source, aggregatetype, aggregateid, type, headers, payload"
_encode = msgspec.json.Encoder().encode
_decode_headers = msgspec.json.Decoder(dict[str, str]).decode


def number_of(row: int, part: int) -> int:
    """Return the number that stands for *row* of *part*; ``number >> 6`` and ``number & 63`` lead back."""
    return row << 6 | part


class Leaving(NamedTuple):
    """A message on its way into the outbox: its partition, its `COLUMNS`, and when it is due if it is to wait."""

    message: Message
    part: int
    columns: tuple[object, ...]
    due: int | None


def _part_of(message: Message) -> int:
    """Return the partition of a message: that of its key, or of its id where it has none."""
    text = message.id if message.key is None else f"{_topic(message)}\0{message.key}"
    return crc32(text.encode()) % PARTITIONS


def leaving_row(message: Message, now: int) -> Leaving:
    """Return the row of *message*; one whose time has come by *now* has none any more.

    Raises:
        TypeError: it is not for a topic.
        UnicodeEncodeError: a text of it cannot be written as UTF-8.
        OverflowError: its time is beyond what a row can hold.
    """
    due = message.not_before
    if due is not None and due.bit_length() > 63:
        raise OverflowError(f"{message.id}: its time is beyond what a row can hold")
    if due is not None and due <= now:
        message, due = msgspec.structs.replace(message, not_before=None), None
    columns = (
        kept(message.id),
        kept(message.source),
        kept(_topic(message)),
        None if message.key is None else kept(message.key),
        kept(message.headers.get("ce-type", "")),
        _encode(message.headers).decode(),
        message.body,
    )
    return Leaving(message, _part_of(message), columns, due)


def message_of(columns: Sequence[object]) -> Message:
    """Return the message that a row holds."""
    event_id, source, topic, key, _, headers, payload = columns
    return Message(
        Topic(given(str(topic))),
        given(str(event_id)),
        given(str(source)),
        None if key is None else given(str(key)),
        _decode_headers(str(headers)),
        bytes(payload),  # type: ignore[call-overload]
    )


def channel_of(place: PostgresPlace) -> str:
    """Return the name of the channel on which relays of *place* are woken."""
    return f"tidewire_{crc32(place.named('outbox').encode()):08x}"


def notification(place: PostgresPlace, parts: Iterable[int], *, sender: str = "") -> Statement:
    """Return the statement that wakes, with the commit of its transaction, the relays that have one of *parts*.

    The *sender* is not woken: it knows.
    """
    bits = sum(1 << part for part in {*parts})
    return ("SELECT pg_notify($1::text, $2::text)", (channel_of(place), f"{bits:016x}.{sender}"))


def _topic(message: Message) -> str:
    if not isinstance(message.to, Topic):
        raise TypeError(f"the outbox takes messages for topics, not for {message.to}")
    return message.to.name
