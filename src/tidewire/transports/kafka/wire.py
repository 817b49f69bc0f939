"""Messages as records and back: CloudEvents in binary mode (``ce_…`` headers), and what only tidewire reads.

Every header comes back as it was written, by name and order. What a record has no place for travels in headers of our
own, which are taken off again: ``tw-id`` and ``tw-source`` (where the event's own headers say something else),
``tw-due`` and ``tw-at`` (microseconds), and ``tw-key`` in a dead letter, whose record key is its own.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TypeAlias

import msgspec

from tidewire.model import Address, DeadChannel, Message

__all__ = ["MARKER", "Headers", "Read", "key_bytes", "read_record", "record_headers", "removal_in"]

Headers: TypeAlias = list[tuple[str, str | bytes | None]]
Found: TypeAlias = Mapping[str, str | bytes | None] | Sequence[tuple[str, str | bytes | None]] | None
"""What the client library says a record's headers are; it gives a list."""
_ID, _SOURCE, _DUE, _AT, _KEY = "tw-id", "tw-source", "tw-due", "tw-at", "tw-key"
_KEYLESS = "tw-keyless"
MARKER = "tw-removed"
"""A record with this header says that the dead letter of its key is removed."""
_OURS = frozenset({_ID, _SOURCE, _DUE, _AT, _KEY, _KEYLESS, MARKER})
_QUOTED = "tw-h-"
_QUOTE = ("ce_", _QUOTED)
_NAMES: dict[str, str] = {}
_HANDED = "\0tw-at"
_PLAIN = {_AT: _HANDED}
"""The names of `_NAMES` that become a header of the message, and the one of ours that every record has."""
_text: Callable[..., str] = bytes.decode
_NOTHING: Mapping[str, str] = {}
_WIRE_NAMES: dict[str, str] = {}
_NAMES_MAX = 1_000


class Read(msgspec.Struct, frozen=True, gc=False):
    """A record as a message, with header values that are not text. *stored_at*: when the broker took it, as finely as
    can be told (µs since 1970); *at*: when its publisher gave it away, which orders what lies in several partitions."""

    message: Message
    foreign: dict[str, bytes] | None
    stored_at: int
    at: int


def key_bytes(key: str | None) -> bytes | None:
    """Return the record key of a message's key.

    Raises:
        UnicodeEncodeError: it holds lone surrogates that no record has put there.
    """
    return None if key is None else key.encode("utf-8", "surrogateescape")


def record_headers(message: Message, at: int) -> Headers:
    """Return the headers of the record that *message* becomes; *at* is when we hand it over.

    Raises:
        UnicodeEncodeError: a header cannot be carried.
    """
    ours = message.headers
    headers: Headers = [(_WIRE_NAMES.get(name) or _wire_name(name), value.encode()) for name, value in ours.items()]
    if message.id != ours.get("ce-id", ""):
        headers.append((_ID, message.id.encode()))
    if message.source != ours.get("ce-source", ""):
        headers.append((_SOURCE, message.source.encode()))
    if message.not_before is not None:
        headers.append((_DUE, b"%d" % message.not_before))
    if isinstance(message.to, DeadChannel):
        headers.append((_KEYLESS, b"") if message.key is None else (_KEY, key_bytes(message.key)))
    headers.append((_AT, b"%d" % at))
    return headers


def read_record(to: Address, key: bytes | None, *, value: bytes | None, headers: Found, ms: int) -> Read:
    """Return what a record holds. Nothing in it can make this fail: foreign bytes are kept as bytes."""
    own: Mapping[str, str] = _NOTHING
    foreign: dict[str, bytes] | None = None
    try:  # names that were seen before, and text: what nearly every record has
        ours = {_PLAIN[name]: _text(raw) for name, raw in _pairs(headers)}
        handed = ours.pop(_HANDED, None)
        text_key = None if key is None else _text(key)
    except (KeyError, TypeError, UnicodeDecodeError):
        ours, own, foreign = _headers_of(headers)
        handed = own.get(_AT)
        text_key = None if key is None else key.decode("utf-8", "surrogateescape")
    base = ms * 1000
    at = base if (said := _number(handed)) is None else said
    id_, source, due = ours.get("ce-id", ""), ours.get("ce-source", ""), None
    if own:
        id_, source, due = own.get(_ID, id_), own.get(_SOURCE, source), _number(own.get(_DUE))
        if isinstance(to, DeadChannel):
            text_key = None if _KEYLESS in own else own.get(_KEY, text_key)
    message = Message(to, id_, source, text_key, ours, value or b"", due)
    stored_at = at if base <= at <= base + 999 else base if at < base else base + 999
    return Read(message, foreign, stored_at, at)


def _headers_of(headers: Found) -> tuple[dict[str, str], dict[str, str], dict[str, bytes] | None]:
    """Return the headers of a message, those that only the adapter reads, and those that are no text."""
    ours: dict[str, str] = {}
    own: dict[str, str] = {}
    foreign: dict[str, bytes] = {}
    for wire_name, raw in _pairs(headers):
        name = _NAMES.get(wire_name)
        if name is None:
            name = _name_of(wire_name)
        try:
            text = raw.decode() if isinstance(raw, bytes) else raw or ""
        except UnicodeDecodeError:
            foreign[wire_name] = raw if isinstance(raw, bytes) else b""
            continue
        if name:
            ours[name] = text
        elif wire_name:
            own[wire_name] = text
        else:
            ours[""] = text
    return ours, own, foreign or None


def _name_of(wire_name: str) -> str:
    """Return our name for a header, nothing for one that only the adapter reads; remembered while there is room."""
    if wire_name in _OURS:
        name = ""
    elif wire_name.startswith("ce_"):
        name = "ce-" + wire_name[3:]
    else:
        name = wire_name.removeprefix(_QUOTED)
    if len(_NAMES) < _NAMES_MAX:
        _NAMES[wire_name] = name
        if name and name != _HANDED:
            _PLAIN[wire_name] = name
    return name


def _wire_name(name: str) -> str:
    """Return the record header that one of ours becomes; remembered while there is room."""
    if name.startswith("ce-"):
        wire_name = "ce_" + name[3:]
    elif name.startswith(_QUOTE) or name in _OURS:
        wire_name = _QUOTED + name
    else:
        wire_name = name
    if len(_WIRE_NAMES) < _NAMES_MAX:
        _WIRE_NAMES[name] = wire_name
    return wire_name


def removal_in(headers: Found) -> int | None:
    """Return the offset of the dead letter that a record removes, or None: it removes none."""
    for name, raw in _pairs(headers):
        if name == MARKER:
            return _number(raw.decode("ascii", "replace") if isinstance(raw, bytes) else str(raw))
    return None


def _pairs(headers: Found) -> Iterable[tuple[str, str | bytes | None]]:
    if isinstance(headers, list):  # what the library gives; asking for a Mapping costs as much as all the rest
        return headers
    return () if headers is None else headers.items() if isinstance(headers, Mapping) else headers


def _number(text: str | None) -> int | None:
    return int(text) if text is not None and len(text) < 19 and text.isdigit() and text.isascii() else None
