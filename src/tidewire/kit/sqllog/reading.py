"""Messages as the tables hold them, for whoever looks."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import msgspec

from tidewire.model import Address, Message

__all__ = ["MESSAGE_COLUMNS", "message_of"]

MESSAGE_COLUMNS = "m.id, (SELECT name FROM source WHERE id = m.source), m.key, m.headers, m.body"
"""What `message_of` takes, of a table that the query calls m."""

_decode_headers = msgspec.json.Decoder(dict[str, str]).decode


def message_of(address: Address, columns: Sequence[Any]) -> Message:
    """Return the message that lies at *address*."""
    event_id, source, key, headers, body = columns
    return Message(address, event_id, source, key, _decode_headers(headers), body)
