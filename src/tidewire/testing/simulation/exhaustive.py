"""One fixed scenario of twelve orders, and a death at each of its points, one after another."""

from __future__ import annotations

from tidewire.testing.simulation.campaign import Totals, run_worlds
from tidewire.testing.simulation.shop import Tuning
from tidewire.testing.simulation.weather import Faults
from tidewire.testing.simulation.worlds import World

__all__ = ["crash_everywhere"]


def fixed_world(ground: str = "memory", crash_at: int = 0) -> World:
    """Return the scenario, with a death at point *crash_at*; with 0 there is none."""
    return World(
        seed=12,
        ground=ground,
        faults=Faults(crash_at=crash_at, latency=0.0, interleaving="ordered"),
        tuning=Tuning(attempts=2, first_delay=0.5, timeout=2.0, think=1e-6, batch_wait=0.0),
        orders=12,
        publishers=1,
        seconds=30.0,
        lease=2.0,
        max_hold=5.0,
        operators=False,
    )


def crash_everywhere(*, ground: str = "memory", every: int = 1, first: int = 1, jobs: int = 1) -> Totals:
    """Run the scenario once for each point, or each *every*-th from *first* on, with a death there."""
    counted: list[int] = []
    once = iter([fixed_world(ground, crash_at=1 << 40)])
    run_worlds(once, lambda world, report: counted.append(report.points_stormy))
    totals = Totals()
    worlds = (fixed_world(ground, crash_at=point) for point in range(first, counted[0] + 1, every))
    run_worlds(worlds, totals.add, jobs=jobs)
    return totals
