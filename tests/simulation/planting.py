"""How a bug is planted: one small change to the product, in a child that runs worlds and is thrown away."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

__all__ = ["PLANTS", "Plant", "patch", "plant"]


@dataclass(frozen=True)
class Plant:
    """One bug: its *name*, the *hazard* it stands for, and what *plant* changes; *seeds* are large worlds that show a
    rare one."""

    name: str
    hazard: str
    plant: Callable[[], None]
    seeds: tuple[int, ...] = ()


PLANTS: list[Plant] = []


def plant(hazard: str, *seeds: int) -> Callable[[Callable[[], None]], Callable[[], None]]:
    """Register a bug under its function's name; the docstring says what it does."""

    def register(function: Callable[[], None]) -> Callable[[], None]:
        PLANTS.append(Plant(function.__name__, hazard, function, seeds))
        return function

    return register


def patch(owner: Any, name: str, value: Any) -> Any:
    """Replace a member and return the old one."""
    old = getattr(owner, name)
    setattr(owner, name, value)
    return old
