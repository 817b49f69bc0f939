"""Plant every bug, run worlds until enough of them have found it, and print which check found each, and how soon.

With ``--summary PAGE`` the table goes into that page too, between its markers.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections import Counter
from itertools import takewhile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "tests" / "simulation"))

from planted_bugs import PLANTS, Plant

from tidewire.testing.simulation.campaign import Totals, planted_run, run_worlds
from tidewire.testing.simulation.proof import told, write_section

ENOUGH = 3
SECONDS_MAX = 40


def main() -> int:
    """Run the plants that are named, or all; 0 if each was found."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("names", nargs="*", help="the bugs to plant (default: all)")
    parser.add_argument("--seeds", type=int, default=200, help="worlds for each at most (default: %(default)s)")
    parser.add_argument("--jobs", type=int, default=2)
    parser.add_argument("--summary", type=Path, help="write the table into this page")
    options = parser.parse_args()
    began = time.monotonic()
    missed: list[str] = []
    rows: list[str] = []
    chosen = [plant for plant in PLANTS if not options.names or plant.name in options.names]
    for plant in chosen:
        totals = hunted(plant, options.seeds, options.jobs)
        found = Counter(violation.check for failure in totals.failures for violation in failure.violations)
        checks = " ".join(name for name, _ in found.most_common(4))
        how = f"{len(totals.failures)} of {totals.worlds} worlds: {checks}"
        print(f"{plant.name:34} {plant.hazard:22} {how if totals.failures else 'NOT FOUND'}", flush=True)
        what = " ".join((plant.plant.__doc__ or "").split()).rstrip(".")
        rows.append(f"| {what} | {plant.hazard} | {checks or 'nothing'} | {len(totals.failures)} of {totals.worlds} |")
        if not totals.failures:
            missed.append(plant.name)
    score = f"{len(chosen) - len(missed)} of {len(chosen)}"
    print(f"{score} planted bugs found" + f"; missed: {missed}" * bool(missed))
    if options.summary is not None:
        write_section(options.summary, "planted", section=section(score, rows, minutes=(time.monotonic() - began) / 60))
    return 1 if missed else 0


def section(score: str, rows: list[str], *, minutes: float) -> str:
    """Return the section of the page."""
    table = "\n".join(rows)
    return (
        "## Planted bugs\n\n"
        "Each is one small change to the product; worlds are run until three have found it. "
        "The checks are those that said so most often; "
        "`world` means that a world could not go on, `asyncio` and `process` that something failed aloud.\n\n"
        f"| Measure | Figure |\n| --- | --- |\n| found in one run | {score} |\n| minutes | {minutes:.0f} |\n{told()}\n\n"
        f"| What was planted | Stands for | Found by | In |\n| --- | --- | --- | --- |\n{table}\n"
    )


def hunted(plant: Plant, seeds: int, jobs: int) -> Totals:
    """Run worlds with *plant* in them, until three have found it or there are no more."""
    totals = Totals()
    worlds = takewhile(lambda world: len(totals.failures) < ENOUGH, plant.worlds(range(seeds)))
    run_worlds(worlds, totals.add, jobs=jobs, batch=3, run=planted_run(plant.plant), seconds_max=SECONDS_MAX)
    return totals


if __name__ == "__main__":
    sys.exit(main())
