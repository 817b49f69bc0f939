"""Section B: inbox marks. An effect happens once, whoever tries it, how often and at the same time."""

# ruff: noqa: SIM300  (the expected value stands on the left)

from __future__ import annotations

import asyncio
from datetime import timedelta

import msgspec

from tidewire.errors import AlreadyMarked
from tidewire.model import Mark
from tidewire.protocols import Store
from tidewire.testing.stores.bench import Bench, mark_of, message, outcome, raises, steps

ODD_IDS = [
    "01890a5d-ac96-774b-bcce-b302099a8057",
    "01890A5D-AC96-774B-BCCE-B302099A8057",
    "01890a5dac96774bbcceb302099a8057",
    "{01890a5d-ac96-774b-bcce-b302099a8057}",
    "01890a5d-ac96-774b-bcce-b302099a805",
    "1",
    "01",
    " 1",
    "1 ",
    "A",
    "a",
    "\u00e9",
    "e\u0301",
    "\u0661",
    "x" * 250,
    "x" * 249 + "y",
    "a-b:c/d%20",
]


async def test_event_is_marked_once(bench: Bench) -> None:
    """IX-1, PB-2: the second unit with a mark that is committed is refused, and leaves nothing."""
    await bench.commit(message("1"), mark=mark_of("1"), row="1")
    with raises(AlreadyMarked):
        await bench.commit(message("again"), mark=mark_of("1"), row="again")
    assert ["1"] == list(await bench.site.rows.names(bench.store))
    assert (1, 0) == tuple(await bench.store.outbox.count())


async def test_each_part_of_a_mark_counts(bench: Bench) -> None:
    """IX-3, IX-17, PB-9: another group, handler, run, source or event has a mark of its own."""
    mark = mark_of("1")
    others = [
        msgspec.structs.replace(mark, group="shipping"),
        msgspec.structs.replace(mark, handler="refund"),
        msgspec.structs.replace(mark, run=1),
        msgspec.structs.replace(mark, source="elsewhere"),
        msgspec.structs.replace(mark, event_id="2"),
    ]
    await bench.commit(mark=mark)
    assert [None] * 5 == list(await bench.store.inbox.known(others))
    for other in others:
        await bench.commit(mark=other)
    for other in others:
        with raises(AlreadyMarked):
            await bench.commit(mark=other)


async def test_parts_of_a_mark_are_not_joined(bench: Bench) -> None:
    """IX-17: parts that would read alike in one string are different marks."""
    alike = [Mark("a", "b.c", 0, "s", "1"), Mark("a.b", "c", 0, "s", "1"), Mark("a", "b", 0, ".cs", "1")]
    for mark in alike:
        await bench.commit(mark=mark)
    assert [b"digest"] * 3 == list(await bench.store.inbox.known(alike))


async def test_no_two_ids_are_one(bench: Bench) -> None:
    """IX-17, R6: case, spaces, leading zeros, composed letters and length tell ids apart, UUID or not."""
    for number, event_id in enumerate(ODD_IDS):
        later = [mark_of(other) for other in ODD_IDS[number:]]
        assert [None] * len(later) == list(await bench.store.inbox.known(later)), f"before {event_id!r} was marked"
        await bench.commit(mark=mark_of(event_id))
    assert [b"digest"] * len(ODD_IDS) == list(await bench.store.inbox.known([mark_of(one) for one in ODD_IDS]))


async def test_digest_is_given_back(bench: Bench) -> None:
    """IX-7, PB-37: the digest that a mark was stored with comes back byte for byte, in the order that was asked."""
    digests = {f"{number}": bytes([number, 0, 255 - number]) * 16 for number in range(5)}
    for name, digest in digests.items():
        unit = bench.store.unit()
        await bench.store.inbox.mark(unit, mark_of(name), digest)
        await (await unit.seal())
    asked = ["3", "nobody", "0", "3", "4"]
    found = await bench.store.inbox.known([mark_of(name) for name in asked])
    assert [digests.get(name) for name in asked] == [None if one is None else bytes(one) for one in found]
    assert [] == list(await bench.store.inbox.known([]))


async def test_conflict_waits_for_the_first_and_is_done(bench: Bench) -> None:
    """IX-2: who meets a mark that is not committed hears of it only when it is; then it is done."""
    await _conflict(bench, bench.store, first_commits=True)


async def test_conflict_waits_for_the_first_and_runs_if_it_fails(bench: Bench) -> None:
    """IX-2, PB-15: if the first rolls back, the second takes effect."""
    await _conflict(bench, bench.store, first_commits=False)


async def test_conflict_between_connections(bench: Bench) -> None:
    """IX-2, PB-15: the same where the two are on different connections."""
    await _conflict(bench, await bench.connect(), first_commits=False)


