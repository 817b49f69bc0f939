"""Plant every bug, run worlds until enough of them have found it, and print which check found each, and how soon."""

from __future__ import annotations

import argparse
import sys
from collections import Counter
from itertools import takewhile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "tests" / "simulation"))

from planted_bugs import PLANTS, Plant

from tidewire.testing.simulation.campaign import Totals, planted_run, run_worlds

ENOUGH = 3
SECONDS_MAX = 40


def main() -> int:
    """Run the plants that are named, or all; 0 if each was found."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("names", nargs="*", help="the bugs to plant (default: all)")
    parser.add_argument("--seeds", type=int, default=40, help="worlds for each (default: %(default)s)")
    parser.add_argument("--jobs", type=int, default=2)
    options = parser.parse_args()
    missed: list[str] = []
    chosen = [plant for plant in PLANTS if not options.names or plant.name in options.names]
    for plant in chosen:
        totals = hunted(plant, options.seeds, options.jobs)
        found = Counter(violation.check for failure in totals.failures for violation in failure.violations)
        first = min((failure.world.seed for failure in totals.failures), default=None)
        checks = " ".join(f"{name}:{count}" for name, count in found.most_common(4))
        how = f"{len(totals.failures)} of {totals.worlds} worlds, first seed {first}: {checks}"
        print(f"{plant.name:34} {plant.hazard:22} {how if totals.failures else 'NOT FOUND'}", flush=True)
        if not totals.failures:
            missed.append(plant.name)
    print(f"{len(chosen) - len(missed)} of {len(chosen)} planted bugs found" + f"; missed: {missed}" * bool(missed))
    return 1 if missed else 0


def hunted(plant: Plant, seeds: int, jobs: int) -> Totals:
    """Run worlds with *plant* in them, until three have found it or there are no more."""
    totals = Totals()

    worlds = takewhile(lambda world: len(totals.failures) < ENOUGH, plant.worlds(range(seeds)))
    run_worlds(worlds, totals.add, jobs=jobs, batch=3, run=planted_run(plant.plant), seconds_max=SECONDS_MAX)
    return totals


if __name__ == "__main__":
    sys.exit(main())
