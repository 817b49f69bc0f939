"""Which values JSON would carry unfaithfully: a check made once per type, for the fields where it can happen."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Iterable, Mapping
from datetime import datetime, time
from decimal import Decimal
from operator import attrgetter
from typing import Any, cast

import msgspec

__all__ = ["checker_for", "first_unfaithful"]

Check = Callable[[Any], str]
_LEAVES = (
    msgspec.inspect.FloatType,
    msgspec.inspect.DecimalType,
    msgspec.inspect.DateTimeType,
    msgspec.inspect.TimeType,
    msgspec.inspect.IntType,
)
_CLASSES = (
    msgspec.inspect.StructType,
    msgspec.inspect.DataclassType,
    msgspec.inspect.TypedDictType,
    msgspec.inspect.NamedTupleType,
)
_LOW, _HIGH = -(2**63), 2**64


def checker_for(info: msgspec.inspect.Type) -> tuple[Check | None, bool]:
    """Return a check for values of a type, or None where nothing can go wrong, and whether the type is *open*:
    recursive or untyped, so that its depth is not bounded by itself."""
    compiler = _Compiler()
    check = compiler.compile(info)
    return check, compiler.is_open


class _Compiler:
    """Follows a type and keeps the branches in which a leaf can be unfaithful."""

    def __init__(self) -> None:
        self.is_open = False
        self._inside: set[int] = set()

    def compile(self, info: Any) -> Check | None:
        if isinstance(info, msgspec.inspect.Metadata):
            return self.compile(info.type)
        if isinstance(info, _LEAVES):
            return _leaf
        if isinstance(info, msgspec.inspect.CustomType):
            raise TypeError(f"{info.cls.__name__} is not a type of JSON")
        if isinstance(info, (msgspec.inspect.AnyType, msgspec.inspect.RawType)):
            self.is_open = True
            return first_unfaithful
        if isinstance(info, msgspec.inspect.UnionType):
            return self._union(info)
        if isinstance(info, msgspec.inspect.DictType):
            return self._mapping(info)
        if isinstance(info, msgspec.inspect.TupleType):
            return first_unfaithful if any(self.compile(item) is not None for item in info.item_types) else None
        item = getattr(info, "item_type", None)
        if item is not None:
            return _each(self.compile(item))
        if isinstance(info, _CLASSES):
            return self._fields(info)
        return None

    def _union(self, info: Any) -> Check | None:
        checks = [self.compile(option) for option in info.types]
        several = [check for check in checks if check is not None]
        if not several:
            return None
        only = several[0]
        nullable = any(isinstance(option, msgspec.inspect.NoneType) for option in info.types)
        if len(several) > 1 or len(info.types) > 1 + nullable:
            return first_unfaithful
        return lambda value: "" if value is None else only(value)

    def _mapping(self, info: Any) -> Check | None:
        keys, values = self.compile(info.key_type), self.compile(info.value_type)
        return None if keys is None and values is None else first_unfaithful

    def _fields(self, info: Any) -> Check | None:
        if id(info) in self._inside:
            self.is_open = True
            return first_unfaithful
        self._inside.add(id(info))
        checks = [(field.name, check) for field in info.fields if (check := self.compile(field.type)) is not None]
        self._inside.discard(id(info))
        if not checks:
            return None
        if isinstance(info, msgspec.inspect.TypedDictType):
            return first_unfaithful
        return _of_fields([(name, attrgetter(name), check) for name, check in checks])


def _of_fields(checks: list[tuple[str, Callable[[Any], Any], Check]]) -> Check:
    def check_fields(value: Any) -> str:
        for name, get, check in checks:
            problem = check(get(value))
            if problem:
                return f"{name}{'' if problem[0] in '[ ' else '.'}{problem}"
        return ""

    return check_fields


def _each(check: Check | None) -> Check | None:
    if check is None:
        return None

    def check_each(values: Any) -> str:
        for index, value in enumerate(values):
            problem = check(value)
            if problem:
                return f"[{index}]{'' if problem[0] in '[ ' else '.'}{problem}"
        return ""

    return check_each


def _leaf(value: Any) -> str:
    """Return what is wrong with one number or time, or an empty string."""
    kind = cast("object", type(value))
    if kind is int:
        return "" if _LOW <= value < _HIGH else " is an integer beyond 64 bits"
    if kind is float:
        return "" if math.isfinite(value) else f" is {value}, which JSON cannot carry"
    if kind is Decimal:
        return "" if value.is_finite() else f" is {value}, which JSON cannot carry"
    if isinstance(value, (datetime, time)) and value.tzinfo is None:
        return " is a time without a zone"
    return ""


def first_unfaithful(value: Any, depth: int = 0) -> str:
    """Return path and reason of the first unfaithful value anywhere in *value*, or an empty string."""
    problem = _leaf(value)
    if problem or depth > 100 or value is None or isinstance(value, (str, bytes, int, float)):
        return problem
    children: list[tuple[str, Any]]
    if isinstance(value, Mapping):
        mapping = cast("Mapping[object, object]", value)
        children = [(f"[{key!r}]", item) for key, item in mapping.items()]
        children += [(f"[key {key!r}]", key) for key in mapping]
    elif isinstance(value, (list, tuple, set, frozenset)):
        items = cast("Iterable[Any]", value)
        children = [(f"[{index}]", item) for index, item in enumerate(items)]
    else:
        children = [(f".{name}", getattr(value, name, None)) for name in _names(value)]
    for path, child in children:
        problem = first_unfaithful(child, depth + 1)
        if problem:
            return (path + problem).lstrip(".") if depth == 0 else path + problem
    return ""


def _names(value: Any) -> list[str]:
    kind = cast("Any", type(value))
    if hasattr(kind, "__dataclass_fields__"):
        return [field.name for field in dataclasses.fields(kind)]
    if isinstance(value, msgspec.Struct):
        return list(value.__struct_fields__)
    for attribute in ("__pydantic_fields__", "__attrs_attrs__"):
        fields = getattr(kind, attribute, None)
        if fields is not None:
            return [getattr(field, "name", field) for field in fields]
    return []
