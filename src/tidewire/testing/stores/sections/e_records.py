"""Section E: what is remembered of failures, and which keys wait behind one that failed."""

# ruff: noqa: SIM300  (the expected value stands on the left)

from __future__ import annotations

import asyncio

import msgspec

from tidewire.model import Failure, Held
from tidewire.testing.stores.bench import Bench

FAILURE = Failure(
    failures=3,
    starts=9,
    first_error="ValueError: \u00e9 'quoted' \U0001f600",
    last_error="TimeoutError: \n second line",
    first_at=1_770_000_000_000_000,
    last_at=1_770_000_000_000_001,
    counts={"ValueError": 2, "TimeoutError": 1},
)


async def test_starts_and_failures_are_remembered(bench: Bench) -> None:
    """PB-43, ST-26: starts count up, a failure ends its start and comes back equal, forgetting forgets."""
    attempts = bench.store.attempts
    assert await attempts.get("g", "s", "1") is None
    assert [1, 2] == [await attempts.begin("g", "s", "1") for _ in range(2)]
    begun = await attempts.get("g", "s", "1")
    assert begun is not None
    assert (0, 2) == (begun.failures, begun.starts)
    await attempts.fail("g", "s", "1", FAILURE)
    assert msgspec.structs.replace(FAILURE, starts=0) == await attempts.get("g", "s", "1")
    assert 1 == await attempts.begin("g", "s", "1")
    assert msgspec.structs.replace(FAILURE, starts=1) == await attempts.get("g", "s", "1")
    await attempts.forget("g", "s", "1")
    await attempts.forget("g", "s", "1")
    assert await attempts.get("g", "s", "1") is None
    assert 1 == await attempts.begin("g", "s", "1")


async def test_each_event_of_each_group_has_its_own_record(bench: Bench) -> None:
    """PB-43: group, source and id all count, and are not read as one string."""
    attempts = bench.store.attempts
    names = [("g", "s", "1"), ("g2", "s", "1"), ("g", "s2", "1"), ("g", "s", "2"), ("gs", "", "1"), ("g", "s1", "")]
    for count, name in enumerate(names, 1):
        for _ in range(count):
            await attempts.begin(*name)
    for count, name in enumerate(names, 1):
        found = await attempts.get(*name)
        assert found is not None
        assert count == found.starts, f"{name}"


async def test_no_start_is_lost_in_a_race(bench: Bench) -> None:
    """ST-26, PB-44: starts that are recorded at the same time are all counted, each under its own number."""
    async with asyncio.TaskGroup() as tasks:
        counts = [tasks.create_task(bench.store.attempts.begin("g", "s", "1")) for _ in range(20)]
    assert list(range(1, 21)) == sorted(count.result() for count in counts)


async def test_a_start_outlives_the_rollback_of_its_unit(bench: Bench) -> None:
    """ST-26, IX-15: starts and failures are in transactions of their own: the handler's rollback erases neither."""
    await bench.store.attempts.begin("g", "s", "1")
    unit = bench.store.unit()
    await bench.fill(unit, row="1")
    await unit.rollback()
    await bench.store.attempts.fail("g", "s", "2", FAILURE)
    found = await bench.store.attempts.get("g", "s", "1")
    assert found is not None
    assert 1 == found.starts


def held(event_id: str, key: str = "k", *, topic: str = "t", dead: bool = False) -> Held:
    """Return the row of a held event."""
    return Held("g", topic, key, "s", event_id, "dead" if dead else "inbox", None if dead else 7)


async def test_held_rows_keep_their_place(bench: Bench) -> None:
    """RL-4, RL-5: an update changes where an event waits, not its turn; the key is free when no row is left."""
    keys = bench.store.held
    assert await keys.head("g", "t", "k") is None
    (first,) = await keys.put([held("1")])
    (second,) = await keys.put([held("2")])
    assert first.sequence < second.sequence
    (again,) = await keys.put([held("1", dead=True)])
    assert (first.sequence, "dead", None) == (again.sequence, again.state, again.due)
    assert again == await keys.head("g", "t", "k")
    await keys.free([first])
    assert second == await keys.head("g", "t", "k")
    await keys.free([second, second, first])
    assert await keys.head("g", "t", "k") is None
    assert [] == list(await keys.keys("g", ["t"]))


async def test_rows_of_one_call_are_held_in_its_order(bench: Bench) -> None:
    """RL-4: a batch is one transaction; its rows come back in order, numbered in order."""
    names = ["3", "1", "2"]
    stored = await bench.store.held.put([held(name) for name in names])
    assert names == [row.event_id for row in stored]
    assert [row.sequence for row in stored] == sorted({row.sequence for row in stored})
    for row in stored:
        assert row == await bench.store.held.head("g", "t", "k")
        await bench.store.held.free([row])
    assert [] == list(await bench.store.held.put([]))


async def test_held_keys_are_told_apart(bench: Bench) -> None:
    """RL-4, RL-5, PB-49: a held key holds no other key, topic or group; each is listed once."""
    keys = bench.store.held
    await keys.put([held("1"), held("2"), held("3", "k2"), held("4", "k", topic="u")])
    await keys.put([msgspec.structs.replace(held("5"), group="other")])
    assert [("t", "k"), ("t", "k2")] == sorted(await keys.keys("g", ["t"]))
    assert [("t", "k"), ("t", "k2"), ("u", "k")] == sorted(await keys.keys("g", ["t", "u", "v"]))
    assert [("t", "k")] == list(await keys.keys("other", ["t"]))
    assert [] == list(await keys.keys("g", [])) == list(await keys.keys("nobody", ["t"]))
    assert await keys.head("g", "t", "k3") is None
    assert await keys.head("g", "v", "k") is None
    other = await keys.head("other", "t", "k")
    assert other is not None
    assert "5" == other.event_id


async def test_same_id_from_two_sources_is_held_twice(bench: Bench) -> None:
    """R6, RL-5: an event is its source and its id, here too."""
    keys = bench.store.held
    first, second = await keys.put([held("1"), msgspec.structs.replace(held("1"), source="s2")])
    assert first.sequence != second.sequence
    await keys.free([first])
    assert second == await keys.head("g", "t", "k")
