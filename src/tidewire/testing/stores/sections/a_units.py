"""Section A: units. What one writes is there whole or not at all, whoever is cancelled, late or in the way."""

# ruff: noqa: SIM300  (the expected value stands on the left)

from __future__ import annotations

import asyncio
from collections.abc import Awaitable

from tidewire.errors import TransactionClosed
from tidewire.model import Guard
from tidewire.testing.stores.bench import Bench, mark_of, message, outcome, raises, steps


async def test_unit_commits_whole_or_not_at_all(bench: Bench) -> None:
    """IX-13, OX-8: row, mark and event are there once it is sealed, and none of them after a rollback."""
    lost = bench.store.unit()
    await bench.fill(lost, message("1"), mark=mark_of("1"), row="1")
    await lost.rollback()
    assert [] == (await bench.state(["1"])).whole()
    await bench.commit(message("1"), mark=mark_of("1"), row="1")
    assert ["1"] == (await bench.state(["1"])).whole()


async def test_nothing_of_an_open_unit_is_seen(bench: Bench) -> None:
    """IX-13, OX-10: neither its mark nor its event exists for anybody else before it is sealed."""
    unit = bench.store.unit()
    await bench.fill(unit, message("1"), mark=mark_of("1"))
    assert [None] == list(await bench.store.inbox.known([mark_of("1")]))
    assert (0, 0) == tuple(await bench.store.outbox.count())
    await (await unit.seal())
    assert (1, 0) == tuple(await bench.store.outbox.count())


async def test_unit_that_never_began_is_durable_at_once(bench: Bench) -> None:
    """A handler that writes nothing costs no transaction; with a guard that holds or without one."""
    await (await bench.store.unit().seal())
    await bench.store.unit().rollback()
    await bench.store.lanes.adopt("billing", "t/0", 1)
    await (await bench.store.unit(Guard("billing", "t/0", 1)).seal())
    assert [] == (await bench.state(["1"])).whole()


async def test_begin_twice_is_once(bench: Bench) -> None:
    """A unit that has begun stays the same unit; several first statements at once share it."""
    unit = bench.store.unit()
    await asyncio.gather(unit.begin(), unit.begin())
    await unit.begin()
    await bench.fill(unit, message("1"), mark=mark_of("1"), row="1")
    await (await unit.seal())
    assert ["1"] == (await bench.state(["1"])).whole()


async def test_ended_unit_is_closed(bench: Bench) -> None:
    """ST-19: what comes after the seal or the rollback raises `TransactionClosed` and writes nothing."""
    sealed, rolled_back = bench.store.unit(), bench.store.unit()
    await sealed.begin()
    await (await sealed.seal())
    await rolled_back.begin()
    await rolled_back.rollback()
    for unit in (sealed, rolled_back):
        with raises(TransactionClosed):
            await bench.store.outbox.put(unit, [message("1")])
        with raises(TransactionClosed):
            await bench.store.inbox.mark(unit, mark_of("1"), b"digest")
        with raises(TransactionClosed):
            await bench.site.rows.insert(unit, "1")
        await unit.rollback()  # harmless, as often as one likes
    assert [] == (await bench.state(["1"])).whole()


async def test_thread_writes_in_its_unit_and_not_later(bench: Bench) -> None:
    """ST-19, PB-20: `sync_tx` writes in the unit; a thread that comes late raises, whoever has a unit open now."""
    rows = bench.site.rows
    unit = bench.store.unit()
    await unit.begin()
    await asyncio.to_thread(rows.insert_now, unit, "early")
    await bench.fill(unit, message("early"), mark=mark_of("early"))
    await (await unit.seal())
    other = bench.store.unit()
    await bench.fill(other, message("other"), mark=mark_of("other"), row="other")
    with raises(TransactionClosed):
        await asyncio.to_thread(rows.insert_now, unit, "late")
    await (await other.seal())
    assert ["early", "other"] == (await bench.state(["early", "late", "other"])).whole()


