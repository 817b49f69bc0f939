"""The models of brokers of queues pass the conformance suite, and worlds over them keep every promise."""

from __future__ import annotations

import os
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

from tidewire.testing.simulation import drawn_world
from tidewire.testing.simulation.campaign import Totals, equal_replays, run_worlds
from tidewire.testing.simulation.models.amqp import topology
from tidewire.testing.simulation.models.amqp.receiver import AmqpReceiver
from tidewire.testing.simulation.models.sites import model_site
from tidewire.testing.simulation.models.sqs.receiver import SqsReceiver
from tidewire.testing.transports import Site, TransportConformance, run_case
from tidewire.testing.transports.sections import d_settle, e_delay

GROUNDS = ("amqp", "sqs")


class TestAmqpModel(TransportConformance):
    """The AMQP-like model, as a transport."""

    def site(self, directory: Path) -> Site:
        """Return a server of the test's own."""
        return model_site("amqp")


class TestSqsModel(TransportConformance):
    """The SQS-like model with FIFO queues, as a transport."""

    def site(self, directory: Path) -> Site:
        """Return a server of the test's own."""
        return model_site("sqs")


class TestSqsStandardModel(TransportConformance):
    """The SQS-like model with standard queues, which keep no order and recognise nothing."""

    def site(self, directory: Path) -> Site:
        """Return a server of the test's own."""
        return model_site("sqs-standard")


@pytest.mark.parametrize("ground", GROUNDS)
def test_worlds_over_queues_keep_every_promise(ground: str) -> None:
    """The shop over a broker of queues: every checker passes, and everything drains."""
    totals = Totals()
    run_worlds((drawn_world(seed, ground=ground) for seed in range(30)), totals.add, jobs=os.cpu_count() or 1)
    assert [] == [(one.world.seed, str(violation)) for one in totals.failures for violation in one.violations]
    assert 30 == totals.grounds[ground]


@pytest.mark.parametrize("ground", GROUNDS)
def test_a_seed_over_queues_runs_alike_in_two_processes(ground: str) -> None:
    """With different hash seeds a world takes the same steps to the last one."""
    assert [] == equal_replays(0, 4, ground=ground)


# --- bugs that need the suite, since the runtime gives an adapter no occasion for them --------------------------


def test_a_stale_tag_that_is_acked_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    """BA-15: an adapter that settles by a tag of an earlier channel takes a message from its new owner."""

    def ours(self: Any, delivery: Any) -> Any:
        return self._member.lanes.get(delivery.lane)

    monkeypatch.setattr(AmqpReceiver, "_ours", ours)
    with pytest.raises(AssertionError):
        run_case(d_settle.test_stale_settle_of_a_lane_that_came_back_is_lost, model_site("amqp"))


def test_a_delay_behind_a_longer_one_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    """BA-25: one queue for all delays lets a short one wait behind a long one."""

    def one_queue(wait: timedelta) -> Any:
        return tiers_for(max(wait, timedelta(seconds=20)))

    tiers_for = topology.tiers_for
    monkeypatch.setattr(topology, "tiers_for", one_queue)
    with pytest.raises(AssertionError):
        run_case(e_delay.test_delay_short_after_long, model_site("amqp"))


def test_what_nobody_keeps_hidden_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    """BA-5: an adapter that does not extend what it has loses it to the next one who asks."""

    async def asleep(self: Any) -> None:
        """Extend nothing."""

    monkeypatch.setattr(SqsReceiver, "_extend", asleep)
    with pytest.raises(AssertionError):
        run_case(d_settle.test_lease_keeper_keeps_ownership_for_5_leases, model_site("sqs"))
