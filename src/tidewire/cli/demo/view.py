"""What a person sees while the shop runs, and after it."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Mapping
from typing import Any, TextIO

from tidewire.cli.demo.feeder import Feeder
from tidewire.cli.demo.reconcile import Books
from tidewire.cli.demo.supervisor import Supervisor

__all__ = ["View", "print_books"]

_COLUMNS = ("processed", "published", "retried", "known", "dead_lettered")
_HEADS = {"published": "published", "retried": "retries", "known": "duplicates", "dead_lettered": "dead letters"}


class View:
    """A live table on a terminal; a plain line now and then anywhere else. Never on standard output."""

    def __init__(self, supervisor: Supervisor, feeder: Feeder, total: int, stream: TextIO | None = None) -> None:
        self._supervisor = supervisor
        self._feeder = feeder
        self._total = total
        self._stream = stream or sys.stderr
        self._live = self._stream.isatty()
        self._drawn = 0

    async def run(self) -> None:
        """Until cancelled: draw."""
        while True:
            if self._live:
                self._draw()
                await asyncio.sleep(0.25)
            else:
                self._stream.write(self._line() + "\n")
                self._stream.flush()
                await asyncio.sleep(2.0)

    def _draw(self) -> None:
        lines = [self._line(), ""]
        heads = "".join(f"{_HEADS[kind]:>14}" for kind in _COLUMNS if kind in _HEADS)
        lines.append(f"  {'service':<15}{'handled':>9}{heads}{'kills':>8}")
        for member in self._supervisor.members.values():
            mark = "up  " if member.ready.is_set() else "down"
            counts = "".join(f"{member.counts[kind]:>14,}" for kind in _COLUMNS if kind in _HEADS)
            lines.append(f"  {member.name:<15}{member.counts['processed']:>9,}{counts}{member.kills:>8}  {mark}")
        up = f"\x1b[{self._drawn}A" if self._drawn else ""
        self._stream.write(up + "".join(f"\x1b[2K{line}\n" for line in lines))
        self._stream.flush()
        self._drawn = len(lines)

    def _line(self) -> str:
        supervisor, feeder = self._supervisor, self._feeder
        return (
            f"orders handed in {feeder.handed_in:,} of {self._total:,} · handled {supervisor.total('processed'):,}"
            f" · retries {supervisor.total('retried'):,} · kills {supervisor.kills}"
        )


def print_books(books: Books, report: Mapping[str, Any], stream: TextIO | None = None) -> None:
    """Write the reconciliation as a table with its verdict."""
    out = stream or sys.stdout
    out.write("\nReconciliation, from the services' databases\n\n")
    for label, names in (
        ("at the door", ("accepted", "malformed", "repeated", "conflict")),
        ("payments", ("paid", "refused")),
        ("after payment", ("stock_moved", "shipped", "notified", "dead_letters")),
        ("what went wrong", ("lost", "duplicated", "out_of_order")),
        ("on the way", ("kills", "retries", "events", "seconds", "events_per_second")),
    ):
        values = "   ".join(f"{name.replace('_', ' ')} {report[name]:,}" for name in names)
        out.write(f"  {label:<17}{values}\n")
    out.write("\n")
    for problem in books.problems[:40]:
        out.write(f"  ! {problem}\n")
    if report["balanced"]:
        out.write("The books balance: every accepted order went its whole way, once, in order.\n")
    else:
        out.write(f"The books do NOT balance: {len(books.problems)} findings.\n")
