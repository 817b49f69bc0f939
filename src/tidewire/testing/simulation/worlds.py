"""A world before it runs: everything that is decided about it, drawn from a seed; and what became of it."""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import Literal

import msgspec

from tidewire.testing.simulation.checkers import Violation
from tidewire.testing.simulation.models.catalogue import MODELS
from tidewire.testing.simulation.shop import Tuning
from tidewire.testing.simulation.weather import Faults

__all__ = ["GROUPS", "Report", "Size", "World", "drawn_world"]

Size = Literal["small", "medium", "large"]

GROUPS = ("billing", "shipping", "mailer")
"""The groups of the scenario."""


class World(msgspec.Struct, frozen=True, kw_only=True):
    """Everything that is decided about one world before it begins; equal worlds run alike, step by step.

    *ground*: which broker and which stores. *orders*: how many by each publisher; *publishers*, *copies*: processes.
    *seconds*: how long faults last; *look_every*: how often it is looked whether all is done. *relay_lease*: 0 draws
    one for each life. *operate_every*: how often an operator comes. *patience*: how long all may take to drain.
    *calm_start*: nobody dies before everybody is ready.
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
    relay_lease: float = 0.0
    look_every: float = 1.0
    operate_every: float = 12.0
    patience: float = 900.0
    calm_start: bool = False


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


def drawn_world(seed: int, *, ground: str = "", size: Size | None = None) -> World:
    """Draw the world of *seed*: a quarter has no faults, the rest a mixture; bounds are small, so that they are met.

    Most worlds are *small*, few are *large*: a bug shows in few events, and many small worlds see more orders of steps
    than few large ones.
    """
    large = _large_world(seed, ground or _ground_of(seed))
    chance = random.Random(f"size {seed}")
    number = chance.randrange(20)
    drawn: Size = "small" if number < 15 else "medium" if number < 19 else "large"
    match size or drawn:
        case "large":
            return large
        case "medium":
            world = _shrunk(large, chance, pace=2.0, seconds=(6.0, 12.0), orders=(4, 8))
        case "small":
            world = _shrunk(large, chance, pace=5.0, seconds=(2.0, 5.0), orders=(4, 6))
    return _with_full_disk(_with_power_loss(world, chance), chance)


def _shrunk(
    world: World, chance: random.Random, *, pace: float, seconds: tuple[float, ...], orders: tuple[int, ...]
) -> World:
    """Return *world* with less in it, and all of it sooner: faults and delays come *pace* times as fast."""
    pick = chance.choice
    tuning, faults = world.tuning, world.faults
    return msgspec.structs.replace(
        world,
        faults=msgspec.structs.replace(faults.paced(pace), clock_max=min(faults.clock_max / pace, 8.0 * max(seconds))),
        tuning=msgspec.structs.replace(
            tuning,
            first_delay=tuning.first_delay / pace,
            timeout=tuning.timeout / pace,
            batch_wait=tuning.batch_wait / pace,
            think=max(1e-6, tuning.think / pace),
            reminder=7.0 / pace,
            tally=10.0 / pace,
        ),
        orders=pick(orders),
        publishers=pick([1, 1, 2]),
        seconds=pick(seconds),
        lease=max(world.lease / pace, 10.0 * faults.latency),  # or a lease would end without a fault
        grace=world.grace / pace,
        max_hold=world.max_hold / pace,
        relay_lease=pick([1.0, 2.0, 5.0]),
        look_every=0.5,
        operate_every=max(seconds) / 2,
        patience=200.0,
        calm_start=True,
    )


def _with_power_loss(world: World, chance: random.Random) -> World:
    """Let the power fail in some of the worlds in which processes die."""
    power = chance.choice(_POWER) if world.faults.crash_every else 0.0
    every = world.faults.crash_every * (4.0 if power == 1.0 else 1.0)
    return msgspec.structs.replace(world, faults=msgspec.structs.replace(world.faults, power=power, crash_every=every))


def _with_full_disk(world: World, chance: random.Random) -> World:
    """Let the disk have no room now and then in some of the worlds of files in which there are faults."""
    full = chance.choice(_FULL)
    if world.ground != "sqlite" or not world.faults.any:
        return world
    return msgspec.structs.replace(world, faults=msgspec.structs.replace(world.faults, full=full))


def _large_world(seed: int, ground: str) -> World:
    chance = random.Random(f"tidewire {seed}")
    pick = chance.choice
    faults = Faults.drawn(chance)
    return World(
        seed=seed,
        ground=ground,
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


_FULL = (0.0, 0.0, 0.0, 0.0, 0.02, 0.15)
_POWER = (*(0.0,) * 6, 0.3, 1.0)
_GROUNDS = (*("memory",) * 4, *(name for name in MODELS for _ in range(2)), "sqlite")
