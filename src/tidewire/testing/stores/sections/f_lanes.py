"""Section F: fencing reaches the store. A zombie that wakes up cannot commit, and takes nobody with it."""

# ruff: noqa: SIM300  (the expected value stands on the left)

from __future__ import annotations

import asyncio
from collections.abc import Awaitable

from tidewire.errors import LaneFenced
from tidewire.model import Guard
from tidewire.protocols import Store
from tidewire.testing.stores.bench import Bench, mark_of, message, outcome, raises, steps


async def test_fenced_unit_leaves_nothing(bench: Bench) -> None:
    """ST-24, IX-12: after a takeover the old owner's unit is `LaneFenced`: no row, no mark, no event of it."""
    await _fence(bench, bench.store)


async def test_fence_reaches_other_connections(bench: Bench) -> None:
    """ST-24, IX-12: the same where the new owner has a connection of its own."""
    await _fence(bench, await bench.connect())


async def _fence(bench: Bench, other: Store) -> None:
    lanes, old = other.lanes, Guard("g", "t/0", 5)
    assert 5 == await bench.store.lanes.adopt("g", "t/0", 5)
    await bench.commit(message("1"), mark=mark_of("1"), row="1", guard=old)
    assert 6 == await lanes.adopt("g", "t/0", 6)
    with raises(LaneFenced):
        await bench.commit(message("2"), mark=mark_of("2"), row="2", guard=old)
    await bench.commit(message("3"), mark=mark_of("3"), row="3", guard=Guard("g", "t/0", 6))
    assert ["1", "3"] == (await bench.state(["1", "2", "3"])).whole()


async def test_epochs_never_go_back(bench: Bench) -> None:
    """R3: a lower epoch is `LaneFenced` and changes nothing; the same one again is fine."""
    lanes = bench.store.lanes
    assert 5 == await lanes.adopt("g", "t/0", 5)
    assert 5 == await lanes.adopt("g", "t/0", 5)
    for lower in (4, 0):
        with raises(LaneFenced):
            await lanes.adopt("g", "t/0", lower)
    await bench.commit(row="1", guard=Guard("g", "t/0", 5))
    assert 2**40 == await lanes.adopt("g", "t/0", 2**40)
    with raises(LaneFenced):
        await bench.commit(row="2", guard=Guard("g", "t/0", 5))


async def test_lanes_are_told_apart(bench: Bench) -> None:
    """R3: taking over one lane fences no other lane and no other group."""
    lanes = bench.store.lanes
    for group, lane in (("g", "t/0"), ("g", "t/1"), ("h", "t/0")):
        await lanes.adopt(group, lane, 1)
    await lanes.adopt("g", "t/0", 2)
    await bench.commit(row="1", guard=Guard("g", "t/1", 1))
    await bench.commit(row="2", guard=Guard("h", "t/0", 1))
    with raises(LaneFenced):
        await bench.commit(row="3", guard=Guard("g", "t/0", 1))


async def test_a_lane_that_nobody_adopted_is_nobodys(bench: Bench) -> None:
    """R3: a guard for a lane or an epoch that was never recorded does not hold, a later epoch included."""
    with raises(LaneFenced):
        await bench.commit(row="1", guard=Guard("g", "t/0", 1))
    await bench.store.lanes.adopt("g", "t/0", 1)
    with raises(LaneFenced):
        await bench.commit(row="1", guard=Guard("g", "t/0", 2))
    assert [] == list(await bench.site.rows.names(bench.store))


async def test_guard_is_checked_inside_the_transaction(bench: Bench) -> None:
    """IX-12, PB-13: a takeover that is done before the seal fences the unit, however much it has written."""
    await bench.store.lanes.adopt("g", "t/0", 1)
    for number in range(10):
        name, old = f"u{number}", Guard("g", "t/0", number + 1)
        unit = bench.store.unit(old)
        await bench.fill(unit, message(name), mark=mark_of(name), row=name)
        async with bench.soon(), asyncio.TaskGroup() as tasks:
            takeover = tasks.create_task(bench.store.lanes.adopt("g", "t/0", number + 2))
            await steps(number)
            taken = takeover.done()
            sealed = await outcome(unit.seal(), LaneFenced)
            fenced = isinstance(
                sealed if isinstance(sealed, Exception) else await outcome(sealed, LaneFenced), LaneFenced
            )
        assert fenced or not taken, "the lane was somebody else's when the unit committed"
        whole = (await bench.state([name])).whole()
        assert ([] if fenced else [name]) == whole


async def test_fenced_unit_takes_no_other_with_it(bench: Bench) -> None:
    """R3: units that end in one step share what they like, but not the fence."""
    await bench.store.lanes.adopt("g", "t/0", 1)
    await bench.store.lanes.adopt("g", "t/1", 1)
    await bench.store.lanes.adopt("g", "t/0", 2)
    kept: list[Awaitable[None]] = []
    for number in range(9):
        name = f"u{number}"
        unit = bench.store.unit(Guard("g", f"t/{number % 2}", 1))
        await bench.fill(unit, message(name), mark=mark_of(name), row=name)
        if number % 2:
            kept.append(await unit.seal())
        else:
            with raises(LaneFenced):
                await (await unit.seal())
    for durable in kept:
        await durable
    assert ["u1", "u3", "u5", "u7"] == (await bench.state([f"u{number}" for number in range(9)])).whole()
