"""When recurring things are due: intervals, cron expressions, time zones with their two odd nights, missed runs."""

from __future__ import annotations

import time
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tidewire import ConfigurationError
from tidewire.rules.recurrence import Cron, Every, Recurrence, plan_run

HOUR = timedelta(hours=1)
moments = st.datetimes(datetime(2000, 1, 1), datetime(2050, 1, 1), timezones=st.just(UTC))
intervals = st.timedeltas(timedelta(milliseconds=10), timedelta(days=400))


def utc(*parts: int) -> datetime:
    return datetime(*parts, tzinfo=UTC)  # type: ignore[misc]


def dues(rule: Recurrence, start: datetime, count: int) -> list[datetime]:
    found = [start]
    for _ in range(count):
        found.append(rule.after(found[-1]))
    return found[1:]


@given(moments, intervals)
def test_an_interval_is_due_behind_the_moment_and_no_later_than_its_length(
    moment: datetime, interval: timedelta
) -> None:
    """Strictly behind, at most one interval away, and the same from wherever it is counted."""
    rule = Every(interval)
    due = rule.after(moment)
    assert moment < due <= moment + interval
    assert due == rule.after(due - timedelta(microseconds=1))


def test_a_cron_expression_is_read_in_its_zone() -> None:
    """Six in the morning in Berlin is five in winter and four in summer, in UTC."""
    rule = Cron("0 6 * * *", zone="Europe/Berlin")
    assert rule.after(utc(2026, 1, 10)) == utc(2026, 1, 10, 5)
    assert rule.after(utc(2026, 7, 10)) == utc(2026, 7, 10, 4)


def test_the_missing_hour_of_spring_is_due_right_after_it() -> None:
    """2026-03-29 02:30 does not exist in Berlin; the day still has its run."""
    found = dues(Cron("30 2 * * *", zone="Europe/Berlin"), utc(2026, 3, 28, 12), 2)
    assert [utc(2026, 3, 29, 1), utc(2026, 3, 30, 0, 30)] == found


def test_the_doubled_hour_of_autumn_is_due_once() -> None:
    """2026-10-25 02:30 happens twice in Berlin; the run does not."""
    found = dues(Cron("30 2 * * *", zone="Europe/Berlin"), utc(2026, 10, 24, 12), 2)
    assert utc(2026, 10, 25) < found[0] < utc(2026, 10, 25, 2)
    assert found[1] == utc(2026, 10, 26, 1, 30)


@pytest.mark.parametrize(
    ("missed", "run", "following"),
    [
        ("latest", utc(2026, 1, 1, 5), utc(2026, 1, 1, 6)),
        ("all", utc(2026, 1, 1, 1), utc(2026, 1, 1, 2)),
        ("skip", None, utc(2026, 1, 1, 6)),
    ],
)
def test_runs_that_were_missed(missed: Any, run: datetime | None, following: datetime) -> None:
    """Due at one, looked at half past five: the policy decides what happens and what comes next."""
    now = utc(2026, 1, 1, 5, 30)
    plan = plan_run(Every(HOUR), due=utc(2026, 1, 1, 1), now=now, missed=missed, late=timedelta(minutes=5))
    assert (run, following) == plan


def test_a_run_in_time_is_not_missed() -> None:
    """With ``skip`` a run that is a little late happens."""
    now = utc(2026, 1, 1, 5, 1)
    plan = plan_run(Every(HOUR), due=utc(2026, 1, 1, 5), now=now, missed="skip", late=timedelta(minutes=5))
    assert (utc(2026, 1, 1, 5), utc(2026, 1, 1, 6)) == plan


def test_years_of_missed_runs_take_no_time_to_skip() -> None:
    """A service that was off for two years and has a short interval starts at once."""
    started = time.process_time()  # of ours alone: what others of this machine do takes no time here
    run, following = plan_run(
        Every(timedelta(milliseconds=10)), due=utc(2024, 1, 1), now=utc(2026, 1, 1), missed="latest", late=HOUR
    )
    assert time.process_time() - started < 0.1
    assert run == utc(2026, 1, 1)
    assert following == utc(2026, 1, 1) + timedelta(milliseconds=10)


@given(moments, intervals, st.timedeltas(timedelta(0), timedelta(days=3_000)))
def test_latest_is_the_last_that_has_come(due: datetime, interval: timedelta, gone: timedelta) -> None:
    """Nothing that has come is left out and nothing that has not come happens."""
    rule = Every(interval)
    first = rule.after(due)
    now = first + gone
    run, following = plan_run(rule, due=first, now=now, missed="latest", late=HOUR)
    assert run is not None
    assert first <= run <= now < following


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Every(timedelta(0)), "at least"),
        (lambda: Every(HOUR, start=datetime(2026, 1, 1)), "time zone"),
        (lambda: Cron("every day"), "cron"),
        (lambda: Cron("0 0 31 2 *"), "never due|Bad"),
        (lambda: Cron("0 6 * * *", zone="Europe/Bärlin"), "no such time zone"),
    ],
)
def test_a_rule_that_cannot_be_is_refused(make: Any, message: str) -> None:
    """Named when it is written, not at three in the morning."""
    with pytest.raises(ConfigurationError, match=f"(?i){message}"):
        make()
