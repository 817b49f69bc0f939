"""Worlds of the built-in scenario: none breaks a promise, a seed repeats itself, and every failure keeps its seed."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterable
from itertools import islice
from pathlib import Path

import msgspec
import pytest

from tidewire.testing.simulation import Faults, Report, World, drawn_world
from tidewire.testing.simulation.campaign import Campaign, Totals, equal_replays, run_worlds
from tidewire.testing.simulation.exhaustive import crash_everywhere
from tidewire.testing.simulation.proof import write_section

JOBS = os.cpu_count() or 1


def totals_of(worlds: Iterable[World]) -> Totals:
    """Run *worlds* in children and add them up."""
    totals = Totals()
    run_worlds(iter(worlds), totals.add, jobs=JOBS)
    return totals


def broken(totals: Totals) -> list[str]:
    """Return what was broken, with the seeds."""
    return [f"seed {one.world.seed}: {violation}" for one in totals.failures for violation in one.violations]


def test_a_few_hundred_worlds_keep_every_promise() -> None:
    """Under kills, pauses, outages, duplicates and lost answers every checker passes, and everything drains."""
    totals = totals_of(drawn_world(seed, ground="memory") for seed in range(300))
    assert [] == broken(totals)
    assert 300 == totals.worlds
    assert totals.kills > 300
    assert totals.ops["effect ok"] > 5_000


def test_worlds_of_files_keep_every_promise() -> None:
    """The same over the embedded broker and SQLite stores, whose threads and locks are simulated."""
    totals = totals_of(drawn_world(seed, ground="sqlite") for seed in range(24))
    assert [] == broken(totals)
    assert 24 == totals.worlds == totals.grounds["sqlite"]


def test_a_disk_that_is_often_full_breaks_nothing() -> None:
    """Commits that find no room are retried or given up, and nothing that they would have made is taken for made."""
    totals = totals_of(with_full_disk(seed) for seed in range(100, 112))
    assert [] == broken(totals)
    assert totals.faults["disk full"] > 100


def test_a_quarter_of_the_worlds_is_calm() -> None:
    """Some worlds have no fault at all: they catch what works only when it is retried."""
    calm = [seed for seed in range(1_000) if not drawn_world(seed).faults.any]
    assert 200 <= len(calm) <= 300


def test_a_seed_runs_alike_in_two_processes() -> None:
    """With different hash seeds, in different processes, a seed takes the same steps to the last one."""
    assert [] == equal_replays(0, 8, ground="memory")
    assert [] == equal_replays(0, 3, ground="sqlite")


def test_a_death_at_any_point_breaks_nothing() -> None:
    """The fixed scenario survives a death at each point that was tried, spread over all there are."""
    totals = crash_everywhere(every=29, jobs=JOBS)
    assert [] == broken(totals)
    assert totals.kills >= totals.worlds > 20


def old(seed: int, ground: str) -> World:
    """Return the world of *seed* as it was before there were sizes."""
    return drawn_world(seed, ground=ground, size="large")


def with_full_disk(seed: int) -> World:
    """Return the world of files of *seed*, with a disk that has often no room."""
    world = drawn_world(seed, ground="sqlite")
    return msgspec.structs.replace(world, faults=msgspec.structs.replace(world.faults, full=0.15))


# What a seed found, and what was wrong. Each stays; `make planted` shows that the seed still bites.
FOUND: dict[str, World] = {
    "the timer of a held event outlived its membership and started a task in a finished group": old(212, "memory"),
    "a batch of one that failed was called twice for one attempt": old(79, "memory"),
    "what was released counted as unsettled until the answer came, and credit came back before": old(10052, "sqlite"),
    "receive span, writing, while something due lay in a lane that was being revoked": old(10230, "sqlite"),
    "what the store took to prepare an event was counted as its handler's time": drawn_world(
        3_000_043, ground="sqlite"
    ),
    "a unit of the store was left open by a stop": drawn_world(5_000_425, ground="amqp"),
    "the model's own: settled while the commit was on its way": drawn_world(5_005_498, ground="kafka"),
    "the model's own: what was being acked stood for what was lost": drawn_world(5_031_918, ground="jetstream"),
    "a lane was let go of before the rest of it was given back": drawn_world(5_021_150, ground="sqlite"),
    "the simulation's own: a timer went off before its time": drawn_world(5_039_810, ground="jetstream"),
    "the model's own: a lane was lost by what had been deleted": drawn_world(5_043_105, ground="sqs"),
    "a timer started a worker in a membership that was ending": drawn_world(5_001_929, ground="sqlite"),
    "a source that a rolled back transaction had numbered was taken for known": with_full_disk(36),
    "the scenario's own: a publisher that did not know repeated an id with another body": old(20378, "sqlite"),
}


@pytest.mark.parametrize("world", FOUND.values(), ids=FOUND)
def test_what_a_seed_found_stays_mended(world: World) -> None:
    """A world that once broke a promise keeps it now."""
    assert [] == broken(totals_of([world]))


def test_a_campaign_goes_on_where_it_was_stopped(tmp_path: Path) -> None:
    """What was done before a stop is not done again, unless the code or the seeds are others."""
    state = tmp_path / "state.json"
    first = Campaign(state, label="one", start=5, seeds=6, ground="memory")
    run_worlds((drawn_world(seed) for seed in islice(first.left(), 4)), first.add)
    first.save()

    again = Campaign(state, label="one", start=5, seeds=6, ground="memory")
    assert [9, 10] == list(again.left())
    assert 4 == again.totals.worlds
    assert 6 == len(list(Campaign(state, label="two", start=5, seeds=6, ground="memory").left()))


def test_a_child_that_dies_is_a_failure_of_its_world() -> None:
    """A world that kills its child is named; the others of its batch are run all the same."""
    totals = Totals()

    def run(world: World) -> Report:
        if world.seed == 2:
            os.kill(os.getpid(), signal.SIGKILL)
        return _nothing(world)

    run_worlds((World(seed=seed, faults=Faults()) for seed in range(5)), totals.add, run=run)
    assert 5 == totals.worlds
    assert [2] == [failure.world.seed for failure in totals.failures]


def _nothing(world: World) -> Report:
    return Report(seed=world.seed, ground="memory", violations=())


def test_figures_go_between_the_markers_of_a_page(tmp_path: Path) -> None:
    """A section replaces the one that was there, and leaves what is around it as it is; a new one comes last."""
    page = tmp_path / "proof.md"
    write_section(page, "replays", section="one\n")
    write_section(page, "crashes", section="two\n")
    page.write_text(f"{page.read_text()}\nsomething else\n")
    write_section(page, "replays", section="three\n")

    text = page.read_text()
    assert "one" not in text
    assert text.index("# Proof") < text.index("three") < text.index("two") < text.index("something else")
