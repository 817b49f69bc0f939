"""Section D: the outbox as the relay sees it. A partition has one owner, who reads in order; nothing is skipped."""

# ruff: noqa: SIM300  (the expected value stands on the left)

from __future__ import annotations

import asyncio
import random
from collections.abc import Sequence
from datetime import timedelta

import msgspec

from tidewire.model import Pending
from tidewire.protocols import Store
from tidewire.rules.relaying import CLAIM_BYTES_MAX
from tidewire.testing.stores.bench import LEASE, Bench, ids, message

ZERO = timedelta(0)
HOUR = timedelta(hours=1)


async def test_one_relay_at_a_time(bench: Bench) -> None:
    """OX-5, ST-25, PB-26: the lease has one owner; it is extended by him, and given back with zero."""
    await _one_owner(bench, bench.store)


async def test_one_relay_among_connections(bench: Bench) -> None:
    """OX-5, ST-25: the same between two connections."""
    await _one_owner(bench, await bench.connect())


async def _one_owner(bench: Bench, other: Store) -> None:
    bench.need(one_partition=not bench.site.partitioned)
    first, second = bench.store.backlog, other.backlog
    await bench.commit(message("1"))
    assert await first.lease("a", HOUR)
    assert not await second.lease("b", HOUR)
    assert await first.lease("a", HOUR), "an owner extends"
    assert [] == list(await second.claim("b", after=0, limit=9))
    await second.lease("b", ZERO)  # somebody else's is not given back
    assert not await second.lease("b", HOUR)
    await first.lease("a", ZERO)
    assert [] == list(await first.claim("a", after=0, limit=9)), "who gave it back reads nothing"
    assert await second.lease("b", HOUR)
    assert ["1"] == ids(await second.claim("b", after=0, limit=9))


async def test_relays_share_the_outbox(bench: Bench) -> None:
    """OX-5, ST-25: two relays have different partitions, together all of them, and every key is at one of them."""
    await _two_share(bench, bench.store)


async def test_relays_on_two_connections_share_the_outbox(bench: Bench) -> None:
    """OX-5, ST-25: the same between two connections."""
    await _two_share(bench, await bench.connect())


async def _two_share(bench: Bench, other: Store) -> None:
    bench.need(partitioned=bench.site.partitioned)
    first, second = bench.store.backlog, other.backlog
    names = [f"{number}" for number in range(120)]
    await bench.commit(*[message(name, f"k{number % 40}") for number, name in enumerate(names)])
    assert await first.lease("a", HOUR)
    assert names == ids(await first.claim("a", after=0, limit=500)), "who is alone has everything"
    async with bench.soon():
        while not await second.lease("b", HOUR):
            await first.lease("a", HOUR)
            await first.claim("a", after=0, limit=1)  # what it has in hand it gives up once it is done with it
    mine, others = await first.claim("a", after=0, limit=500), await second.claim("b", after=0, limit=500)
    assert min(len(mine), len(others)) >= 10, "each has its share"
    assert sorted(names) == sorted([*ids(mine), *ids(others)])
    assert {row.message.key for row in mine}.isdisjoint(row.message.key for row in others)
    assert not await second.done("b", [mine[0].row])
    assert not await second.refused("b", mine[0].row, detail="no", attempts_max=1)
    await first.lease("a", ZERO)
    assert await second.lease("b", HOUR)
    assert names == ids(await second.claim("b", after=0, limit=500)), "who stays has everything again"


async def test_an_expired_lease_is_taken_over(bench: Bench) -> None:
    """ST-25, OX-23: after its lease, and not before, another takes over."""
    backlog = bench.store.backlog
    assert await backlog.lease("a", LEASE)
    assert not await backlog.lease("b", HOUR)
    await bench.pass_time(LEASE + timedelta(milliseconds=50))
    assert await backlog.lease("b", HOUR)
    assert not await backlog.lease("a", HOUR)


