"""From a message to its row in the outbox, and back."""

from __future__ import annotations

from typing import Any

import msgspec

from tidewire.model import Message, Topic
from tidewire.stores.sqlite.turns import Leaving

__all__ = ["COLUMNS", "leaving_row", "message_of", "topic_name"]

COLUMNS = "id, source, aggregatetype, aggregateid, type, headers, payload"
_encode = msgspec.json.Encoder().encode
_decode_headers = msgspec.json.Decoder(dict[str, str]).decode


def topic_name(message: Message) -> str:
    """Return the name of the topic that *message* is for; an outbox takes nothing else."""
    if not isinstance(message.to, Topic):
        raise TypeError(f"the outbox takes messages for topics, not for {message.to}")
    return message.to.name


def leaving_row(message: Message, now: int) -> Leaving:
    """Return the row of a message; the envelope is in the headers, the first five columns are for those who read the
    table. What cannot be a row raises here, and not at the commit."""
    headers = message.headers
    texts = (message.id, message.source, topic_name(message), message.key, headers.get("ce-type", ""))
    joined = "".join((message.id, message.source, texts[2], message.key or "", *headers.values()))
    if not joined.isascii():
        joined.encode()
    due = message.not_before
    if due is not None and due.bit_length() > 63:
        raise OverflowError(f"{message.id}: its time is beyond what a row can hold")
    later = due if due is not None and due > now else None
    return Leaving(message, (*texts, _encode(headers).decode(), message.body), later)


def message_of(row: tuple[Any, ...]) -> Message:
    """Return the message of the `COLUMNS` of a row."""
    event_id, source, topic, key, _, headers, body = row
    return Message(Topic(topic), event_id, source, key, _decode_headers(headers), body)
