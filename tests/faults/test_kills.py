"""Real services on the embedded broker, killed with ``kill -9`` at random moments: the books balance all the same."""

from __future__ import annotations

import random
import sys

import pytest
from kills import as_round, run_apart

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="kill -9 of forked processes: needs POSIX")
KILLS = 100


def test_nothing_is_lost_and_nothing_repeated_whoever_is_killed() -> None:
    """What was acknowledged takes effect once, in the order of its key, and nothing is left behind (RT3, AS5, IN1)."""
    seed = random.randrange(1 << 32)
    done = as_round(run_apart(seed=seed, kills=KILLS), seed)
    assert [] == done.violations
    assert done.figures["kills"] >= KILLS
    assert done.figures["orders acknowledged"] > 0
    assert done.figures["effects at a later attempt"] > 0


@pytest.mark.parametrize(("plant", "said"), [("no-mark", "more than once"), ("done-first", "lost")])
def test_a_planted_fault_unbalances_the_books(plant: str, said: str) -> None:
    """An effect without its mark repeats, a row that is deleted before it is sent is lost: both are seen."""
    for seed in range(1, 6):
        violations = as_round(run_apart(seed=seed, kills=40, plant=plant), seed).violations
        if any(said in violation for violation in violations):
            return
    pytest.fail(f"{plant}: nothing was seen in 5 worlds")