async def test_extending_keeps_the_lease(bench: Bench) -> None:
    """ST-25: an owner who extends in time is never taken over."""
    bench.need(one_partition=not bench.site.partitioned)
    backlog = bench.store.backlog
    for _ in range(5):
        assert await backlog.lease("a", LEASE)
        await bench.pass_time(LEASE * 0.6)
        assert not await backlog.lease("b", LEASE)


async def test_a_relay_that_lost_its_lease_changes_nothing(bench: Bench) -> None:
    """ST-24, OX-23, PB-11, PB-12: it reads nothing, marks nothing done, and counts no refusal."""
    backlog = bench.store.backlog
    await bench.commit(message("1"))
    assert await backlog.lease("a", LEASE)
    (row,) = await backlog.claim("a", after=0, limit=9)
    await bench.pass_time(LEASE + timedelta(milliseconds=50))
    await _powerless(bench.store, row)  # nobody has it
    assert await backlog.lease("b", HOUR)
    await _powerless(bench.store, row)  # another has it
    assert [row] == list(await backlog.claim("b", after=0, limit=9)), "not a refusal was counted"
    assert (1, 0) == tuple(await bench.store.outbox.count())


async def _powerless(store: Store, row: Pending) -> None:
    assert [] == list(await store.backlog.claim("a", after=0, limit=9))
    assert not await store.backlog.done("a", [row.row])
    assert not await store.backlog.refused("a", row.row, detail="no", attempts_max=1)


async def test_leases_are_not_judged_by_the_wall_clock(bench: Bench) -> None:
    """ST-18, PB-7: an hour forwards ends no lease, an hour backwards makes none last."""
    backlog = bench.store.backlog
    assert await backlog.lease("a", LEASE)
    bench.shift_wall_clock(HOUR)
    assert not await backlog.lease("b", LEASE)
    bench.shift_wall_clock(-2 * HOUR)
    await bench.pass_time(LEASE + timedelta(milliseconds=50))
    assert await backlog.lease("b", LEASE)


async def test_order_is_not_that_of_the_wall_clock(bench: Bench) -> None:
    """OX-20, PB-32: a clock that goes back reorders nothing."""
    names = [f"{number}" for number in range(6)]
    for name in names:
        await bench.commit(message(name))
        bench.shift_wall_clock(-HOUR)
    assert names == ids(await bench.pending())


async def test_done_deletes_exactly_what_was_sent(bench: Bench) -> None:
    """OX-14, PB-24: rows between, behind, and those written meanwhile stay."""
    backlog = bench.store.backlog
    await bench.commit(message("1"), message("2"), message("3"))
    rows = await bench.pending()
    await bench.commit(message("4"))
    assert await backlog.done("relay", [rows[0].row, rows[2].row])
    assert ["2", "4"] == ids(await bench.pending())
    assert await backlog.done("relay", [rows[0].row]), "done twice is harmless"
    assert await backlog.done("relay", [])
    assert ["2", "4"] == ids(await bench.pending())


async def test_a_row_comes_again_until_it_is_done(bench: Bench) -> None:
    """OX-6, OX-7, PB-3: claiming marks nothing; after a takeover the same rows come with the same ids."""
    backlog = bench.store.backlog
    await bench.commit(message("1"), message("2"))
    assert await backlog.lease("a", LEASE)
    first = list(await backlog.claim("a", after=0, limit=9))
    assert first == list(await backlog.claim("a", after=0, limit=9))
    await bench.pass_time(LEASE + timedelta(milliseconds=50))
    assert await backlog.lease("b", HOUR)
    assert first == list(await backlog.claim("b", after=0, limit=9))


