"""Which outbox rows may leave: of a key one flight at a time and in order, whatever lands in between."""

from __future__ import annotations

import random

from hypothesis import given, settings
from hypothesis import strategies as st

from tidewire.model import Message, Pending, Topic
from tidewire.rules.relaying import CLAIM_BYTES_MAX, Flight, Traffic, last_page, relay_name, strangers, up_to


def row(number: int, key: str | None, *, topic: str = "t", size: int = 0) -> Pending:
    return Pending(number, Message(Topic(topic), f"{number}", "test", key, {}, b"x" * size))


def numbers(rows: list[Pending]) -> list[int]:
    return [one.row for one in rows]


def test_a_key_that_is_on_its_way_waits_for_the_answer_and_no_other_does() -> None:
    """Until the broker has answered, later rows of the key stay; rows without a key and of other keys go."""
    traffic = Traffic(rows_max=10, flights_max=10)
    first = traffic.depart([row(1, "a")])
    behind = [row(2, "a"), row(3, "b"), row(4, None), row(5, "a", topic="other")]

    assert [3, 4, 5] == numbers(traffic.look(0).choose(behind))
    traffic.answered(first)
    assert [2, 3, 4, 5] == numbers(traffic.look(0).choose(behind))


def test_a_flight_that_ends_frees_no_key_of_the_next() -> None:
    """Between the broker's answer and its end a flight has no keys: they may be on their way with another one."""
    traffic = Traffic(rows_max=10, flights_max=10)
    first = traffic.depart([row(1, "a")])
    traffic.answered(first)
    second = traffic.depart([row(2, "a")])
    traffic.landed(first)
    assert [] == traffic.look(0).choose([row(3, "a")])
    traffic.landed(second)
    assert [3] == numbers(traffic.look(0).choose([row(3, "a")]))


def test_what_was_passed_over_is_passed_over_to_the_end_of_the_pass() -> None:
    """A key that lands in the middle of a pass is closed to its end: its first row was left behind."""
    traffic = Traffic(rows_max=10, flights_max=10)
    flight = traffic.depart([row(1, "a")])
    look = traffic.look(0)
    assert [] == look.choose([row(2, "a")])
    traffic.landed(flight)
    assert [] == look.choose([row(3, "a")])
    assert look.passed_over
    assert [2] == numbers(traffic.look(0).choose([row(2, "a")]))


def test_what_leaves_in_a_pass_closes_its_keys_for_the_next_page() -> None:
    """A page that has left closes its keys, even if its flight lands before the next page is read."""
    traffic = Traffic(rows_max=10, flights_max=10)
    look = traffic.look(0)
    page = [row(1, "a")]
    look.depart(page)
    traffic.landed(traffic.depart(page))
    assert [] == look.choose([row(2, "a")])


def test_a_rest_is_for_its_place_and_for_its_time() -> None:
    """A topic, a key or a row rests until its time, and nothing else does."""
    traffic = Traffic(rows_max=10, flights_max=10)
    rows = [row(1, "a"), row(2, "b"), row(3, None), row(4, "a", topic="other"), row(5, None)]
    traffic.rest(("t", "a"), 5.0)
    traffic.rest(3, 4.0)
    traffic.rest("other", 3.0)

    assert [2, 5] == numbers(traffic.look(0.0).choose(rows))
    assert 3.0 == traffic.resting(0.0)
    assert [2, 4, 5] == numbers(traffic.look(3.0).choose(rows))
    assert [2, 3, 4, 5] == numbers(traffic.look(4.5).choose(rows))
    assert [1, 2, 3, 4, 5] == numbers(traffic.look(5.0).choose(rows))
    assert traffic.resting(5.0) is None


def test_rows_and_flights_are_bounded() -> None:
    """There is room for so many rows and so many flights, and again when they have landed."""
    traffic = Traffic(rows_max=3, flights_max=2)
    assert 3 == traffic.room
    first = traffic.depart([row(1, "a"), row(2, None)])
    assert 1 == traffic.room
    traffic.landed(first)
    second = traffic.depart([row(3, "b")])
    traffic.depart([row(4, None)])
    assert 0 == traffic.room, "two flights"
    traffic.landed(second)
    assert 2 == traffic.room
    assert {4} == traffic.rows


def test_a_claim_is_bounded_in_rows_and_in_bytes() -> None:
    """A claim has so many rows, or ends behind the one that makes it too large; only a short one is the last."""
    half = CLAIM_BYTES_MAX // 2
    rows = [row(number, None, size=half) for number in range(5)]
    assert [0, 1] == numbers(up_to(rows, 9))
    assert [0] == numbers(up_to(rows, 1))
    assert not last_page(rows[:2], 9)
    assert last_page(rows[:1], 9)
    assert not last_page(rows[:1], 1)
    assert last_page([], 1)


@settings(max_examples=60, deadline=None)
@given(seed=st.integers(0, 2**32))
def test_first_publishes_of_a_key_are_in_order(seed: int) -> None:
    """Whatever lands, fails and rests while pages are read, no row is first published before an earlier one of its key,
    and no key is in two flights."""
    chance = random.Random(seed)
    traffic, now = Traffic(rows_max=12, flights_max=4), 0.0
    waiting = {number: row(number, chance.choice(["a", "b", "c", None])) for number in range(1, 60)}
    in_the_air: list[Flight] = []
    answered: list[Flight] = []
    published: list[Pending] = []

    def land(flight: Flight) -> None:
        in_the_air.remove(flight)
        if chance.random() < 0.3:  # all of it is stored, and marking that takes a while
            published.extend(flight.rows)
            traffic.answered(flight)
            answered.append(flight)
            return
        failed: set[object] = set()
        for one in flight.rows:
            if one.message.key in failed or chance.random() < 0.3:
                failed.add(one.message.key or one.row)
                traffic.rest(("t", one.message.key) if one.message.key else one.row, now + chance.random())
            else:
                published.append(one)
                del waiting[one.row]
        traffic.landed(flight)

    while waiting:
        now += 0.1
        look, after = traffic.look(now), 0
        for _ in range(3):
            if traffic.room < 3:
                break
            page = [waiting[number] for number in sorted(waiting) if number > after and number not in traffic.rows][:3]
            for flight in chance.sample(in_the_air, len(in_the_air)):
                if chance.random() < 0.4:  # between the reading and the choosing
                    land(flight)
            chosen = look.choose(page)
            if chosen:
                keys = {one.message.key for flight in in_the_air for one in flight.rows} - {None}
                assert keys.isdisjoint(one.message.key for one in chosen)
                look.depart(chosen)
                in_the_air.append(traffic.depart(chosen))
            after = page[-1].row if page else after
        if not chance.randrange(3):
            for flight in [*in_the_air]:
                land(flight)
        if not chance.randrange(3):
            for flight in answered:
                for one in flight.rows:
                    del waiting[one.row]
                traffic.landed(flight)
            answered.clear()
    for key in "abc":
        order = [one.row for one in published if one.message.key == key]
        assert sorted(order) == order


def test_a_relay_that_says_another_broker_is_a_stranger_and_no_other() -> None:
    """Members of the same broker are none, nor is one that says no broker; who says none itself knows no strangers."""
    here, there = relay_name("billing-1", "sqlite:1"), relay_name("stock-2", "sqlite:2")
    silent = relay_name("old-3", "")

    assert "old-3" == silent
    assert [there] == strangers([here, relay_name("billing-9", "sqlite:1"), there, silent], here)
    assert [] == strangers([here, there], silent)
