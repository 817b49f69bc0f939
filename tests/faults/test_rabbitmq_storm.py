"""Services on one RabbitMQ through a storm: the books balance all the same."""

from __future__ import annotations

import os
import random

import pytest
import rabbitmq_storm
from fault_rounds import NotPossible, Round
from kills import as_round
from storms import run_apart

pytestmark = pytest.mark.skipif(
    bool(os.environ.get("CI")),
    reason="not proven: storms on RabbitMQ take minutes, and CI leaves them out; make test runs them",
)
DEATHS = 2


def storm(seed: int, *, deaths: int = DEATHS, plant: str = "") -> Round:
    """Run one storm; skips where there is no broker."""
    try:
        return as_round(run_apart(rabbitmq_storm.__file__, seed=seed, deaths=deaths, plant=plant), seed)
    except NotPossible as error:
        pytest.skip(f"not proven: {error}")


def test_a_storm_on_rabbitmq_loses_nothing_repeats_nothing_and_keeps_every_order() -> None:
    """The broker is killed while members are killed, ended and stopped: effects happen once, in order of their keys,
    and nothing is left behind."""
    done = storm(random.randrange(1 << 32))
    assert [] == done.violations
    assert done.figures["brokers killed"] == DEATHS
    assert done.figures["kills"] > 0
    assert done.figures["orders acknowledged"] > 0


def test_a_storm_on_rabbitmq_sees_a_planted_fault() -> None:
    """An effect without its mark repeats, and the checkers say so."""
    for seed in range(1, 4):
        if any("C5" in violation for violation in storm(seed, deaths=1, plant="no-mark").violations):
            return
    pytest.fail("no-mark: nothing was seen in 3 storms")