async def test_claims_page_through_the_rows(bench: Bench) -> None:
    """OX-17: at most *limit* rows, those behind *after*, none twice and none left out."""
    backlog = bench.store.backlog
    names = [f"{number}" for number in range(25)]
    await bench.commit(*[message(name, f"k{number % 3}") for number, name in enumerate(names)])
    assert await backlog.lease("relay", HOUR)
    found: list[Pending] = []
    for expected in (10, 10, 5, 0):
        batch = await backlog.claim("relay", after=found[-1].row if found else 0, limit=10)
        assert expected == len(batch)
        found += batch
    assert names == ids(found)


async def test_rows_on_their_way_are_left_out(bench: Bench) -> None:
    """OX-17: what the relay already has in hand is not read again, the rest is, in order and up to the limit."""
    backlog = bench.store.backlog
    names = [f"{number}" for number in range(9)]
    await bench.commit(*[message(name, f"k{number % 3}") for number, name in enumerate(names)])
    assert await backlog.lease("relay", HOUR)
    rows = list(await backlog.claim("relay", after=0, limit=9))
    flying = frozenset(rows[number].row for number in (0, 3, 4, 8))
    assert ["1", "2", "5"] == ids(await backlog.claim("relay", after=0, limit=3, without=flying))
    assert ["5", "6", "7"] == ids(await backlog.claim("relay", after=rows[2].row, limit=9, without=flying))


async def test_a_claim_ends_when_it_is_large_enough(bench: Bench) -> None:
    """OX-17: a claim of large events ends early, has one at least, and the next goes on behind it."""
    backlog = bench.store.backlog
    large = CLAIM_BYTES_MAX // 2 + 1
    for number in range(5):
        await bench.commit(msgspec.structs.replace(message(f"{number}"), body=bytes(large)))
    assert await backlog.lease("relay", HOUR)
    found: list[Pending] = []
    for expected in (2, 2, 1):
        batch = await backlog.claim("relay", after=found[-1].row if found else 0, limit=9)
        assert expected == len(batch)
        found += batch
    assert [f"{number}" for number in range(5)] == ids(found)


async def test_nothing_is_missed_behind_the_cursor(bench: Bench) -> None:
    """OX-1, PB-21: with writers that commit and roll back at the same time, a reader who only goes forward sees all.

    Where the outbox has partitions, one who begins at the beginning each time, and leaves out what it has seen.
    """
    await _writers_and_a_cursor(bench, [bench.store] * 4)


async def test_nothing_is_missed_behind_the_cursor_of_another_connection(bench: Bench) -> None:
    """OX-1, PB-21: the same, the reader and half of the writers being on another connection."""
    second = await bench.connect()
    await _writers_and_a_cursor(bench, [bench.store, second] * 2, reader=second)


async def _writers_and_a_cursor(bench: Bench, stores: Sequence[Store], *, reader: Store | None = None) -> None:
    home = reader or bench.store
    chance = random.Random(1)  # noqa: S311
    committed: dict[str, list[str]] = {}
    seen: list[Pending] = []
    writing = len(stores)

    async def write(number: int, store: Store) -> None:
        nonlocal writing
        for step in range(25):
            unit, name = store.unit(), f"{number}-{step}"
            await store.outbox.put(unit, [message(name, f"k{number}")])
            await asyncio.sleep(chance.choice([0, 0, 0.0005]))
            if chance.random() < 0.3:
                await unit.rollback()
                continue
            await (await unit.seal())
            committed.setdefault(f"k{number}", []).append(name)
        writing -= 1

    async def read() -> None:
        assert await home.backlog.lease("relay", HOUR)
        while True:
            last = writing == 0
            if bench.site.partitioned:  # a lower row may become visible later: its reader begins at the beginning
                batch = await home.backlog.claim("relay", after=0, limit=7, without={row.row for row in seen})
            else:
                batch = await home.backlog.claim("relay", after=seen[-1].row if seen else 0, limit=7)
            seen.extend(batch)
            if last and not batch:
                return
            await asyncio.sleep(0)

    async with asyncio.TaskGroup() as tasks:
        tasks.create_task(read())
        for number, store in enumerate(stores):
            tasks.create_task(write(number, store))
    found: dict[str, list[str]] = {}
    for row in seen:
        found.setdefault(row.message.key or "", []).append(row.message.id)
    assert committed == found, "each committed row once, in the order of its key"


