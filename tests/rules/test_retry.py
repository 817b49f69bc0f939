"""When to try again and when to give up."""

from __future__ import annotations

from datetime import timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tidewire.errors import ConfigurationError, Reject, RetryAfter, StoreUnavailable, TransportUnavailable
from tidewire.model import DeadLetter, Failure, Reason, RetryLater, Unavailable
from tidewire.rules.retry import Retry, RetryBudget, decide, delay_ceiling, outage_delay, raised_at, remember


class Highest:
    """Jitter that always draws the upper bound."""

    def between(self, low: timedelta, high: timedelta) -> timedelta:
        return max(low, high)


def test_waits_grow_by_the_factor_up_to_the_maximum() -> None:
    """1 s times 4 up to 10 min are the defaults of the design."""
    waits = [delay_ceiling(Retry(), failures).total_seconds() for failures in range(1, 8)]
    assert [1, 4, 16, 64, 256, 600, 600] == waits


@given(st.integers(1, 10**6))
def test_no_number_of_failures_breaks_the_ceiling(failures: int) -> None:
    """Even where the power overflows, the wait is at most the maximum."""
    assert delay_ceiling(Retry(), failures) <= Retry().max_delay


def test_attempts_are_counted_with_the_first() -> None:
    """attempts=3 is three calls: two retries, then a dead letter."""
    policy = Retry(attempts=3)
    outcomes = [decide(ValueError("x"), failures=n, policy=policy, jitter=Highest()) for n in (1, 2, 3)]
    assert [RetryLater, RetryLater, DeadLetter] == [type(outcome) for outcome in outcomes]
    assert isinstance(outcomes[2], DeadLetter)
    assert Reason.EXHAUSTED is outcomes[2].reason


def test_reject_is_a_dead_letter_at_the_first_attempt() -> None:
    """What is not worth a retry is not retried."""
    outcome = decide(Reject("no"), failures=1, policy=Retry(), jitter=Highest())
    assert isinstance(outcome, DeadLetter)
    assert (Reason.PERMANENT, "no") == (outcome.reason, outcome.detail)


def test_retry_after_waits_as_it_says_and_counts_as_a_failure() -> None:
    """The handler chooses the delay, the policy the number of attempts."""
    error = RetryAfter(timedelta(seconds=7))
    outcome = decide(error, failures=1, policy=Retry(attempts=2), jitter=Highest())
    assert isinstance(outcome, RetryLater)
    assert timedelta(seconds=7) == outcome.delay
    assert isinstance(decide(error, failures=2, policy=Retry(attempts=2), jitter=Highest()), DeadLetter)


@pytest.mark.parametrize("error", [StoreUnavailable("down"), TransportUnavailable("down")])
def test_an_outage_is_never_counted(error: Exception) -> None:
    """RT11: however many failures there were, something that is down makes no dead letter."""
    assert isinstance(decide(error, failures=99, policy=Retry(attempts=1), jitter=Highest()), Unavailable)


def test_over_the_budget_a_wait_is_stretched() -> None:
    """RT1: retries beyond a fifth of what is processed slow down; they are never dropped."""
    budget = RetryBudget(burst=2)
    assert [1.0, 1.0, 4.0] == [budget.spend() for _ in range(3)]
    budget.earn(5)
    assert 1.0 == budget.spend()


def test_outages_wait_longer_each_time_up_to_a_bound() -> None:
    """A broker that is down is asked less and less often, and never less than twice a minute."""
    waits = [outage_delay(n, Highest()).total_seconds() for n in range(12)]
    assert sorted(waits) == waits
    assert 30 == waits[-1]


def test_the_failure_record_has_a_fixed_size() -> None:
    """RT5: a thousand failures of a thousand kinds take no more room than a few."""
    failure: Failure | None = None
    for number in range(1_000):
        failure = remember(failure, type(f"Error{number}", (Exception,), {})("x" * 5_000), now_us=number)
    assert failure is not None
    assert 1_000 == failure.failures == sum(failure.counts.values())
    assert len(failure.counts) <= 17
    assert len(failure.first_error) <= 1_024 >= len(failure.last_error)
    assert (0, 999) == (failure.first_at, failure.last_at)


@pytest.mark.parametrize("wrong", [{"attempts": 0}, {"first_delay": timedelta(-1)}, {"factor": 0.5}])
def test_an_impossible_policy_is_refused(wrong: dict[str, object]) -> None:
    """At import time, not at the first failure."""
    with pytest.raises(ConfigurationError, match="retry policy"):
        Retry(**wrong)  # type: ignore[arg-type]


def test_an_error_that_was_never_raised_has_no_place() -> None:
    """A timeout that the runtime makes of a cancellation was raised nowhere in the user's code."""
    assert "" == raised_at(TimeoutError("too long"))