async def test_swallowed_database_error_leaves_no_half_unit(bench: Bench) -> None:
    """IX-9, IX-10, OX-11: a handler that catches its database's error commits everything else, or nothing."""
    await bench.commit(message("taken"), mark=mark_of("taken"), row="taken")
    unit = bench.store.unit()
    await bench.fill(unit, message("1"), mark=mark_of("1"), row="1")
    with raises(Exception):
        await bench.site.rows.insert(unit, "taken")
    sealed = await outcome(unit.seal(), Exception)
    if isinstance(sealed, Exception):
        await unit.rollback()
    else:
        await outcome(sealed, Exception)
    assert "taken" in (await bench.state(["taken", "1"])).whole()
    await bench.commit(message("2"), mark=mark_of("2"), row="2")  # and the store goes on
    assert "2" in (await bench.state(["taken", "1", "2"])).whole()


async def test_cancelled_waiters_leave_the_others_alone(bench: Bench) -> None:
    """ST-19, PB-20: units that are cancelled while they wait for one that is open hold nobody up."""
    holder = bench.store.unit()
    await bench.fill(holder, message("holder"), mark=mark_of("holder"), row="holder")
    names = [f"w{number}" for number in range(6)]
    async with bench.soon(), asyncio.TaskGroup() as tasks:
        waiting = [
            tasks.create_task(bench.commit(message(name), mark=mark_of(name), row=name), name=name) for name in names
        ]
        await steps(3)
        for number in (0, 3, 5):
            waiting[number].cancel()
        await steps(3)
        await holder.rollback()
    state = (await bench.state(["holder", *names])).whole()
    assert {"w1", "w2", "w4"} <= set(state), "who was not cancelled commits"
    assert "holder" not in state


async def test_cancelled_at_every_step_is_all_or_nothing(bench: Bench) -> None:
    """ST-19, IX-14: wherever a unit is cancelled, it is there whole or not at all, and the store goes on."""
    names = [f"c{step}" for step in range(60)]
    for step, name in enumerate(names):
        async with asyncio.TaskGroup() as tasks:
            task = tasks.create_task(bench.commit(message(name), mark=mark_of(name), row=name))
            await steps(step)
            task.cancel()
            bystander = f"b{step}"
            await bench.commit(message(bystander), mark=mark_of(bystander), row=bystander)
    bystanders = [f"b{step}" for step in range(60)]
    assert bystanders == (await bench.state(bystanders)).whole()
    whole = (await bench.state(names)).whole()
    assert names[0] not in whole, "cancelled before its first step"


async def test_a_unit_that_fails_takes_no_other_with_it(bench: Bench) -> None:
    """IX-13: units that end one after another in one step are judged one by one: a rollback undoes its own only."""
    kept: list[str] = []
    commits: list[Awaitable[None]] = []
    for number in range(20):
        name = f"u{number}"
        unit = bench.store.unit()
        await bench.fill(unit, message(name), mark=mark_of(name), row=name)
        if number % 3 == 0:
            await unit.rollback()
        else:
            commits.append(await unit.seal())
            kept.append(name)
    for durable in commits:
        await durable
    assert kept == (await bench.state([f"u{number}" for number in range(20)])).whole()


async def test_handle_leads_back_to_its_unit(bench: Bench) -> None:
    """OX-8, OX-9: `adopt_tx` gives for a unit's own handle what writes in that transaction, for others None."""
    stranger = await bench.stranger()
    unit = bench.store.unit()
    await bench.site.rows.insert(unit, "1")
    adopted = bench.store.adopt_tx(unit.tx)
    assert adopted is not None
    await bench.fill(adopted, message("1"), mark=mark_of("1"))
    assert bench.store.adopt_tx(object()) is None
    assert stranger.adopt_tx(unit.tx) is None
    await (await unit.seal())
    assert ["1"] == (await bench.state(["1"])).whole()


async def test_saturated_is_a_cheap_hint(bench: Bench) -> None:
    """`saturated` answers yes or no at any time, and no where nobody has a unit."""
    assert not bench.store.saturated()
    unit = bench.store.unit()
    await unit.begin()
    assert bench.store.saturated() in (True, False)
    await unit.rollback()
