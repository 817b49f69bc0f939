"""Events: a user's own class with a type, a version and perhaps a key. Nothing is registered anywhere."""

from __future__ import annotations

import dataclasses
import difflib
import re
from collections.abc import Callable
from enum import Enum
from operator import attrgetter
from typing import Any, Literal, TypeVar, cast, dataclass_transform, overload
from uuid import UUID

import msgspec

from tidewire.errors import ConfigurationError
from tidewire.rules.names import is_topic_name

__all__ = ["EventType", "definition_of", "domain_event", "event", "is_event"]

C = TypeVar("C", bound=type)
_TYPE = re.compile(r"[a-z][a-z0-9_-]*(\.[a-z][a-z0-9_-]*)+\Z")
_TYPE_MAX = 128
_ATTRIBUTE = "__tidewire_event__"


class EventType(msgspec.Struct, frozen=True):
    """What is known of an event class. *key_of* returns an event's key as text, or None.

    *kind* ``integration``: goes through a broker; ``domain``: stays inside its service, has no topic.
    """

    cls: type
    type: str
    version: int
    key: tuple[str, ...] | None
    topic: str
    kind: Literal["integration", "domain"]
    key_of: Callable[[Any], str | None]


@dataclass_transform(frozen_default=True)
def event(
    type: str,
    *,
    version: int = 1,
    key: str | tuple[str, ...] | None = None,
    topic: str | None = None,
) -> Callable[[C], C]:
    """Make an integration event of a class.

    A plain class becomes a frozen, slotted dataclass; dataclasses, attrs classes, msgspec Structs and pydantic
    models are taken as they are. *type* is dotted, past tense, without a version (``shop.order.placed``). *key*
    names the field (or fields) whose events keep their order. *topic* defaults to the type without its last
    segment, so that the events of one thing share an order.

    Raises:
        ConfigurationError: names every problem of the class at once.
    """

    def decorate(cls: C) -> C:
        made = _as_model(cls)
        fields = (key,) if isinstance(key, str) else key
        where = topic if topic is not None else type.rpartition(".")[0]
        problems = _type_problems(type, version) + _key_problems(made, fields)
        if not is_topic_name(where) and not problems:
            problems.append(f"its topic {where!r} is not a-z, then a-z, 0-9, '.', '-', at most 63")
        if problems:
            raise ConfigurationError(f"@event on {cls.__qualname__}: {'; '.join(problems)}")
        setattr(made, _ATTRIBUTE, EventType(made, type, version, fields, where, "integration", _key_getter(fields)))
        return made

    return decorate


@overload
def domain_event(cls: C) -> C: ...
@overload
def domain_event(cls: str = "") -> Callable[[C], C]: ...
@dataclass_transform(frozen_default=True)
def domain_event(cls: Any = "") -> Any:
    """Make a domain event of a class: it is handled in the same process and the same transaction.

    ``@domain_event`` or ``@domain_event("stock.ran.low")``; the name is for people and defaults to the class's.
    """
    if isinstance(cls, type):
        return _domain(cls, "")

    def decorate(decorated: C) -> C:
        return _domain(decorated, cls)

    return decorate


def _domain(cls: C, name: str) -> C:
    made = _as_model(cls)
    setattr(made, _ATTRIBUTE, EventType(made, name or cls.__qualname__, 1, None, "", "domain", _no_key))
    return made


def definition_of(cls: type) -> EventType:
    """Return what is known of an event class; a subclass of an event is not one by itself.

    Raises:
        ConfigurationError: *cls* was not made an event.
    """
    found = getattr(cls, _ATTRIBUTE, None)
    if isinstance(found, EventType) and found.cls is cls:
        return found
    name = getattr(cls, "__qualname__", repr(cls))
    raise ConfigurationError(
        f"{name} is not an event", hint=f'put @event("…") above class {name}, or @domain_event for in-process use'
    )


def is_event(value: Any) -> bool:
    """Whether *value* is a class that was made an event."""
    found = getattr(value, _ATTRIBUTE, None)
    return isinstance(found, EventType) and found.cls is value


def _as_model(cls: C) -> C:
    """Return *cls* if it is a model of its own, else a frozen, slotted dataclass made of it."""
    given: Any = cls
    if not isinstance(given, type):
        raise ConfigurationError(f"@event goes above a class, not above {cls!r}")
    own = vars(cls)
    taken = (
        issubclass(given, msgspec.Struct)
        or "__pydantic_validator__" in own
        or "__attrs_attrs__" in own
        or "__dataclass_fields__" in own
    )
    if taken:
        return cls
    try:
        return cast("C", dataclasses.dataclass(frozen=True, slots=True)(cast("type[Any]", given)))
    except TypeError as error:
        raise ConfigurationError(f"@event on {cls.__qualname__}: {error}") from error


def _type_problems(type_: Any, version: Any) -> list[str]:
    problems: list[str] = []
    if not isinstance(type_, str) or not _TYPE.match(type_) or len(type_) > _TYPE_MAX:
        problems.append(f"its type {type_!r} is not dotted lower-case words like 'shop.order.placed'")
    if not isinstance(version, int) or isinstance(version, bool) or version < 1:
        problems.append(f"its version must be a number from 1, not {version!r}")
    return problems


def _key_problems(cls: type, fields: tuple[str, ...] | None) -> list[str]:
    if fields is None:
        return []
    known = _field_names(cls)
    problems: list[str] = [] if fields else ["key=() names no field"]
    for name in fields:
        if name not in known:
            close = difflib.get_close_matches(name, known, n=1)
            meant = f"; did you mean {close[0]!r}?" if close else f" (it has {', '.join(known)})"
            problems.append(f"its key {name!r} is not a field{meant}")
    return problems


def _field_names(cls: type) -> list[str]:
    for attribute in ("__struct_fields__", "__dataclass_fields__", "model_fields", "__pydantic_fields__"):
        fields = getattr(cls, attribute, None)
        if fields:
            return list(fields)
    return [field.name for field in getattr(cls, "__attrs_attrs__", ())]


def _no_key(event: Any) -> None:
    return None


def _key_getter(fields: tuple[str, ...] | None) -> Callable[[Any], str | None]:
    if fields is None:
        return _no_key
    if len(fields) == 1:
        get = attrgetter(fields[0])

        def one(event: Any) -> str | None:
            value = get(event)
            return value if type(value) is str else _key_text(value)

        return one
    get_all = attrgetter(*fields)

    def several(event: Any) -> str | None:
        texts = [_key_text(value) for value in get_all(event)]
        return (
            None if None in texts else "|".join(str(text).replace("\\", "\\\\").replace("|", "\\|") for text in texts)
        )

    return several


def _key_text(value: object) -> str | None:
    if value is None or (isinstance(value, str) and not isinstance(value, Enum)):
        return value
    if isinstance(value, Enum):
        return _key_text(value.value)
    if isinstance(value, (int, UUID)) and not isinstance(value, bool):
        return str(value)
    raise ConfigurationError(f"a key must be a text, a number, a UUID or an enum, not {type(value).__name__}")
