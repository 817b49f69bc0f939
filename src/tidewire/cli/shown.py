"""What commands print: tables for people, JSON for programs, times and sizes in words, progress on long work."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import msgspec

from tidewire.clock import moment
from tidewire.rules.findings import Finding

__all__ = ["Progress", "age", "emit", "emit_line", "print_findings", "print_points", "size", "stamp", "table"]

_UNITS = ((86_400, "d"), (3_600, "h"), (60, "min"), (1, "s"))


def emit(document: Mapping[str, Any]) -> None:
    """Print one JSON object, indented: what ``--json`` means where a command gives one answer."""
    print(msgspec.json.format(msgspec.json.encode(document), indent=2).decode(), flush=True)


def emit_line(document: Mapping[str, Any]) -> None:
    """Print one JSON object on one line: what ``--json`` means where answers keep coming."""
    print(msgspec.json.encode(document).decode(), flush=True)


def table(headings: Sequence[str], rows: Iterable[Sequence[object]], *, right: Iterable[int] = ()) -> None:
    """Print aligned columns; *right* are the numbers of those that are aligned to the right."""
    lines = [[str(cell) for cell in headings], *([("" if cell is None else str(cell)) for cell in row] for row in rows)]
    widths = [max(len(line[column]) for line in lines) for column in range(len(headings))]
    to_right = set(right)
    for line in lines:
        cells = [
            cell.rjust(width) if number in to_right else cell.ljust(width)
            for number, (cell, width) in enumerate(zip(line, widths, strict=True))
        ]
        print("  ".join(cells).rstrip())


def print_points(points: Iterable[tuple[str, str]], *, indent: int = 2) -> None:
    """Print headings with their sentences, aligned."""
    listed = list(points)
    width = max((len(heading) for heading, _ in listed), default=0)
    for heading, sentence in listed:
        print(f"{' ' * indent}{heading:<{width}}  {sentence}")


def print_findings(findings: Iterable[Finding]) -> None:
    """Print each finding as an error reads: what is wrong and where, and on its own line the fix."""
    for finding in findings:
        print(f"{finding.level}: {finding.where}: {finding.what}")
        if finding.fix:
            print(f"hint: {finding.fix}")


def stamp(us: int | None) -> str:
    """Return microseconds since 1970 as a time of day in UTC for people, or a dash."""
    return "-" if us is None else moment(us).strftime("%Y-%m-%d %H:%M:%S.") + f"{us % 1_000_000 // 1_000:03d}Z"


def age(us: int | None, now_us: int) -> str:
    """Return how long ago *us* was, in the largest unit that fits, or a dash."""
    if us is None:
        return "-"
    seconds = max(0, now_us - us) // 1_000_000
    for length, unit in _UNITS:
        if seconds >= length:
            return f"{seconds // length} {unit}"
    return "0 s"


def size(count: int | None) -> str:
    """Return a number of bytes in words, or a dash."""
    if count is None:
        return "-"
    amount = float(count)
    for unit in ("B", "KiB", "MiB", "GiB"):
        if amount < 1_024:
            return f"{amount:.0f} {unit}" if unit == "B" else f"{amount:.1f} {unit}"
        amount /= 1_024
    return f"{amount:.1f} TiB"


class Progress:
    """How far long work is, on stderr and only on a terminal, so that output can be piped."""

    def __init__(self, what: str, *, every: int = 1_000) -> None:
        self._what = what
        self._every = every
        self._live = sys.stderr.isatty()
        self._last = -1

    def at(self, count: int) -> None:
        """Say that *count* are done; *every* so many it is shown."""
        if self._live and count // self._every != self._last:
            self._last = count // self._every
            print(f"\r{self._what} {count:,}", end="", file=sys.stderr, flush=True)

    def end(self) -> None:
        """Clear the line."""
        if self._live and self._last >= 0:
            print("\r\x1b[K", end="", file=sys.stderr, flush=True)
