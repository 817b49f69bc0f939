"""The suite bites: every adapter that is broken on purpose is caught by the case the catalogue names."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import planted
import planted_faults as faults
import pytest
from memory_site import memory_site
from planted import Adapter

from tidewire.testing.transports import Site, TransportConformance

CAUGHT: list[tuple[type[Adapter], str]] = [
    (planted.DropsReleased, "test_key_order_after_release_now"),
    (planted.LetsNewerOvertake, "test_key_order_after_release_now"),
    (planted.LetsNewerOvertake, "test_key_order_batch_of_one_group_partial_failure"),
    (planted.LosesWhenCancelled, "test_cancel_receive_never_loses"),
    (planted.AcksBeforeTheMove, "test_dead_letter_publish_failure_keeps_message"),
    (planted.AcksBeforeTheMove, "test_move_publishes_before_it_acks"),
    (planted.CountsFromZero, "test_attempt_starts_at_1_and_counts_each_failure"),
    (planted.ForgetsCrashes, "test_attempt_counts_crashes"),
    (planted.RetriesToTheTopic, "test_retry_comes_back_through_the_inbox_only_here"),
    (planted.TakesUnroutableForStored, "test_publish_unknown_topic_is_rejected_not_lost"),
    (planted.RaisesForOne, "test_publish_oversize_rejected_others_stored"),
    (planted.GoesOnAfterAFailure, "test_publish_partial_failure_no_gap_per_key"),
    (planted.HidesPartialFailure, "test_publish_partial_failure_no_gap_per_key"),
    (planted.CommitsTheHighest, "test_out_of_order_settle_within_lane"),
    (planted.AcceptsAStaleEpoch, "test_stale_settle_is_lost_not_stolen"),
    (planted.CountsAShutdown, "test_consumer_leaves_gracefully_takeover_fast"),
    (planted.BeginsAtTheLatest, "test_group_provisioned_but_not_running_keeps_backlog"),
    (planted.BeginsAtTheLatest, "test_publish_before_any_consumer_is_delivered_later"),
    (planted.NeverClaims, "test_consumer_killed_takeover"),
    (planted.WaitsForAFullBatch, "test_receive_returns_early_with_partial_batch"),
    (planted.PrefetchesWithoutLimit, "test_receive_respects_limit_and_prefetch"),
    (planted.FallsAsleepWithoutCredit, "test_no_credit_keeps_membership"),
    (planted.DeliversEarly, "test_delay_not_early"),
    (planted.TruncatesKeys, "test_long_unicode_binaryish_key"),
    (planted.DowngradesOrdering, "test_ordering_key_refused_when_unsupported"),
    (planted.BlocksTheLane, "test_key_order_after_release_now"),
    (planted.DropsAtItsOwnLimit, "test_native_limit_never_fires_before_core_limit"),
    (planted.GuessesStats, "test_stats_none_when_unknown_never_negative"),
    (planted.LeaksFiles, "test_no_task_thread_fd_leak"),
    (planted.LooksOnlyIntoTopics, "test_a_redrive_can_be_followed"),
    (planted.TakesHandedOutForSettled, "test_standings_know_what_was_settled_out_of_order"),
    (planted.MatchesBeginnings, "test_related_covers_topics_and_dead_channels"),
    (planted.RemembersOwners, "test_owners_have_live_leases"),
    (planted.NumbersActsFromTheEnd, "test_acts_are_kept_in_order"),
    (planted.LosesEmptyHeaders, "test_headers_roundtrip_unicode_empty_values_64"),
    (faults.ReportsBeforeTheConfirm, "test_publish_connection_lost_in_flight"),
    (faults.ReportsATimeoutAsRejected, "test_publish_timeout_is_unknown_then_retry_same_id"),
    (faults.AcksForTheNextOwner, "test_stale_settle_is_lost_not_stolen"),
    (faults.AcksWhenCancelled, "test_leaving_under_cancellation_gives_back_at_once"),
    (faults.IsDeafAfterAReconnect, "test_reconnect_during_consume"),
    (faults.HangsInClose, "test_close_with_hung_broker"),
]


class Suite(TransportConformance):
    """The suite at an adapter that is given at run time. Not collected: its name does not begin with Test."""

    def __init__(self, adapter: type[Adapter]) -> None:
        self.adapter = adapter

    def site(self, directory: Path) -> Site:
        """Return a broker with the given adapter, and little patience."""
        return memory_site(self.adapter.open, patience=0.7)


@pytest.fixture(autouse=True)
def _close_what_leaks() -> Iterator[None]:
    yield
    faults.IsDeafAfterAReconnect.receiver.deaf = False
    while planted.LeaksFiles.leaked:
        os.close(planted.LeaksFiles.leaked.pop())


@pytest.mark.parametrize(("adapter", "case"), CAUGHT, ids=lambda value: getattr(value, "__name__", value))
def test_broken_adapter_is_caught(adapter: type[Adapter], case: str, tmp_path: Path) -> None:
    """An adapter with this defect fails the case that is there to find it."""
    with pytest.raises(AssertionError):
        getattr(Suite(adapter), case)(tmp_path)


@pytest.mark.parametrize("case", sorted({case for _, case in CAUGHT} - {"test_ordering_key_refused_when_unsupported"}))
def test_sound_adapter_passes_with_little_patience(case: str, tmp_path: Path) -> None:
    """The same cases pass on an adapter that only stands in the way: it is the defect that is caught."""
    getattr(Suite(Adapter), case)(tmp_path)
