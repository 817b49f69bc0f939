"""Which values JSON would carry unfaithfully: a check made once per type, for the fields where it can happen.

A check is two functions. One asks all values of a type at once, column by column and in C: nearly always it says
that all is well. Where it does not, the other looks again, one value after another, and says what is wrong and where.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Iterable, Mapping
from datetime import datetime, time
from decimal import Decimal
from itertools import chain
from operator import attrgetter
from typing import Any, NamedTuple, cast

import msgspec

__all__ = ["checker_for", "first_unfaithful"]

Check = Callable[[Any], str]
AllWell = Callable[[Iterable[Any]], bool]
_CLASSES = (
    msgspec.inspect.StructType,
    msgspec.inspect.DataclassType,
    msgspec.inspect.TypedDictType,
    msgspec.inspect.NamedTupleType,
)
_LOW, _HIGH = -(2**63), 2**64
_tzinfo_of = attrgetter("tzinfo")


class Rule(NamedTuple):
    """What a type is held to. *all_well* may say no, or raise, where nothing is wrong; its yes is certain."""

    check: Check
    all_well: AllWell


def checker_for(info: msgspec.inspect.Type) -> tuple[Check | None, bool]:
    """Return a check for values of a type, or None where nothing can go wrong, and whether the type is *open*:
    recursive or untyped, so that its depth is not bounded by itself."""
    compiler = _Compiler()
    rule = compiler.compile(info)
    return None if rule is None else _quickly(rule), compiler.is_open


def _quickly(rule: Rule) -> Check:
    check, all_well = rule

    def check_quickly(value: Any) -> str:
        try:
            well = all_well((value,))
        except (TypeError, AttributeError, ValueError, ArithmeticError):  # not of its type; the encoder says so, or not
            well = False
        return "" if well else check(value)

    return check_quickly


class _Compiler:
    """Follows a type and keeps the branches in which a leaf can be unfaithful."""

    def __init__(self) -> None:
        self.is_open = False
        self._inside: set[int] = set()

    def compile(self, info: Any) -> Rule | None:
        if isinstance(info, msgspec.inspect.Metadata):
            return self.compile(info.type)
        if type(info) in _LEAVES:
            return Rule(_leaf, _LEAVES[type(info)])
        if isinstance(info, msgspec.inspect.CustomType):
            raise TypeError(f"{info.cls.__name__} is not a type of JSON")
        if isinstance(info, (msgspec.inspect.AnyType, msgspec.inspect.RawType)):
            self.is_open = True
            return _ANYTHING
        if isinstance(info, msgspec.inspect.UnionType):
            return self._union(info)
        if isinstance(info, msgspec.inspect.DictType):
            return self._mapping(info)
        if isinstance(info, msgspec.inspect.TupleType):
            return _ANYTHING if any(self.compile(item) is not None for item in info.item_types) else None
        item = getattr(info, "item_type", None)
        if item is not None:
            return _each(self.compile(item))
        if isinstance(info, _CLASSES):
            return self._fields(info)
        return None

    def _union(self, info: Any) -> Rule | None:
        rules = [self.compile(option) for option in info.types]
        several = [rule for rule in rules if rule is not None]
        if not several:
            return None
        check, all_well = several[0]
        nullable = any(isinstance(option, msgspec.inspect.NoneType) for option in info.types)
        if len(several) > 1 or len(info.types) > 1 + nullable:
            return _ANYTHING

        def check_given(value: Any) -> str:
            return "" if value is None else check(value)

        def all_given_well(values: Iterable[Any]) -> bool:
            return all_well(value for value in values if value is not None)

        return Rule(check_given, all_given_well)

    def _mapping(self, info: Any) -> Rule | None:
        keys, values = self.compile(info.key_type), self.compile(info.value_type)
        return None if keys is None and values is None else _ANYTHING

    def _fields(self, info: Any) -> Rule | None:
        if id(info) in self._inside:
            self.is_open = True
            return _ANYTHING
        self._inside.add(id(info))
        rules = [(field.name, rule) for field in info.fields if (rule := self.compile(field.type)) is not None]
        self._inside.discard(id(info))
        if not rules:
            return None
        if isinstance(info, msgspec.inspect.TypedDictType):
            return _ANYTHING
        return _of_fields([(name, attrgetter(name), rule) for name, rule in rules])


def _of_fields(fields: list[tuple[str, Callable[[Any], Any], Rule]]) -> Rule:
    columns = [(get, rule.all_well) for _, get, rule in fields]
    single, single_well = columns[0]

    def check_fields(value: Any) -> str:
        for name, get, rule in fields:
            problem = rule.check(get(value))
            if problem:
                return f"{name}{'' if problem[0] in '[ ' else '.'}{problem}"
        return ""

    def all_fields_well(values: Iterable[Any]) -> bool:
        if len(columns) == 1:
            return single_well(map(single, values))
        several = [*values]
        well = True
        for get, all_well in columns:
            well = well and all_well(map(get, several))
        return well

    return Rule(check_fields, all_fields_well)


def _each(rule: Rule | None) -> Rule | None:
    if rule is None:
        return None
    check, all_well = rule

    def check_each(values: Any) -> str:
        for index, value in enumerate(values):
            problem = check(value)
            if problem:
                return f"[{index}]{'' if problem[0] in '[ ' else '.'}{problem}"
        return ""

    def all_each_well(values: Iterable[Iterable[Any]]) -> bool:
        return all_well(chain.from_iterable(values))

    return Rule(check_each, all_each_well)


def _within_64_bits(values: Iterable[Any]) -> bool:
    several = [*values]
    return sum(map(abs, several)) < 2**63 or max(map(int.bit_length, several)) < 64  # small ones: the sum is quicker


def _finite_floats(values: Iterable[Any]) -> bool:
    return math.isfinite(sum(map(float.__abs__, values)))  # what is not finite shows in a sum; an integer raises


def _finite_decimals(values: Iterable[Any]) -> bool:
    return all(map(Decimal.is_finite, values))


def _zoned(values: Iterable[Any]) -> bool:
    return None not in map(_tzinfo_of, values)


_LEAVES: dict[type, AllWell] = {
    msgspec.inspect.FloatType: _finite_floats,
    msgspec.inspect.DecimalType: _finite_decimals,
    msgspec.inspect.DateTimeType: _zoned,
    msgspec.inspect.TimeType: _zoned,
    msgspec.inspect.IntType: _within_64_bits,
}


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


def _none_unfaithful(values: Iterable[Any]) -> bool:
    return not any(map(first_unfaithful, values))


_ANYTHING = Rule(first_unfaithful, _none_unfaithful)


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
