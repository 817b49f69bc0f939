"""The models of brokers of logs pass the conformance suite, and worlds over them keep every promise."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable, Coroutine, Sequence
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

from tidewire.model import Delivery, Message, Settlement, Topic
from tidewire.testing.simulation import drawn_world
from tidewire.testing.simulation.campaign import Totals, equal_replays, run_worlds
from tidewire.testing.simulation.models.intake import Crew, Intake
from tidewire.testing.simulation.models.jetstream.receiver import JetStreamReceiver
from tidewire.testing.simulation.models.kafka.marks import Marks
from tidewire.testing.simulation.models.links import Disconnected
from tidewire.testing.simulation.models.sites import model_site
from tidewire.testing.transports import Site, TransportConformance, run_case
from tidewire.testing.transports.sections import d_settle

GROUNDS = ("kafka", "jetstream")


class TestKafkaModel(TransportConformance):
    """The Kafka-like model, as a transport."""

    def site(self, directory: Path) -> Site:
        """Return a server of the test's own."""
        return model_site("kafka")


class TestJetStreamModel(TransportConformance):
    """The JetStream-like model, as a transport."""

    def site(self, directory: Path) -> Site:
        """Return a server of the test's own."""
        return model_site("jetstream")


@pytest.mark.parametrize("ground", GROUNDS)
def test_worlds_over_logs_keep_every_promise(ground: str) -> None:
    """The shop over a broker of logs: every checker passes, and everything drains."""
    assert [] == broken(ground, range(12))


def broken(ground: str, seeds: range) -> list[str]:
    """Run worlds and return what was broken, with the seeds."""
    totals = Totals()
    run_worlds((drawn_world(seed, ground=ground) for seed in seeds), totals.add, jobs=os.cpu_count() or 1)
    assert len(seeds) == totals.grounds[ground]
    return [f"seed {one.world.seed}: {violation}" for one in totals.failures for violation in one.violations]


@pytest.mark.parametrize("ground", GROUNDS)
def test_a_seed_over_logs_runs_alike_in_two_processes(ground: str) -> None:
    """With different hash seeds a world takes the same steps to the last one."""
    assert [] == equal_replays(0, 2, ground=ground)


# --- what adapters of models share ------------------------------------------------------------------------------


def one_delivery() -> Delivery:
    """Return a delivery of some lane."""
    return Delivery(Message(Topic("t"), "1", "s", None, {}, b""), "t/0", 1, 0)


async def take(fetch: Callable[[int], Coroutine[Any, Any, Sequence[Delivery]]], **options: Any) -> Sequence[Any]:
    """Receive once over *fetch*."""
    crew = Crew()
    intake = Intake(crew, fetch, **options)
    found = await intake.take(5, timedelta(seconds=0.2), check=lambda: None)
    await crew.close()
    return found


def test_what_was_fetched_of_a_lost_lane_is_not_handed_out() -> None:
    """A lane may be lost between the answer and the hand-out: what came of it belongs to its next owner (seed 911)."""

    async def fetch(limit: int) -> Sequence[Delivery]:
        return [one_delivery()]

    assert [one_delivery()] == asyncio.run(take(fetch))
    assert [] == asyncio.run(take(fetch, mine=lambda delivery: False))


def test_a_fetch_without_an_answer_is_tried_again() -> None:
    """One lost request is not the end of a connection: the receive goes on and tells nobody (seed 777)."""
    answers: list[Sequence[Delivery]] = [[one_delivery()]]
    tried: list[int] = []

    async def fetch(limit: int) -> Sequence[Delivery]:
        tried.append(limit)
        if len(tried) < 3:
            raise Disconnected("there was no answer", sent=True)
        return answers.pop() if answers else []

    assert [one_delivery()] == asyncio.run(take(fetch))
    assert 3 == len(tried)


# --- bugs that need the suite, since the runtime's own fences hide them in a world ------------------------------


def test_attempts_in_memory_only_are_found(monkeypatch: pytest.MonkeyPatch) -> None:
    """KA2: an adapter that does not read what its last owner had in hand does not see a crash loop."""

    def recall(self: Marks, offset: int, mark: str) -> None:
        if mark == "~":
            self.done.add(offset)

    monkeypatch.setattr(Marks, "_recall", recall)
    with pytest.raises(AssertionError):
        run_case(d_settle.test_attempt_counts_crashes, model_site("kafka"))


def test_stale_acks_are_found(monkeypatch: pytest.MonkeyPatch) -> None:
    """NA15: an adapter that does not ask whether the lane is still its own acks what another one has."""

    async def acks(self: Any, deliveries: Sequence[Delivery]) -> list[Settlement]:
        group = self._subscription.group
        for one in deliveries:
            topic, _, subject = one.lane.rpartition("/")
            await self._link.call(self._server.ack, {(topic, f"{group}.{subject}"): [int(one.position)]})
        return [Settlement(one, "settled") for one in deliveries]

    monkeypatch.setattr(JetStreamReceiver, "_acks", acks)
    with pytest.raises(AssertionError):
        run_case(d_settle.test_stale_settle_is_lost_not_stolen, model_site("jetstream"))
