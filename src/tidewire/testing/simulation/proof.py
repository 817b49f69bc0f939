"""The figures of a campaign, written into a page of the docs."""

from __future__ import annotations

from datetime import datetime
from pathlib import Path

from tidewire.testing.simulation.campaign import Totals

__all__ = ["write_summary"]

_BEGIN, _END = "<!-- simulation: written by `make simulate` -->", "<!-- /simulation -->"
_HEAD = """# Proof

What was run, how much of it, when, and on which commit.
A number without a date and a commit proves nothing, so each section says them.

"""


def write_summary(page: Path, totals: Totals, *, label: str, start: int, at: datetime) -> None:
    """Put the figures between the markers of *page*, behind what is there; make the page where it is missing."""
    text = page.read_text("utf-8") if page.is_file() else _HEAD
    if _BEGIN not in text:
        text = f"{text.rstrip()}\n\n{_BEGIN}\n{_END}\n"
    before, _, rest = text.partition(_BEGIN)
    _, _, after = rest.partition(_END)
    page.write_text(f"{before}{_BEGIN}\n{_section(totals, label, start, at)}{_END}{after}", "utf-8")


def _section(totals: Totals, label: str, start: int, at: datetime) -> str:
    grounds = ", ".join(f"{name} {count:,}" for name, count in sorted(totals.grounds.items()))
    faults = ", ".join(f"{name} {count:,}" for name, count in sorted(totals.faults.items()))
    rows = [
        ("worlds", f"{totals.worlds:,} (seeds from {start:,} on; {grounds})"),
        ("worlds without faults", f"{totals.calm:,}"),
        ("crash points passed", f"{totals.points:,}"),
        ("faults", f"{sum(totals.faults.values()):,}: {faults}"),
        ("handler calls", f"{totals.ops.get('attempt invoke', 0):,}"),
        ("effects that were checked", f"{totals.ops.get('effect ok', 0):,}"),
        ("virtual time", f"{totals.seconds / 3600:,.1f} hours"),
        ("worlds that broke a promise", f"{len(totals.failures):,}"),
        ("commit, date", f"`{label or 'unknown'}`, {at:%Y-%m-%d}"),
    ]
    table = "\n".join(f"| {name} | {value} |" for name, value in rows)
    return (
        "## Simulation\n\n"
        "[The deterministic simulation](simulation.md) runs the real runtime in simulated processes; "
        "twenty checkers judge every world.\n\n"
        f"| Measure | Figure |\n| --- | --- |\n{table}\n"
    )
