"""One fixed scenario of twelve orders, and a death at each of its points, one after another."""

from __future__ import annotations

from tidewire.testing.simulation.campaign import Totals, run_worlds
from tidewire.testing.simulation.shop import Tuning
from tidewire.testing.simulation.weather import Faults
from tidewire.testing.simulation.worlds import World

__all__ = ["crash_everywhere"]


def fixed_world(ground: str = "memory", crash_at: int = 0, *, power: float = 0.0) -> World:
    """Return the scenario, with a death at point *crash_at*, by power loss with *power*; at 0 there is none."""
    return World(
        seed=12,
        ground=ground,
        faults=Faults(crash_at=crash_at, latency=0.0, interleaving="ordered", power=power),
        tuning=Tuning(attempts=2, first_delay=0.5, timeout=2.0, think=1e-6, batch_wait=0.0),
        orders=12,
        publishers=1,
        seconds=8.0,
        lease=2.0,
        max_hold=5.0,
        operators=False,
        relay_lease=5.0,
        look_every=0.5,
    )


def crash_everywhere(*, ground: str = "memory", every: int = 1, jobs: int = 1, power: float = 0.0) -> Totals:
    """Run the scenario once for each point, or each *every*-th, with a death there; *power*: the share of losses."""
    counted: list[int] = []
    once = iter([fixed_world(ground, 1 << 40, power=power)])
    run_worlds(once, lambda world, report: counted.append(report.points_stormy))
    totals = Totals()
    worlds = (fixed_world(ground, point, power=power) for point in range(1, counted[0] + 1, every))
    run_worlds(worlds, totals.add, jobs=jobs)
    return totals
