"""When a member counts as deaf, from looks alone."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import timedelta

import pytest

from tidewire.rules.stalls import Seen, Stalls

MINUTE = timedelta(minutes=1)


def findings(*looks: tuple[float, object, bool, int | None], lag_min: int = 1) -> list[str]:
    """Return what each look, (now, mark, asks, lag), means with a window of a minute."""
    stalls = Stalls(MINUTE, lag_min=lag_min)
    stalls.begin("a")
    return [stalls.judge(Seen(now=now, mark=mark, asks=asks, lag=lag)) for now, mark, asks, lag in looks]


@pytest.mark.parametrize(
    ("looks", "expected"),
    [
        ([(60, "a", True, 0), (3600, "a", True, 0)], "quiet quiet"),
        ([(1, "a", True, 9), (31, "a", True, 9), (61, "a", True, 9)], "quiet doubtful deaf"),
        ([(1, "a", True, 9), (60, "b", True, 9), (61, "b", True, 9)], "quiet hears quiet"),
        ([(1, "a", True, 9), (60, "a", False, 9), (61, "a", True, 9)], "quiet hears quiet"),
        ([(1, "a", True, 9), (59, "a", True, 0), (61, "a", True, 9)], "quiet quiet quiet"),
        ([(1, "a", True, None), (90, "a", True, None)], "quiet unknown"),
        ([(1, "a", True, 9), (99, "a", True, None), (100, "a", True, 9)], "quiet quiet deaf"),
    ],
    ids=["idle", "deaf", "heard", "full", "caught-up", "unanswered", "answered-again"],
)
def test_deaf_is_who_asks_in_vain_for_a_whole_window(
    looks: Sequence[tuple[float, object, bool, int | None]], expected: str
) -> None:
    """What is heard, no credit, or nothing that waits begins the window anew; no answer changes nothing."""
    assert expected.split() == findings(*looks)


def test_fewer_than_the_threshold_are_no_reason() -> None:
    """With a threshold of five, four that wait are nothing, and five are deafness."""
    looks = [(float(second), "a", True, 4) for second in range(0, 200, 15)]
    assert {"quiet"} == set(findings(*looks, lag_min=5))
    assert "deaf" in findings(*((now, mark, asks, 5) for now, mark, asks, _ in looks), lag_min=5)


def test_each_rebuild_in_a_row_doubles_the_window_until_one_was_well() -> None:
    """1, 2, 4, 8, 16, 16 minutes; one that has heard something and then was well for its window ends the row."""
    stalls, now = Stalls(MINUTE, lag_min=1), 0.0
    windows: list[float] = []
    for _ in range(6):
        stalls.begin(0)
        windows.append(stalls.window / MINUTE)
        stalls.judge(Seen(now=now, mark=0, asks=True, lag=1))
        now += stalls.window.total_seconds()
        assert "deaf" == stalls.judge(Seen(now=now, mark=0, asks=True, lag=1))
    assert [1, 2, 4, 8, 16, 16] == windows
    stalls.begin(0)
    stalls.judge(Seen(now=now, mark=1, asks=True, lag=0))
    assert 16 * MINUTE == stalls.window
    stalls.judge(Seen(now=now + 16 * 60, mark=1, asks=True, lag=0))
    assert MINUTE == stalls.window


def test_what_was_never_heard_ends_no_row() -> None:
    """A membership to which nothing came was not well, however long it lasts."""
    stalls = Stalls(MINUTE, lag_min=1)
    stalls.begin(0)
    for now in (1.0, 61.0):
        stalls.judge(Seen(now=now, mark=0, asks=True, lag=1))
    stalls.begin(0)
    stalls.judge(Seen(now=62.0, mark=0, asks=True, lag=0))
    stalls.judge(Seen(now=9999.0, mark=0, asks=True, lag=0))
    assert 2 * MINUTE == stalls.window