async def test_refused_row_stops_its_key_and_no_other(bench: Bench) -> None:
    """OX-21, PB-25: at the limit it is set aside with what follows of its key; before it, and beside it, all flows."""
    backlog = bench.store.backlog
    await bench.commit(message("before", "bad"), message("1", "bad"), message("2", "bad"))
    await bench.commit(message("3", "good"), message("4", None), message("5", None))
    row = (await bench.pending())[1].row
    assert not await backlog.refused("relay", row, detail="too large", attempts_max=2)
    assert [0, 1] == [one.attempts for one in await bench.pending()][:2], "refusals are counted with the row"
    assert await backlog.refused("relay", row, detail="too large", attempts_max=2)
    await bench.commit(message("6", "bad"))
    assert ["before", "3", "4", "5"] == ids(await bench.pending())


async def test_refused_row_without_a_key_stops_nothing(bench: Bench) -> None:
    """OX-21: rows without a key have no order to keep."""
    await bench.commit(message("1", None), message("2", None), message("3"))
    rows = await bench.pending()
    assert await bench.store.backlog.refused("relay", rows[0].row, detail="no", attempts_max=1)
    assert ["2", "3"] == ids(await bench.pending())


async def test_one_key_on_two_topics_is_two_keys(bench: Bench) -> None:
    """OX-21: order is per key and topic; a refusal on one topic holds up nothing on another."""
    from_elsewhere = message("2", topic="suite.other")
    await bench.commit(message("1"), from_elsewhere, message("3"))
    rows = await bench.pending()
    assert await bench.store.backlog.refused("relay", rows[0].row, detail="no", attempts_max=1)
    assert ["2"] == ids(await bench.pending())


async def test_quarantined_rows_are_shown_and_leave_again_in_order(bench: Bench) -> None:
    """OX-21: shown with the broker's word and its attempts; requeued, they leave in order, behind what is pending."""
    outbox, backlog = bench.store.outbox, bench.store.backlog
    await bench.commit(message("1"), message("2"), message("3", "other"))
    first = (await bench.pending())[0].row
    assert not await backlog.refused("relay", first, detail="too_large: 2 MB", attempts_max=2)
    assert await backlog.refused("relay", first, detail="too_large: 2 MB", attempts_max=2)
    assert ["3"] == ids(await bench.pending())
    stuck = await outbox.stuck()
    assert ("1", 2, "too_large: 2 MB") == (stuck[0].message.id, stuck[0].attempts, stuck[0].detail)
    assert abs(stuck[0].at - bench.clock.now_us()) < 60_000_000
    assert stuck[:1] == list(await outbox.stuck(limit=1))
    assert stuck[1:] == list(await outbox.stuck(after=stuck[0].row))
    rows = [one.row for one in stuck]
    assert len(rows) == await outbox.requeue(rows)
    assert 0 == await outbox.requeue(rows)
    assert [] == list(await outbox.stuck())
    found = await bench.pending()
    assert {"1", "2", "3"} == set(ids(found))
    assert ids(found).index("3") < ids(found).index("1") < ids(found).index("2")
    assert [0] * 3 == [row.attempts for row in found], "they begin anew"


async def test_the_brokers_word_is_bounded(bench: Bench) -> None:
    """RT5: a detail of any length is kept in a bounded form."""
    await bench.commit(message("1"))
    (row,) = await bench.pending()
    assert await bench.store.backlog.refused("relay", row.row, detail="x" * 1_000_000, attempts_max=1)
    (stuck,) = await bench.store.outbox.stuck()
    assert 0 < len(stuck.detail) <= 10_000
