"""What a world has come to, as rows of named places, and how two worlds differ."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import msgspec

__all__ = ["Difference", "Snapshot", "Varying", "differences", "rows_of", "varying"]

Snapshot = dict[str, list[dict[str, Any]]]
"""Rows by the place they are in: ``table payment``, ``published shop.payment.taken``, ``effect charged`` …"""
Varying = Mapping[str, frozenset[str]]
"""By place: the columns that are not the same in two runs without a crash. ``*`` is the number of rows."""
_EVERYTHING = "*"
_VALUE = "value"
_encode = msgspec.json.Encoder(enc_hook=repr, order="deterministic").encode


class Difference(msgspec.Struct, frozen=True, kw_only=True):
    """A row of *place* that is there *found* times instead of *expected*; *row* is its JSON."""

    place: str
    row: str
    expected: int
    found: int

    def __str__(self) -> str:
        return f"{self.place} {self.row}".rstrip() + f": {_times(self.found)} instead of {_times(self.expected)}"


def rows_of(seen: object) -> list[dict[str, Any]]:
    """Return anything a probe may say as rows: each of a list is one, and so is what is no list."""
    several: Any = seen
    items: list[Any] = list(several) if isinstance(seen, (list, tuple, set, frozenset)) else [seen]
    return [_plain(item) if isinstance(item, Mapping) else _plain({_VALUE: item}) for item in items]


def varying(one: Snapshot, other: Snapshot) -> Varying:
    """Return what differs between two runs without a crash: time, chance, and what follows from them."""
    found: dict[str, frozenset[str]] = {}
    for place in one.keys() | other.keys():
        rows, others = one.get(place, []), other.get(place, [])
        if len(rows) != len(others):
            found[place] = frozenset({_EVERYTHING})
            continue
        columns = {column for row in [*rows, *others] for column in row}
        differing = {column for column in columns if _values(rows, column) != _values(others, column)}
        if differing:
            found[place] = frozenset(differing)
    return found


def differences(expected: Snapshot, found: Snapshot, *, ignoring: Varying) -> list[Difference]:
    """Return how *found* differs from *expected*, columns that vary by themselves left out."""
    wrong: list[Difference] = []
    for place in sorted(expected.keys() | found.keys()):
        ignored = ignoring.get(place, frozenset())
        if _EVERYTHING in ignored:
            continue
        wanted = Counter(_text(row, ignored) for row in expected.get(place, []))
        there = Counter(_text(row, ignored) for row in found.get(place, []))
        wrong += [
            Difference(place=place, row=row, expected=wanted[row], found=there[row])
            for row in sorted(wanted.keys() | there.keys())
            if wanted[row] != there[row]
        ]
    return wrong


def _plain(row: Any) -> dict[str, Any]:
    return {str(name): msgspec.json.decode(_encode(value)) for name, value in row.items()}


def _values(rows: Sequence[Mapping[str, Any]], column: str) -> Counter[bytes]:
    return Counter(_encode(row.get(column)) for row in rows)


def _text(row: Mapping[str, Any], ignored: frozenset[str]) -> str:
    shown = {name: "…" if name in ignored else value for name, value in row.items()}
    if shown.keys() == {_VALUE}:
        return _encode(shown[_VALUE]).decode()
    if all(name.isdigit() for name in shown):  # what an effect was noted with
        return ", ".join(_encode(value).decode() for value in shown.values())
    return _encode(shown).decode()


def _times(count: int) -> str:
    return {0: "never", 1: "once", 2: "twice"}.get(count, f"{count} times")
