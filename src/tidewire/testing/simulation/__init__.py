"""A deterministic simulation: the real runtime in processes that die, stand still and lose their broker.

One seed decides time, the order of steps, faults and settings, and replays them all. `simulate` runs your own
services; ``python -m tidewire.testing.simulation`` runs the built-in scenario. See docs/simulation.md.
"""

from __future__ import annotations

from tidewire.testing.simulation.checkers import CHECKS, Audience, History, Op, Violation, judge
from tidewire.testing.simulation.clock import SimClock, SimIds
from tidewire.testing.simulation.crashtest.recording import effect
from tidewire.testing.simulation.loop import Deadlock, Process, SimLoop, current_process
from tidewire.testing.simulation.scenario import run_world
from tidewire.testing.simulation.users import Outcome, simulate
from tidewire.testing.simulation.weather import Faults
from tidewire.testing.simulation.worlds import Report, World, drawn_world

__all__ = [
    "CHECKS",
    "Audience",
    "Deadlock",
    "Faults",
    "History",
    "Op",
    "Outcome",
    "Process",
    "Report",
    "SimClock",
    "SimIds",
    "SimLoop",
    "Violation",
    "World",
    "current_process",
    "drawn_world",
    "effect",
    "judge",
    "run_world",
    "simulate",
]
