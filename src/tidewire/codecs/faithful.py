"""Which values JSON would carry unfaithfully: a check made once per type, for the fields where it can happen.

A check is two functions. One is a few statements written for the type, which nearly always say that all is well. Where
they do not, the other looks again, one value after another, and says what is wrong and where.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from datetime import datetime, time
from decimal import Decimal
from keyword import iskeyword
from operator import attrgetter
from typing import Any, NamedTuple, cast

import msgspec

__all__ = ["checker_for", "first_unfaithful"]

Check = Callable[[Any], str]
_CLASSES = (
    msgspec.inspect.StructType,
    msgspec.inspect.DataclassType,
    msgspec.inspect.TypedDictType,
    msgspec.inspect.NamedTupleType,
)
_LOW, _HIGH = -(2**63), 2**64


class Rule(NamedTuple):
    """What a type is held to. *doubts* gives the statements that ``return False`` where the value of a variable, the
    *n*-th, may be unfaithful; they may do so, or raise, where nothing is wrong: that they do not is certain."""

    check: Check
    doubts: Callable[[int], list[str]]


def checker_for(info: msgspec.inspect.Type) -> tuple[Check | None, bool]:
    """Return a check for values of a type, or None where nothing can go wrong, and whether the type is *open*:
    recursive or untyped, so that its depth is not bounded by itself."""
    compiler = _Compiler()
    rule = compiler.compile(info)
    return None if rule is None else _quickly(rule), compiler.is_open


def _quickly(rule: Rule) -> Check:
    check, all_well = rule.check, _function(rule.doubts(0))

    def check_quickly(value: Any) -> str:
        try:
            well = all_well(value)
        except (TypeError, AttributeError, ValueError, ArithmeticError):  # not of its type; the encoder says so, or not
            well = False
        return "" if well else check(value)

    return check_quickly


def _function(statements: Sequence[str]) -> Callable[[Any], bool]:
    """Return the function of one value ``v0`` that these *statements* are. There is nothing in them but names of
    fields and our own text; as closures they take four times as long."""
    source = "\n".join(["def all_well(v0):", *_indented(statements), "    return True"])
    names: dict[str, Any] = {"first_unfaithful": first_unfaithful, "isfinite": math.isfinite}
    try:
        exec(source, names)  # noqa: S102
    except SyntaxError:  # lists in lists, deeper than Python has loops
        return _is_faithful
    return cast("Callable[[Any], bool]", names["all_well"])


def _indented(statements: Iterable[str]) -> list[str]:
    return [f"    {line}" for line in statements]


class _Compiler:
    """Follows a type and keeps the branches in which a leaf can be unfaithful."""

    def __init__(self) -> None:
        self.is_open = False
        self._inside: set[int] = set()

    def compile(self, info: Any) -> Rule | None:
        if isinstance(info, msgspec.inspect.Metadata):
            return self.compile(info.type)
        if type(info) in _LEAVES:
            return Rule(_leaf, _doubt(_LEAVES[type(info)]))
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
        check, doubts = several[0]
        nullable = any(isinstance(option, msgspec.inspect.NoneType) for option in info.types)
        if len(several) > 1 or len(info.types) > 1 + nullable:
            return _ANYTHING

        def check_given(value: Any) -> str:
            return "" if value is None else check(value)

        def doubts_given(n: int) -> list[str]:
            return [f"if v{n} is not None:", *_indented(doubts(n))]

        return Rule(check_given, doubts_given)

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
        if isinstance(info, msgspec.inspect.TypedDictType) or not all(_can_be_written(name) for name, _ in rules):
            return _ANYTHING
        return _of_fields([(name, attrgetter(name), rule) for name, rule in rules])


def _of_fields(fields: list[tuple[str, Callable[[Any], Any], Rule]]) -> Rule:
    def check_fields(value: Any) -> str:
        for name, get, rule in fields:
            problem = rule.check(get(value))
            if problem:
                return f"{name}{'' if problem[0] in '[ ' else '.'}{problem}"
        return ""

    def doubts(n: int) -> list[str]:
        return [line for name, _, rule in fields for line in (f"v{n + 1} = v{n}.{name}", *rule.doubts(n + 1))]

    return Rule(check_fields, doubts)


def _can_be_written(name: str) -> bool:
    """Whether Python's source can name a field so."""
    return name.isascii() and name.isidentifier() and not iskeyword(name)


def _each(rule: Rule | None) -> Rule | None:
    if rule is None:
        return None
    check, doubts = rule

    def check_each(values: Any) -> str:
        for index, value in enumerate(values):
            problem = check(value)
            if problem:
                return f"[{index}]{'' if problem[0] in '[ ' else '.'}{problem}"
        return ""

    def doubts_each(n: int) -> list[str]:
        return [f"for v{n + 1} in v{n}:", *_indented(doubts(n + 1))]

    return Rule(check_each, doubts_each)


def _doubt(all_well: str) -> Callable[[int], list[str]]:
    return lambda n: [f"if not ({all_well.format(f'v{n}')}): return False"]


_LEAVES: dict[type, str] = {
    msgspec.inspect.FloatType: "type({0}) is float and isfinite({0})",
    msgspec.inspect.DecimalType: "{0}.is_finite()",
    msgspec.inspect.DateTimeType: "{0}.tzinfo is not None",
    msgspec.inspect.TimeType: "{0}.tzinfo is not None",
    msgspec.inspect.IntType: f"{_LOW} <= {{0}} < {_HIGH}",
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


def _is_faithful(value: Any) -> bool:
    return not first_unfaithful(value)


_ANYTHING = Rule(first_unfaithful, _doubt("not first_unfaithful({0})"))


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
