"""The key scheduler: one per key in order, suspects alone, nothing lost, driven by random steps."""

from __future__ import annotations

import random
from dataclasses import dataclass, field

from hypothesis import given, settings
from hypothesis import strategies as st

from tidewire.model import Delivery, Message, Topic
from tidewire.rules.lanes import Key, Schedule, State


@dataclass(eq=False)
class Piece:
    """The least that the schedule needs."""

    delivery: Delivery
    key: Key | None
    alone: bool = False
    gone: bool = False
    state: State = "new"
    number: int = field(default=0)


def piece(number: int, key: str | None, *, lane: str = "t/0", alone: bool = False) -> Piece:
    message = Message(Topic("t"), str(number), "test", key, {}, b"")
    delivery = Delivery(message, lane, 1, number, suspect=alone)
    return Piece(delivery, None if key is None else (lane, key), alone, number=number)


def test_the_next_of_a_key_waits_until_the_first_is_free() -> None:
    """Running, concluded or held: as long as an event is not freed, its successor does not start."""
    schedule: Schedule[Piece] = Schedule()
    first, second = piece(1, "a"), piece(2, "a")
    schedule.add(first)
    schedule.add(second)

    assert first is schedule.take()
    assert schedule.take() is None
    schedule.conclude(first)
    assert schedule.take() is None
    schedule.free(first)
    assert second is schedule.take()


def test_a_held_key_lets_others_pass() -> None:
    """A failing event holds its own key and nothing else."""
    schedule: Schedule[Piece] = Schedule()
    failing, behind, other = piece(1, "a"), piece(2, "a"), piece(3, "b")
    for work in (failing, behind, other):
        schedule.add(work)
    schedule.take()
    schedule.hold(failing)

    assert other is schedule.take()
    assert schedule.take() is None
    assert schedule.resume(failing)
    assert failing is schedule.take()


def test_events_without_a_key_do_not_wait_for_each_other() -> None:
    """No key, no order."""
    schedule: Schedule[Piece] = Schedule()
    works = [piece(number, None) for number in range(3)]
    for work in works:
        schedule.add(work)

    assert works == [schedule.take() for _ in works]


def test_a_suspect_runs_alone() -> None:
    """Nothing starts beside it, and it waits for what is running."""
    schedule: Schedule[Piece] = Schedule()
    running, suspect, other = piece(1, "a"), piece(2, "b", alone=True), piece(3, "c")
    schedule.add(running)
    assert running is schedule.take()
    schedule.add(suspect)
    schedule.add(other)

    assert schedule.take() is None
    schedule.conclude(running)
    assert suspect is schedule.take()
    assert schedule.take() is None
    schedule.conclude(suspect)
    assert schedule.take() is None, "its effect is not certain yet"
    schedule.free(suspect)
    assert other is schedule.take()


def test_freeing_twice_frees_once() -> None:
    """A second `free` of the same event must not start the successor's successor."""
    schedule: Schedule[Piece] = Schedule()
    works = [piece(number, "a") for number in range(3)]
    for work in works:
        schedule.add(work)
    schedule.take()
    schedule.conclude(works[0])
    schedule.free(works[0])
    schedule.free(works[0])

    assert works[1] is schedule.take()
    assert schedule.take() is None


def test_what_was_never_added_frees_nothing() -> None:
    """An event nobody asked for is settled like the others; the held key of its namesake stays held."""
    schedule: Schedule[Piece] = Schedule()
    failing, behind, skipped = piece(1, "a"), piece(2, "a"), piece(3, "a")
    schedule.add(failing)
    schedule.add(behind)
    schedule.take()
    schedule.hold(failing)
    schedule.free(skipped)

    assert schedule.take() is None


def test_holding_what_has_concluded_counts_it_once() -> None:
    """The number of running events is never wrong, or a drain would wait for ghosts and a suspect never start."""
    schedule: Schedule[Piece] = Schedule()
    work = piece(1, "a")
    schedule.add(work)
    schedule.take()
    schedule.conclude(work)
    schedule.hold(work)

    assert 0 == schedule.running


def test_withdrawing_leaves_what_has_started() -> None:
    """Of a revoked lane, the running event keeps its key; what waited behind it is given back in order."""
    schedule: Schedule[Piece] = Schedule()
    running, behind, elsewhere = piece(1, "a"), piece(2, "a"), piece(3, "a", lane="t/1")
    for work in (running, behind, elsewhere):
        schedule.add(work)
    schedule.take()

    assert [behind] == schedule.withdraw("t/0")
    assert elsewhere is schedule.take()
    again = piece(4, "a")
    schedule.add(again)
    assert schedule.take() is None, "the same event, handed out again, must not run beside itself"
    schedule.conclude(running)
    schedule.free(running)
    assert again is schedule.take()


@settings(max_examples=200, deadline=None)
@given(st.integers(0, 2**32), st.integers(1, 60))
def test_whatever_happens_each_runs_once_in_the_order_of_its_key(seed: int, count: int) -> None:
    """For any order of steps every event is handled exactly once, per key in order, one at a time."""
    chance = random.Random(seed)
    schedule: Schedule[Piece] = Schedule()
    todo = [piece(n, chance.choice([None, "a", "b", "c"]), alone=chance.random() < 0.1) for n in range(count)]
    running: list[Piece] = []
    held: list[Piece] = []
    concluded: list[Piece] = []
    handled: list[Piece] = []
    waiting = list(todo)
    while len(handled) < count:
        step = chance.randrange(6)
        if step == 0 and waiting:
            schedule.add(waiting.pop(0))
        elif step == 1:
            work = schedule.take()
            if work is not None:
                running.append(work)
        elif step == 2 and running:
            work = running.pop(chance.randrange(len(running)))
            schedule.conclude(work)
            concluded.append(work)
        elif step == 3 and running and chance.random() < 0.3:
            work = running.pop(chance.randrange(len(running)))
            schedule.hold(work)
            held.append(work)
        elif step == 4 and held:
            assert schedule.resume(held.pop(chance.randrange(len(held))))
        elif step == 5 and concluded:
            work = concluded.pop(chance.randrange(len(concluded)))
            if chance.random() < 0.2:
                schedule.back(work)
            else:
                schedule.free(work)
                schedule.settled([work])
                handled.append(work)
        keys = [work.key for work in running if work.key is not None]
        assert len(keys) == len(set(keys)), "two of a key at once"
        assert not any(work.alone for work in running) or len(running) == 1, "a suspect in company"
    for key in ("a", "b", "c"):
        numbers = [work.number for work in handled if work.key == ("t/0", key)]
        assert sorted(numbers) == numbers
    assert 0 == schedule.outstanding
