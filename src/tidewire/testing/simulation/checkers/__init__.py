"""Checks C1 to C20 over histories: pure, and linear in the length of a history.

`judge` runs them all. Simulations, tests that kill real processes and the demo write histories of the same kind.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator

from tidewire.testing.simulation.checkers import delivery, machinery
from tidewire.testing.simulation.checkers.history import Audience, F, History, Op, Violation

__all__ = ["CHECKS", "Audience", "F", "History", "Op", "Violation", "judge"]

Check = Callable[[History], Iterator[Violation]]

CHECKS: dict[str, Check] = {
    "C1": delivery.conserved,
    "C2": delivery.lost,
    "C3": delivery.phantom,
    "C4": delivery.aborted,
    "C5": delivery.repeated,
    "C6": delivery.rows,
    "C7": delivery.key_order,
    "C8": machinery.commits,
    "C9": machinery.fenced,
    "C10": machinery.attempts_bounded,
    "C11": machinery.marked,
    "C12": machinery.outbox_empty,
    "C13": machinery.exclusive,
    "C14": delivery.digests,
    "C15": machinery.sagas_ended,
    "C16": machinery.timers_once,
    "C17": machinery.bounds,
    "C18": machinery.drained_in_time,
    "C19": machinery.healthy,
    "C20": machinery.metrics,
}


def judge(history: History, *, skip: Iterable[str] = ()) -> list[Violation]:
    """Return every promise that *history* breaks; checks named in *skip* are left out."""
    left_out = set(skip)
    return [found for name, check in CHECKS.items() if name not in left_out for found in check(history)]
