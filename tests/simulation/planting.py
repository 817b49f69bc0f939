"""How a bug is planted: one small change to the product, in a child that runs worlds and is thrown away."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import msgspec

from tidewire.testing.simulation import World, drawn_world

__all__ = ["PLANTS", "Plant", "changed", "large", "patch", "plant"]


@dataclass(frozen=True)
class Plant:
    """One bug: its *name*, the *hazard* it stands for, and what *plant* changes.

    It is looked for in worlds on this *ground*, with what *faults*, *tuning* and *world* set in them: the conditions
    under which it can show. *rare* are worlds that show it, tried before all others.
    """

    name: str
    hazard: str
    plant: Callable[[], None]
    ground: str = "memory"
    faults: Mapping[str, Any] = field(default_factory=dict[str, Any])
    tuning: Mapping[str, Any] = field(default_factory=dict[str, Any])
    world: Mapping[str, Any] = field(default_factory=dict[str, Any])
    rare: tuple[World, ...] = ()

    def worlds(self, seeds: Sequence[int]) -> Iterator[World]:
        """Give the worlds in which to look for it. No clock is moved in drawn ones: waiting for it finds little."""
        yield from self.rare
        for seed in seeds:
            world = changed(drawn_world(seed, ground=self.ground), **{"clock_every": 0.0, **self.faults})
            tuning = msgspec.structs.replace(world.tuning, **self.tuning)
            yield msgspec.structs.replace(world, **{"tuning": tuning, **self.world})


PLANTS: list[Plant] = []


def plant(hazard: str, **more: Any) -> Callable[[Callable[[], None]], Callable[[], None]]:
    """Register a bug under its function's name; the docstring says what it does. *more* are fields of `Plant`."""

    def register(function: Callable[[], None]) -> Callable[[], None]:
        PLANTS.append(Plant(function.__name__, hazard, function, **more))
        return function

    return register


def large(*seeds: int) -> tuple[World, ...]:
    """Return the large worlds of *seeds*, on memory."""
    return tuple(drawn_world(seed, ground="memory", size="large") for seed in seeds)


def changed(world: World, **faults: Any) -> World:
    """Return *world* with other *faults*."""
    return msgspec.structs.replace(world, faults=msgspec.structs.replace(world.faults, **faults))


def patch(owner: Any, name: str, value: Any) -> Any:
    """Replace a member and return the old one."""
    old = getattr(owner, name)
    setattr(owner, name, value)
    return old
