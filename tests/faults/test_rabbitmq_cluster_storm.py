"""Services on a RabbitMQ of three nodes through a storm: the books balance all the same."""

from __future__ import annotations

import os
import random

import pytest
import rabbitmq_cluster_storm
from fault_rounds import NotPossible
from kills import as_round
from storms import run_apart

pytestmark = pytest.mark.skipif(
    bool(os.environ.get("CI")),
    reason="not proven: storms on a cluster of RabbitMQ take minutes, and CI leaves them out; make test runs them",
)


def test_a_storm_on_a_cluster_of_rabbitmq_loses_nothing_repeats_nothing_and_keeps_every_order() -> None:
    """A node is killed, one stands still, one loses its data and two die at once, while members are killed, ended and
    stopped: effects happen once, in order of their keys, and nothing is left behind."""
    seed = random.randrange(1 << 32)
    try:
        done = as_round(run_apart(rabbitmq_cluster_storm.__file__, seed=seed, deaths=4), seed)
    except NotPossible as error:
        pytest.skip(f"not proven: {error}")
    assert [] == done.violations
    assert (4, 1, 1) == tuple(done.figures[name] for name in rabbitmq_cluster_storm.MISHAPS)
    assert done.figures["kills"] > 0
    assert done.figures["orders acknowledged"] > 0
