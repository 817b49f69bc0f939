"""The figures of a campaign, written into a page of the docs."""

from __future__ import annotations

import subprocess
from datetime import datetime
from pathlib import Path

from tidewire.clock import SystemClock
from tidewire.testing.simulation.campaign import Totals

__all__ = ["commit", "told", "write_section", "write_summary"]

_WRITERS = {
    "simulation": "make simulate",
    "planted": "make planted",
    "replays": "make replays",
    "crashes": "make crashes",
}
_HEAD = """# Proof

What was run, how much of it, when, and on which commit.
A number without a date and a commit proves nothing, so each section says them.

"""


def write_section(page: Path, name: str, *, section: str) -> None:
    """Put *section* between the markers *name* of *page*, behind what is there; make the page where it is missing."""
    begin, end = f"<!-- {name}: written by `{_WRITERS[name]}` -->", f"<!-- /{name} -->"
    text = page.read_text("utf-8") if page.is_file() else _HEAD
    if begin not in text:
        text = f"{text.rstrip()}\n\n{begin}\n{end}\n"
    before, _, rest = text.partition(begin)
    _, _, after = rest.partition(end)
    page.write_text(f"{before}{begin}\n{section}{end}{after}", "utf-8")


def commit() -> str:
    """Return the commit that is checked out, with a plus if files differ from it; nothing outside of a repository."""
    here = Path(__file__).parent
    try:
        found = subprocess.run(  # noqa: S603
            ["git", "-C", str(here), "describe", "--always", "--dirty=+"],  # noqa: S607
            check=True, capture_output=True, text=True,
        )  # fmt: skip
    except (OSError, subprocess.CalledProcessError):
        return ""
    return found.stdout.strip()


def told(label: str | None = None, at: datetime | None = None) -> str:
    """Return the row of a table that says on which commit and when."""
    label = commit() if label is None else label
    return f"| commit, date | `{label or 'unknown'}`, {at or SystemClock().now():%Y-%m-%d} |"


def write_summary(page: Path, totals: Totals, *, label: str, start: int, at: datetime) -> None:
    """Write the figures of many worlds."""
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
    ]
    table = "\n".join(f"| {name} | {value} |" for name, value in rows)
    section = (
        "## Simulation\n\n"
        "[The deterministic simulation](simulation.md) runs the real runtime in simulated processes; "
        "twenty checkers judge every world.\n\n"
        f"| Measure | Figure |\n| --- | --- |\n{table}\n{told(label, at)}\n"
    )
    write_section(page, "simulation", section=section)
