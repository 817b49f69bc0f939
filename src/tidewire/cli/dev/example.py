"""An example of an event as JSON, made from the types of its fields, and held to the class before it is shown."""

from __future__ import annotations

import enum
import types
import typing
from collections.abc import Callable, Mapping, Sequence
from datetime import date, datetime, time
from decimal import Decimal
from typing import Any
from uuid import UUID

import msgspec

from tidewire.errors import DecodeError
from tidewire.rules.events import EventType
from tidewire.runtime.parts import Parts

__all__ = ["example_of"]

_VALUES: dict[Any, Callable[[], Any]] = {
    bool: lambda: True,
    int: lambda: 1,
    float: lambda: 1.5,
    Decimal: lambda: "9.90",
    datetime: lambda: "2026-01-31T12:00:00Z",
    date: lambda: "2026-01-31",
    time: lambda: "12:00:00",
    UUID: lambda: "0199e3c2-7e21-7d4e-9c58-5f0a3b1f2d11",
    bytes: lambda: "",
}


def example_of(event: EventType) -> str:
    """Return JSON that is such an event, all its fields filled in; or nothing where none is found."""
    try:
        hints = typing.get_type_hints(event.cls)
        hints = {name: hint for name, hint in hints.items() if typing.get_origin(hint) is not typing.ClassVar}
        values = {name: _value(name, hint) for name, hint in hints.items()}
        data = msgspec.json.encode(values).decode()
        Parts().codec_for(event.cls).decode(data.encode())
    except (NameError, TypeError, DecodeError):  # a type that is not known here, or a rule of the class's own
        return ""
    return data


def _value(name: str, hint: Any) -> Any:
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin is typing.Annotated:
        return _value(name, arguments[0])
    if origin in (typing.Union, types.UnionType):
        return None if type(None) in arguments else _value(name, arguments[0])
    if origin is typing.Literal:
        return arguments[0]
    if hint is str:
        return "1" if name.endswith("id") else name
    if hint in _VALUES:
        return _VALUES[hint]()
    kind = origin or hint
    if not isinstance(kind, type):
        return None
    if issubclass(kind, enum.Enum):
        return next(iter(kind)).value
    if issubclass(kind, Mapping):
        return {}
    return [] if issubclass(kind, Sequence | set | frozenset) else None
