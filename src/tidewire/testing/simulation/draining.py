"""When a healed simulation has nothing left to do."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence

from tidewire.testing.simulation.engine import Simulation
from tidewire.testing.simulation.grounds import Ground

__all__ = ["left_to_do", "until_quiet"]

_CALM = 3


async def left_to_do(simulation: Simulation, ground: Ground) -> list[str]:
    """Return what keeps the simulation from being drained: outboxes, processes that are down, groups with work."""
    left = [f"outbox of {name}" for name in await ground.pending()]
    for name, place in simulation.places.items():
        life = simulation.lives[name]
        if place.forever and (not life.process.alive or life.app is None or not life.app.ready):
            left.append(f"{name} is down")
    for info in await ground.inspector.groups():
        stats = info.stats
        if stats.ready or stats.in_flight or stats.delayed:
            left.append(f"{info.group} on {info.topic}: {stats.ready}/{stats.in_flight}/{stats.delayed}")
    return left


async def until_quiet(left: Callable[[], Awaitable[Sequence[str]]], *, every: float = 1.0) -> None:
    """Wait until there was nothing *left* to do at three looks in a row, *every* so many seconds."""
    calm = 0
    while calm < _CALM:
        await asyncio.sleep(every)
        calm = 0 if await left() else calm + 1