async def _conflict(bench: Bench, other: Store, *, first_commits: bool) -> None:
    first = bench.store.unit()
    await bench.fill(first, message("1"), mark=mark_of("1"), row="first")
    async with bench.soon(), asyncio.TaskGroup() as tasks:
        second = tasks.create_task(
            outcome(bench.commit(message("1"), mark=mark_of("1"), row="second", store=other), AlreadyMarked)
        )
        await steps(5)
        await asyncio.sleep(0.02)
        assert not second.done(), f"said {second.result()} before the first has ended"
        if first_commits:
            await (await first.seal())
        else:
            await first.rollback()
    assert first_commits == isinstance(second.result(), AlreadyMarked)
    assert ["first" if first_commits else "second"] == list(await bench.site.rows.names(bench.store))


async def test_two_workers_one_effect(bench: Bench) -> None:
    """IX-1, PB-14: two workers who try the same events at the same time make each effect once."""
    await _race(bench, [bench.store, bench.store])


async def test_two_connections_one_effect(bench: Bench) -> None:
    """IX-1, PB-14: the same on two connections."""
    await _race(bench, [bench.store, await bench.connect()])


async def _race(bench: Bench, stores: list[Store]) -> None:
    names = [f"e{number}" for number in range(40)]
    won: list[str] = []

    async def work(number: int, store: Store) -> None:
        for name in names:
            mine = bench.commit(message(name), mark=mark_of(name), row=f"{name} by {number}", store=store)
            if await outcome(mine, AlreadyMarked) is None:
                won.append(name)

    async with asyncio.TaskGroup() as tasks:
        for number, store in enumerate(stores):
            tasks.create_task(work(number, store))
    assert names == sorted(won, key=names.index), "each event once"
    effects = sorted(row.split(" by ")[0] for row in await bench.site.rows.names(bench.store))
    assert sorted(names) == effects
    assert (len(names), 0) == tuple(await bench.store.outbox.count())


async def test_mark_that_is_sealed_but_not_yet_durable_counts(bench: Bench) -> None:
    """IX-1: between the seal and the disk, a second unit with the mark cannot commit beside the first."""
    first = bench.store.unit()
    await bench.fill(first, mark=mark_of("1"), row="first")
    durable = await first.seal()
    second = await outcome(bench.commit(mark=mark_of("1"), row="second"), AlreadyMarked)
    await durable
    assert isinstance(second, AlreadyMarked)
    assert ["first"] == list(await bench.site.rows.names(bench.store))


async def test_unit_cannot_hold_a_mark_twice(bench: Bench) -> None:
    """IX-1: the same mark twice in one unit is `AlreadyMarked`, too."""
    unit = bench.store.unit()
    await bench.store.inbox.mark(unit, mark_of("1"), b"digest")
    with raises(AlreadyMarked):
        await bench.store.inbox.mark(unit, mark_of("1"), b"digest")
    await unit.rollback()
    assert [None] == list(await bench.store.inbox.known([mark_of("1")]))


async def test_run_is_raised_and_kept_apart(bench: Bench) -> None:
    """IX-17: a group's run counts up from 0, and no other group's does; raising it lets effects happen again."""
    inbox = bench.store.inbox
    assert [0, 1, 2] == [
        await inbox.run_of("billing"),
        await inbox.next_run("billing"),
        await inbox.next_run("billing"),
    ]
    assert [2, 0] == [await inbox.run_of("billing"), await inbox.run_of("shipping")]
    await bench.commit(mark=mark_of("1"))
    await bench.commit(mark=msgspec.structs.replace(mark_of("1"), run=2))


async def test_pruning_takes_the_old_ones_in_bounded_batches(bench: Bench) -> None:
    """IX-18: never more than was asked for, never a mark as young as the limit."""
    inbox = bench.store.inbox
    for number in range(5):
        await bench.commit(mark=mark_of(f"old{number}"))
    await bench.pass_time(timedelta(seconds=0.2))
    limit = bench.clock.now_us() - 50_000
    await bench.pass_time(timedelta(seconds=0.2))
    for number in range(3):
        await bench.commit(mark=mark_of(f"young{number}"))
    assert 0 == await inbox.prune(0, 10)
    assert [2, 2, 1, 0] == [await inbox.prune(limit, 2) for _ in range(4)]
    old = await inbox.known([mark_of(f"old{number}") for number in range(5)])
    young = await inbox.known([mark_of(f"young{number}") for number in range(3)])
    assert [None] * 5 == list(old)
    assert [b"digest"] * 3 == list(young)
    await bench.commit(mark=mark_of("old0"))  # what is forgotten may happen again
