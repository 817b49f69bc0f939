"""Section C: the outbox as its writers see it. Events are there with their unit, unchanged, and somebody is woken."""

# ruff: noqa: SIM300  (the expected value stands on the left)

from __future__ import annotations

import asyncio
from datetime import timedelta

import msgspec

from tidewire.model import Message, Topic
from tidewire.testing.stores.bench import Bench, ids, message, outcome, steps

SOON = timedelta(milliseconds=50)
LONG = timedelta(seconds=20)


def _odd_messages() -> list[Message]:
    plain = message("plain")
    return [
        plain,
        msgspec.structs.replace(plain, id="bytes", body=bytes(range(256)) * 20),
        msgspec.structs.replace(plain, id="empty", body=b"", headers={}),
        msgspec.structs.replace(plain, id="no-key", key=None),
        msgspec.structs.replace(plain, id="empty-key", key=""),
        msgspec.structs.replace(plain, id="long-key", key="k" * 2_000),
        msgspec.structs.replace(plain, id="unicode-\u00e9\u0301\U0001f600", key="\u00e9", source="\u1e9e/\u00df"),
        msgspec.structs.replace(plain, id="headers", headers={f"h{n}": "" if n % 2 else "v" * n for n in range(64)}),
        msgspec.structs.replace(plain, id="quotes", headers={"a": "'\"\\\n\t%s{}", "b": "\u2028\U0001f600"}),
        msgspec.structs.replace(plain, id="topic", to=Topic("Another.Topic-1_x")),
        msgspec.structs.replace(plain, id="large", body=b"x" * 300_000),
        msgspec.structs.replace(plain, id="nul-\0-id"),
        msgspec.structs.replace(plain, id="nul-key", key="a\0b"),
        msgspec.structs.replace(plain, id="nul-header", headers={"a": "x\0y"}),
        msgspec.structs.replace(plain, id="surrogate", headers={"a": "\ud800"}),
        msgspec.structs.replace(plain, id="surrogate-key", key="\udfff"),
    ]


async def test_what_goes_in_comes_out(bench: Bench) -> None:
    """OX-27: a message comes back equal in every part; one that cannot be kept is refused, and nothing of it is."""
    kept: dict[str, Message] = {}
    for one in _odd_messages():
        unit = bench.store.unit()
        refused = await outcome(bench.store.outbox.put(unit, [one]), Exception)
        if isinstance(refused, Exception):
            await unit.rollback()
        else:
            await (await unit.seal())
            kept[one.id] = one
    await bench.store.outbox.wait(SOON)
    found = {row.message.id: row.message for row in await bench.pending()}
    assert list(kept) == list(found)
    for event_id, one in kept.items():
        assert one == found[event_id], f"{event_id} has changed"
    assert {"plain", "bytes", "empty", "no-key", "headers", "quotes", "large"} <= set(kept)


async def test_outbox_is_read_alike_by_who_did_not_write_it(bench: Bench) -> None:
    """OX-27: what was kept in memory by the writer and what is read from the database are the same."""
    second = await bench.connect()
    for one in _odd_messages():
        unit = bench.store.unit()
        if await outcome(bench.store.outbox.put(unit, [one]), Exception) is None:
            await (await unit.seal())
        await unit.rollback()
    here = await bench.pending()
    assert here
    assert here == await bench.pending(store=second)


async def test_events_of_a_unit_keep_their_order(bench: Bench) -> None:
    """OX-5: rows are in the order of the units, and in a unit in the order of its calls."""
    unit = bench.store.unit()
    await bench.store.outbox.put(unit, [message("3"), message("1")])
    await bench.store.outbox.put(unit, [])
    await bench.store.outbox.put(unit, [message("2")])
    await (await unit.seal())
    await bench.commit(message("0"))
    found = await bench.pending()
    assert ["3", "1", "2", "0"] == ids(found)
    assert [row.row for row in found] == sorted({row.row for row in found}), "row numbers grow"


