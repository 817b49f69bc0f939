"""Section H: connections and processes. What is committed is seen by all, and outlives whoever committed it."""

# ruff: noqa: SIM300  (the expected value stands on the left)

from __future__ import annotations

import asyncio
from datetime import timedelta

from tidewire.errors import AlreadyMarked, LaneFenced
from tidewire.model import Failure, Guard, Held
from tidewire.testing.stores.bench import Bench, ids, mark_of, message, raises

HELD = Held("g", "t", "k", "s", "1", "inbox", 7)


async def test_commits_are_seen_by_other_connections(bench: Bench) -> None:
    """IX-19: marks, events, attempts, held keys and runs are seen at once, and counted once."""
    second = await bench.connect()
    await bench.commit(message("1"), mark=mark_of("1"), row="1")
    assert ["1"] == (await bench.state(["1"], store=second)).whole()
    with raises(AlreadyMarked):
        await bench.commit(mark=mark_of("1"), store=second)
    assert 1 == await bench.store.attempts.begin("g", "s", "1")
    assert 2 == await second.attempts.begin("g", "s", "1")
    (stored,) = await bench.store.held.put([HELD])
    assert stored == await second.held.head("g", "t", "k")
    assert 1 == await bench.store.inbox.next_run("g")
    assert 2 == await second.inbox.next_run("g")
    assert 2 == await bench.store.inbox.run_of("g")


async def test_commits_of_others_wake_who_waits(bench: Bench) -> None:
    """OX-16, PB-33: a relay hears of another connection's commit within a few seconds, at the latest by looking."""
    second = await bench.connect()
    async with bench.soon():
        await bench.commit(message("1"))
        while not await second.outbox.wait(timedelta(seconds=5)):
            continue
        assert ["1"] == ids(await bench.pending(store=second))
        assert await second.backlog.done("relay", [row.row for row in await bench.pending(store=second)])
        async with asyncio.TaskGroup() as tasks:
            waiting = tasks.create_task(second.outbox.wait(timedelta(seconds=30)))
            await asyncio.sleep(0.05)
            await bench.commit(message("2"))
            assert await waiting
    assert ["2"] == ids(await bench.pending(store=second))


async def test_everything_is_there_after_reopening(bench: Bench) -> None:
    """R15, PB-29: rows, marks, events (delayed and quarantined ones too), records, epochs and runs outlive closing."""
    bench.need(durable=bench.site.durable)
    delay = timedelta(seconds=1) if bench.site.own_time else timedelta(hours=1)
    later = bench.clock.now_us() + delay // timedelta(microseconds=1)
    await bench.commit(message("1"), message("bad", "b"), message("later", "l", due=later), mark=mark_of("1"), row="1")
    bad = (await bench.pending())[1].row
    assert await bench.store.backlog.refused("relay", bad, detail="too large", attempts_max=1)
    await bench.store.attempts.fail("g", "s", "1", Failure(failures=2, last_error="x", counts={"X": 2}))
    (held,) = await bench.store.held.put([HELD])
    await bench.store.lanes.adopt("g", "t/0", 5)
    await bench.store.inbox.next_run("g")
    await bench.store.timetable.claim("nightly", "rule", first=77, now=0, owner="a", lease=timedelta(seconds=1))
    await bench.reopen()
    store = bench.store
    assert ["1"] == (await bench.state(["1"])).whole()
    assert (2, 1) == tuple(await store.outbox.count())
    assert ["bad"] == [stuck.message.id for stuck in await store.outbox.stuck()]
    assert Failure(failures=2, last_error="x", counts={"X": 2}) == await store.attempts.get("g", "s", "1")
    assert held == await store.held.head("g", "t", "k")
    assert 1 == await store.inbox.run_of("g")
    assert (77, False) == await store.timetable.claim(
        "nightly", "rule", first=1, now=0, owner="b", lease=timedelta(seconds=1)
    )
    with raises(LaneFenced):
        await store.lanes.adopt("g", "t/0", 4)
    await bench.commit(row="2", guard=Guard("g", "t/0", 5))
    await bench.pass_time(delay)
    assert ["1", "later"] == ids(await bench.pending())


async def test_a_unit_that_is_open_at_the_end_leaves_nothing(bench: Bench) -> None:
    """IX-14: closing after a unit that was rolled back, and never sealed, keeps none of it."""
    bench.need(durable=bench.site.durable)
    unit = bench.store.unit()
    await bench.fill(unit, message("1"), mark=mark_of("1"), row="1")
    await unit.rollback()
    await bench.reopen()
    assert [] == (await bench.state(["1"])).whole()


async def test_kill_9_leaves_all_of_a_unit_or_nothing(bench: Bench) -> None:
    """ST-23, IX-13: what was said to be durable is there; row, mark and event of a unit are never apart."""
    said: list[str] = []
    lives = [f"life{number}" for number in range(3)]
    for number, life in enumerate(lives):
        writer = await bench.write_elsewhere(life)
        await writer.hear(20 + 17 * number)
        await writer.kill()
        said += writer.said
    names = [f"{life}-{number}" for life in lives for number in range(20_000)]
    whole = (await bench.state(names)).whole()
    assert len(said) > 60, "the writers have written"
    assert set(said) <= set(whole)
    await bench.commit(message("after"), mark=mark_of("after"), row="after")  # nobody is in the way


async def test_processes_write_side_by_side(bench: Bench) -> None:
    """ST-7, PB-34: who has to wait for another writer waits; nobody's unit is lost, nobody fails."""
    writers = [await bench.write_elsewhere(f"p{number}", 60) for number in range(2)]
    own = [f"own-{number}" for number in range(60)]
    for name in own:
        await bench.commit(message(name), mark=mark_of(name), row=name)
        await asyncio.sleep(0)
    for writer in writers:
        await writer.end()
    names = [f"p{number}-{count}" for number in range(2) for count in range(60)]
    assert sorted(names) == sorted(name for writer in writers for name in writer.said)
    assert [*names, *own] == (await bench.state([*names, *own])).whole()
