"""The store suite bites: every store that is broken on purpose is caught by the case the catalogue names."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import planted_records as records
import planted_stores as planted
import pytest
from planted_stores import Planted
from store_sites import sqlite_site

from tidewire.testing.stores import Site, StoreConformance

CAUGHT: list[tuple[type[Planted], str]] = [
    (planted.MarksOutsideItsUnit, "test_unit_commits_whole_or_not_at_all"),
    (planted.SendsBeforeTheCommit, "test_unit_commits_whole_or_not_at_all"),
    (planted.SendsBeforeTheCommit, "test_nothing_of_an_open_unit_is_seen"),
    (planted.SendsAfterTheCommit, "test_unit_commits_whole_or_not_at_all"),
    (planted.HasNoMarks, "test_event_is_marked_once"),
    (planted.ForgetsTheHandler, "test_each_part_of_a_mark_counts"),
    (planted.FoldsIds, "test_no_two_ids_are_one"),
    (planted.KeepsNoDigest, "test_digest_is_given_back"),
    (planted.ChecksThenInserts, "test_two_workers_one_effect"),
    (planted.TakesAConflictForDone, "test_conflict_waits_for_the_first_and_runs_if_it_fails"),
    (planted.KeepsTheTurnOfACancelled, "test_cancelled_waiters_leave_the_others_alone"),
    (planted.WritesAfterItsEnd, "test_ended_unit_is_closed"),
    (planted.PrunesTheYoung, "test_pruning_takes_the_old_ones_in_bounded_batches"),
    (records.NumbersBeforeTheCommit, "test_nothing_is_missed_behind_the_cursor"),
    (records.MarksAtTheClaim, "test_a_row_comes_again_until_it_is_done"),
    (records.DeletesUpToTheLast, "test_done_deletes_exactly_what_was_sent"),
    (records.OrdersByTheClock, "test_order_is_not_that_of_the_wall_clock"),
    (records.HandsOutEarly, "test_delayed_event_waits_for_its_time"),
    (records.ForgetsTheDelayed, "test_count_follows_what_happens"),
    (records.PulsesOnly, "test_waiting_is_a_flag_and_not_a_pulse"),
    (records.LosesEmptyKeys, "test_what_goes_in_comes_out"),
    (records.LeasesByTheWallClock, "test_leases_are_not_judged_by_the_wall_clock"),
    (records.LeadsTwice, "test_one_relay_at_a_time"),
    (records.LetsAZombieFinish, "test_a_relay_that_lost_its_lease_changes_nothing"),
    (records.GoesOnBehindAQuarantine, "test_refused_row_stops_its_key_and_no_other"),
    (records.GoesOnBehindAQuarantine, "test_stateful_model"),
    (records.ForgetsFailuresAtAStart, "test_starts_and_failures_are_remembered"),
    (records.LosesItsPlace, "test_held_rows_keep_their_place"),
    (records.HoldsTheWholeTopic, "test_held_keys_are_told_apart"),
    (records.GuardsNothing, "test_fenced_unit_leaves_nothing"),
    (records.GuardsNothing, "test_stateful_model"),
    (records.LooksAtTheGuardFirst, "test_guard_is_checked_inside_the_transaction"),
    (records.AdoptsBackwards, "test_epochs_never_go_back"),
    (records.FinishesForAnybody, "test_who_lost_the_lease_cannot_finish"),
]
CAUGHT_ON_DISK: list[tuple[Callable[[str], Site], str]] = [
    (planted.answers_too_early, "test_kill_9_leaves_all_of_a_unit_or_nothing"),
    (planted.remembers_in_the_process, "test_everything_is_there_after_reopening"),
    (planted.remembers_in_the_process, "test_commits_are_seen_by_other_connections"),
]


class Suite(StoreConformance):
    """The suite at a store that is given at run time. Not collected: its name does not begin with Test."""

    def __init__(self, make: Callable[[Path], Site]) -> None:
        self.site = make  # type: ignore[method-assign]


def name_of(value: object) -> str:
    """Return the name under which pytest shows a parameter."""
    return str(getattr(value, "__name__", value))


@pytest.mark.parametrize(("store", "case"), CAUGHT, ids=name_of)
def test_broken_store_is_caught(store: type[Planted], case: str, tmp_path: Path) -> None:
    """A store with this defect fails the case that is there to find it."""
    with pytest.raises(AssertionError):
        getattr(Suite(lambda _: store.site()), case)(tmp_path)


@pytest.mark.parametrize(("make", "case"), CAUGHT_ON_DISK, ids=name_of)
def test_store_that_is_broken_on_disk_is_caught(make: Callable[[str], Site], case: str, tmp_path: Path) -> None:
    """A store in a file with this defect fails the case that is there to find it."""
    with pytest.raises(AssertionError):
        getattr(Suite(lambda directory: make(str(directory / "store.db"))), case)(tmp_path)


@pytest.mark.parametrize("case", sorted({case for _, case in CAUGHT}))
def test_sound_store_passes_with_little_patience(case: str, tmp_path: Path) -> None:
    """The same cases pass on a store that only stands in the way: it is the defect that is caught."""
    getattr(Suite(lambda _: Planted.site()), case)(tmp_path)


@pytest.mark.parametrize("case", sorted({case for _, case in CAUGHT_ON_DISK}))
def test_sound_store_on_disk_passes(case: str, tmp_path: Path) -> None:
    """The same for the cases that need a file."""
    getattr(Suite(lambda directory: sqlite_site(str(directory / "store.db"))), case)(tmp_path)