async def test_count_follows_what_happens(bench: Bench) -> None:
    """ST-31: pending and quarantined rows are counted as they are, delayed ones among the pending."""
    outbox, backlog = bench.store.outbox, bench.store.backlog
    assert (0, 0) == tuple(await outbox.count())
    await bench.commit(message("1"), message("2", "other"), message("later", due=bench.clock.now_us() + 10**9))
    assert (3, 0) == tuple(await outbox.count())
    rows = await bench.pending()
    assert await backlog.refused("relay", rows[0].row, detail="no", attempts_max=1)
    assert (2, 1) == tuple(await outbox.count())
    assert await backlog.done("relay", [rows[1].row])
    assert (1, 1) == tuple(await outbox.count())


async def test_waiting_is_a_flag_and_not_a_pulse(bench: Bench) -> None:
    """OX-16, PB-33: what was committed before the wait ends it at once; where nothing was, it lasts."""
    await bench.commit(message("1"))
    async with bench.soon():
        assert await bench.store.outbox.wait(LONG)
    assert await bench.store.backlog.done("relay", [row.row for row in await bench.pending()])
    began = asyncio.get_running_loop().time()
    assert not await bench.store.outbox.wait(SOON)
    assert asyncio.get_running_loop().time() - began >= 0.9 * SOON.total_seconds()


async def test_a_commit_wakes_who_waits(bench: Bench) -> None:
    """OX-16: a wait lasts while a unit is open, and ends soon after it has committed."""
    async with bench.soon(), asyncio.TaskGroup() as tasks:
        waiting = tasks.create_task(bench.store.outbox.wait(LONG))
        await asyncio.sleep(SOON.total_seconds())
        assert not waiting.done()
        await bench.commit(message("1"))
        assert await waiting
    assert ["1"] == ids(await bench.pending())


async def test_cancelled_wait_takes_nothing_away(bench: Bench) -> None:
    """OX-16: after a cancelled wait the next one hears of the same rows."""
    for number in range(10):
        async with asyncio.TaskGroup() as tasks:
            waiting = tasks.create_task(bench.store.outbox.wait(LONG))
            await steps(number)
            waiting.cancel()
    await bench.commit(message("1"))
    async with bench.soon():
        assert await bench.store.outbox.wait(LONG)
    assert ["1"] == ids(await bench.pending())


async def test_delayed_event_waits_for_its_time(bench: Bench) -> None:
    """CF-59 for the outbox: it is counted, it is not handed out early, and what is behind it passes."""
    due = timedelta(milliseconds=300)
    at = bench.clock.now_us() + due // timedelta(microseconds=1)
    await bench.commit(message("later", due=at), message("now"))
    assert ["now"] == ids(await bench.pending())
    assert (2, 0) == tuple(await bench.store.outbox.count())
    await bench.pass_time(due)
    assert await bench.store.outbox.wait(LONG)
    assert ["now", "later"] == ids(await bench.pending())


async def test_delayed_events_leave_in_the_order_of_their_times(bench: Bench) -> None:
    """CF-60 for the outbox: a longer delay in front holds up no shorter one; equal times keep their order."""
    base = bench.clock.now_us()
    delays = {"c": 300_000, "a": 100_000, "b": 200_000, "b2": 200_000}
    for name, delay in delays.items():
        await bench.commit(message(name, due=base + delay))
    await bench.pass_time(timedelta(seconds=0.4))
    assert ["a", "b", "b2", "c"] == ids(await bench.pending())


async def test_a_due_event_wakes_who_waits(bench: Bench) -> None:
    """OX-16: the relay is woken when a delayed event is due, without another commit."""
    await bench.commit(message("later", due=bench.clock.now_us() + 150_000))
    async with bench.soon():
        while "later" not in ids(await bench.pending()):
            await bench.store.outbox.wait(LONG)


async def test_an_event_whose_time_has_passed_leaves_at_once(bench: Bench) -> None:
    """A time in the past is no delay."""
    await bench.commit(message("past", due=bench.clock.now_us() - 10**9), message("2"))
    assert ["past", "2"] == ids(await bench.pending())
