"""A world before it runs: everything that is decided about it, drawn from a seed; and what became of it."""

from __future__ import annotations

import random
from collections.abc import Sequence

import msgspec

from tidewire.testing.simulation.checkers import Violation
from tidewire.testing.simulation.shop import Tuning
from tidewire.testing.simulation.weather import Faults

__all__ = ["GROUPS", "Report", "World", "drawn_world"]

GROUPS = ("billing", "shipping", "mailer")
"""The groups of the scenario."""


class World(msgspec.Struct, frozen=True, kw_only=True):
    """Everything that is decided about one world before it begins; equal worlds run alike, step by step.

    *ground*: which broker and which stores. *orders*: how many by each publisher; *publishers*, *copies*: processes.
    *seconds*: how long faults last. *settings* are those of the runs.
    """

    seed: int
    ground: str = "memory"
    faults: Faults = Faults()
    tuning: Tuning = Tuning()
    orders: int = 8
    publishers: int = 2
    copies: int = 1
    seconds: float = 60.0
    lanes: int = 2
    lease: float = 5.0
    grace: float = 2.0
    max_hold: float = 30.0
    dedup: bool = True
    operators: bool = True
    replays: bool = False


class Report(msgspec.Struct, frozen=True, kw_only=True):
    """What became of a world. *signature* is the digest of all that happened; equal signatures are equal runs.

    *points*: how many there were to die at, *points_stormy* of them while there were faults.
    """

    seed: int
    ground: str
    violations: Sequence[Violation]
    signature: str = ""
    points: int = 0
    points_stormy: int = 0
    steps: int = 0
    seconds: float = 0.0
    faults: dict[str, int] = {}
    counts: dict[str, int] = {}


def drawn_world(seed: int, *, ground: str = "") -> World:
    """Draw the world of *seed*: a quarter has no faults, the rest a mixture; bounds are small, so that they are met."""
    chance = random.Random(f"tidewire {seed}")
    pick = chance.choice
    faults = Faults.drawn(chance)
    return World(
        seed=seed,
        ground=ground or _ground_of(seed),
        faults=faults,
        tuning=Tuning(
            attempts=pick([1, 2, 3, 4]),
            first_delay=pick([0.1, 1.0, 5.0]),
            timeout=pick([2.0, 5.0, 20.0]),
            concurrency=pick([1, 2, 8]),
            prefetch=pick([1, 4, 32]),
            batch=pick([1, 3, 8]),
            batch_wait=pick([0.0, 0.2, 2.0]),
            mailer_store=chance.random() < 0.7,
            think=pick([0.0, 0.05, 0.5]) or 1e-6,
            recurring=chance.random() < 0.3,
        ),
        orders=pick([2, 6, 12]),
        publishers=pick([1, 2, 3]),
        copies=pick([1, 1, 2]),
        seconds=pick([20.0, 60.0]),
        lanes=pick([1, 2, 4]),
        lease=pick([2.0, 5.0, 20.0]),
        grace=pick([0.5, 2.0, 10.0]),
        max_hold=pick([1.0, 10.0, 120.0]),
        dedup=chance.random() < 0.7,
        operators=chance.random() < 0.6,
        replays=chance.random() < 0.15,
    )


def _ground_of(seed: int) -> str:
    chance = random.Random(f"ground {seed}")
    return chance.choice(_GROUNDS)


_GROUNDS = ("memory", "memory", "memory", "sqlite")
