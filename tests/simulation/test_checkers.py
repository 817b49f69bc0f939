"""The checkers bite: each finds its own kind of broken promise, and passes a history that keeps it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial

import pytest

from tidewire.testing.simulation import CHECKS, Audience, History, Op, judge

BILLING = Audience(of="t", group="billing", handler="charge", attempts_max=2)
publish = partial(Op, f="publish", event="a", of="t", key="k", n=1, stream="s", digest="d")
effect = partial(
    Op, f="effect", event="a", key="k", n=1, stream="s", group="billing", handler="charge", number=5, digest="d"
)
mark = partial(Op, f="mark", event="a", group="billing", handler="charge")
attempt = partial(Op, f="attempt", event="a", group="billing", handler="charge")
dead = partial(Op, f="dead", event="a", group="billing")
GOOD = (publish(), effect(), mark())

# check → what must be found in it.
BAD: dict[str, Sequence[Op]] = {
    "C1": (publish(), effect(), mark(), dead(detail="held")),
    "C2": (publish(),),
    "C3": (*GOOD, effect(event="b"), mark(event="b")),
    "C4": (publish(type="fail"), effect(), mark()),
    "C5": (publish(), effect(), effect(number=6), mark()),
    "C6": (*GOOD, Op(f="row", event="b", of="t", stream="other")),
    "C7": (
        publish(),
        publish(event="b", n=2),
        effect(event="b", n=2, number=1),
        effect(number=2),
        mark(),
        mark(event="b"),
    ),
    "C8": (*GOOD, Op(f="commit", group="g", lane="l", epoch=2, n=5), Op(f="commit", group="g", lane="l", epoch=2, n=4)),
    "C9": (publish(), Op(f="adopt", group="billing", lane="l", epoch=2, number=4), effect(lane="l", epoch=1), mark()),
    "C10": (*GOOD, *(attempt(type="fail") for _ in range(3))),
    "C11": (publish(), effect()),
    "C12": (*GOOD, Op(f="outbox", group="billing", n=1)),
    "C13": (
        *GOOD,
        Op(f="lane", type="invoke", process="one", group="g", lane="l", epoch=1),
        Op(f="lane", type="invoke", process="two", group="g", lane="l", epoch=2),
        Op(f="settle", process="one", group="g", lane="l", epoch=1, event="a"),
    ),
    "C14": (publish(), effect(digest="other"), mark()),
    "C15": (*GOOD, Op(f="saga", type="invoke", event="s"), Op(f="saga", event="s", detail="half way")),
    "C16": (*GOOD, Op(f="timer", type="invoke", event="x", due=5), Op(f="timer", event="x", at=4)),
    "C17": (*GOOD, Op(f="bound", n=11, due=10, detail="unsettled")),
    "C18": (*GOOD, Op(f="heal", at=0, due=10), Op(f="drained", at=11)),
    "C19": (*GOOD, Op(f="health", detail="ready", n=60_000_000)),
    "C20": (
        *GOOD,
        Op(f="fact", type="invoke", process="p", detail="settled", n=3),
        Op(f="fact", process="p", detail="settled", n=2),
    ),
}

ALSO_BAD: list[tuple[str, Sequence[Op]]] = [
    ("C1", (publish(),)),
    ("C1", (publish(), dead(detail="exhausted"), dead(detail="exhausted"))),
    ("C6", (publish(), Op(f="row", type="invoke", stream="s"), effect(), mark())),
    (
        "C8",
        (*GOOD, Op(f="commit", group="g", lane="l", epoch=2, n=5), Op(f="commit", group="g", lane="l", epoch=1, n=6)),
    ),
    ("C10", (publish(), attempt(type="fail"), dead(detail="exhausted"))),
    ("C10", (*GOOD, dead(type="fail", detail="StoreUnavailable"))),
    ("C11", (publish(), mark(), dead())),
    (
        "C13",
        (
            *GOOD,
            Op(f="lane", type="invoke", process="one", group="g", lane="l", epoch=1),
            Op(f="lane", type="invoke", process="two", group="g", lane="l", epoch=1),
        ),
    ),
    ("C12", (publish(), Op(f="stuck", group="web", event="a", detail="id_conflict"))),
    ("C16", (*GOOD, Op(f="timer", event="x"), Op(f="timer", event="x"))),
    ("C16", (*GOOD, Op(f="timer", type="invoke", event="x", due=5))),
    ("C18", (*GOOD, Op(f="heal", at=0, due=10))),
]


def checked(ops: Sequence[Op]) -> set[str]:
    """Return the names of the checks that find something in *ops*."""
    return {found.check for found in judge(History([BILLING], ops))}


def test_a_history_without_a_fault_passes() -> None:
    """What was published once, took effect once and is marked once breaks no promise."""
    assert set() == checked(GOOD)


@pytest.mark.parametrize("name", CHECKS)
def test_every_check_bites(name: str) -> None:
    """Each check finds a history that breaks its promise."""
    assert name in checked(BAD[name])


@pytest.mark.parametrize(("name", "ops"), ALSO_BAD)
def test_a_check_finds_each_way_to_break_its_promise(name: str, ops: Sequence[Op]) -> None:
    """A promise can be broken in more than one way, and its check knows them."""
    assert name in checked(ops)


GOOD_TOO: list[Callable[[], Sequence[Op]]] = [
    lambda: (
        publish(),
        *(attempt(type=kind) for kind in ("invoke", "fail", "invoke", "fail")),
        dead(detail="exhausted"),
    ),
    lambda: (publish(), Op(f="discard", group="billing", event="a")),
    lambda: (publish(type="info"),),
    lambda: (publish(type="info"), effect(), mark()),
    lambda: (publish(), effect(), effect(number=6, run=1), mark(), mark(run=1)),
    lambda: (*GOOD, effect(event="z", group="mailer", handler="x"), publish(event="z", of="other")),
    lambda: (
        *GOOD,
        Op(f="adopt", group="billing", lane="l", epoch=2, number=9),
        effect(event="b", lane="l", epoch=1),
        mark(event="b"),
        publish(event="b", n=2),
    ),
    lambda: (*GOOD, *(attempt(type="fail") for _ in range(3)), Op(f="crash", group="billing")),
    lambda: (*GOOD, attempt(type="fail"), attempt(type="fail"), attempt(type="fail", cycle=1)),
    lambda: (*GOOD, Op(f="timer", type="invoke", event="x", due=5), Op(f="timer", event="x", at=5)),
    lambda: (*GOOD, Op(f="saga", type="invoke", event="s"), Op(f="saga", event="s", detail="compensated")),
    lambda: (*GOOD, Op(f="heal", at=0, due=10), Op(f="drained", at=10)),
    lambda: (  # the answer came late: it was asked for, and done, in time
        *GOOD,
        Op(f="lane", type="invoke", process="one", group="g", lane="l", epoch=1),
        Op(f="lane", type="invoke", process="two", group="g", lane="l", epoch=2),
        Op(f="settle", process="one", group="g", lane="l", epoch=1, event="a", number=4),
    ),
    lambda: (*GOOD, Op(f="health", detail="not ready", n=60_000_000), Op(f="health", detail="ready", n=10)),
]


@pytest.mark.parametrize("ops", GOOD_TOO)
def test_what_is_allowed_passes(ops: Callable[[], Sequence[Op]]) -> None:
    """Dead letters, discards, unknown outcomes, replays, faults that hide a failure: none is a broken promise."""
    assert set() == checked(ops())


def test_a_history_that_was_not_drained_has_lost_nothing() -> None:
    """Where a run was cut short, what is still on its way is not counted as lost."""
    assert [] == judge(History([BILLING], [publish()], complete=False))


def test_a_quarantined_event_is_found_and_not_lost() -> None:
    """An event in an outbox's quarantine is one finding with its reason, not a loss for each of its readers."""
    ops = [publish(), Op(f="row", event="a", of="t", stream="s"), Op(f="stuck", group="web", event="a", detail="why")]
    assert ["C12: web: a is in the quarantine of the outbox: why"] == [
        str(found) for found in judge(History([BILLING], ops))
    ]
    lost = [*ops, publish(event="b")]
    assert {"C1", "C2", "C12"} == checked(lost)


def test_histories_travel_as_lines() -> None:
    """A history is written as JSON lines and read again; a half-written last line is dropped."""
    written = History([BILLING], GOOD).encode()
    assert list(GOOD) == History.decode(written).ops
    assert list(GOOD[:2]) == History.decode(written[:-5]).ops
