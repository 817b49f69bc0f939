"""What a Kafka lane hands out: pure, over records as they are read."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from tidewire.model import Delivery, InboxChannel, Message, Topic
from tidewire.transports.kafka.lanes import Feed, Lane
from tidewire.transports.kafka.progress import Progress, Saved

NOW = 1_000
OFFSETS = st.sets(st.integers(0, 40))


def record(offset: int, *, due: int | None = None, stored_at: int = NOW) -> Delivery:
    """Return a record as the thread that reads passes it on."""
    message = Message(Topic("a"), str(offset), "test", "k", {}, b"x", due)
    return Delivery(message, "a/0", 1, offset, stored_at=stored_at)


def feed(*, settled: set[int] | frozenset[int] = frozenset(), ceiling: int = 100) -> Feed:
    """Return an empty feed whose owner before us has settled some."""
    books = Progress(0, Saved())
    books.settle(settled)
    books.ceiling = ceiling
    return Feed("a", 0, address=Topic("a"), progress=books)


def positions(deliveries: list[Delivery]) -> list[int | str]:
    """Return the offsets of *deliveries*."""
    return [one.position for one in deliveries]


@given(OFFSETS, OFFSETS, st.integers(0, 45), st.lists(st.tuples(st.integers(1, 9), st.integers(0, 9)), max_size=8))
def test_a_feed_hands_out_what_is_there_once_and_in_order(
    there: set[int], settled: set[int], ceiling: int, steps: list[tuple[int, int]]
) -> None:
    """Whatever is missing, was settled, is read twice or lies above the ceiling, and however much is asked for."""
    one, read, rest = feed(settled=settled, ceiling=ceiling), list[int](), sorted(there)
    taken: list[Delivery] = []
    for count, most in steps:
        batch, rest = rest[:count], rest[count:]
        one.arrived([record(offset) for offset in [*read[-2:], *batch]])
        read += batch
        handed = one.take(most, NOW)
        assert len(handed) <= most
        taken += handed
    one.arrived([record(offset) for offset in rest])
    taken += one.take(1_000, NOW)
    expected = [offset for offset in sorted(there) if offset not in settled and offset < ceiling]
    assert expected == positions(taken)

    assert len(expected) == one.settle(expected)
    assert 0 == one.settle(expected)
    left = [offset for offset in sorted(there) if offset not in settled and offset >= ceiling]
    if left:
        assert left[0] == one.progress.low
    else:
        assert one.next_offset <= one.progress.low


def test_what_waits_for_a_time_comes_behind_what_was_stored_before_it() -> None:
    """Until it is due the others pass it; once it is, it comes before what was stored later."""
    one = feed()
    one.arrived([record(0, due=NOW + 100), record(1), record(2, due=NOW)])
    assert [1, 2] == positions(one.take(9, NOW))
    one.arrived([record(3, stored_at=NOW + 50), record(4, stored_at=NOW + 150)])
    assert [3, 0, 4] == positions(one.take(9, NOW + 120))


def test_what_was_given_back_comes_first_and_says_how_often() -> None:
    """A counted release is one attempt more; one that is not counted is none."""
    one = feed()
    one.arrived([record(offset) for offset in range(4)])
    assert [0, 1] == positions(one.take(2, NOW))
    assert one.give_back(1, counted=True, due=0)
    assert one.give_back(0, counted=False, due=0)
    again = one.take(9, NOW)
    assert [(0, 1), (1, 2), (2, 1), (3, 1)] == [(delivery.position, delivery.attempt) for delivery in again]


def test_topic_and_inbox_channel_share_what_is_asked_for() -> None:
    """Half of each where both have so much, in turn for the odd one; all of the one where the other has nothing."""
    first, second = feed(), feed()
    second.address = InboxChannel("a", "g")
    lane = Lane("a/0", 1, (first, second))
    first.arrived([record(offset) for offset in range(20)])
    second.arrived([record(offset) for offset in range(5)])
    lane.take(3, NOW)
    assert (2, 1) == (len(first.out), len(second.out))
    lane.take(3, NOW)
    assert (3, 3) == (len(first.out), len(second.out))
    lane.take(12, NOW)
    assert (13, 5) == (len(first.out), len(second.out))
