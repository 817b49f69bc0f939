"""Section G: recurring runs. Each is run once per store, whatever the number of processes."""

# ruff: noqa: SIM300  (the expected value stands on the left)

from __future__ import annotations

import asyncio
from datetime import timedelta

from tidewire.errors import AlreadyMarked
from tidewire.protocols import Store
from tidewire.testing.stores.bench import LEASE, Bench, raises

RULE = "every 60 s"
DUE = 1_000_000


async def _claim(
    store: Store, owner: str, *, now: int = DUE, name: str = "nightly", rule: str = RULE
) -> tuple[int, bool]:
    return await store.timetable.claim(name, rule, first=DUE, now=now, owner=owner, lease=LEASE)


async def _advance(bench: Bench, owner: str, *, due: int = DUE, to: int = 2 * DUE, commit: bool = True) -> None:
    unit = bench.store.unit()
    try:
        await bench.store.timetable.advance(unit, "nightly", owner=owner, due=due, to=to)
        if commit:
            await (await unit.seal())
    finally:
        await unit.rollback()


async def test_a_run_is_due_at_its_time_for_one_owner(bench: Bench) -> None:
    """Before its time nobody runs it; at its time one does, while the others wait for his lease."""
    assert (DUE, False) == await _claim(bench.store, "a", now=DUE - 1)
    assert (DUE, True) == await _claim(bench.store, "a")
    assert (DUE, False) == await _claim(bench.store, "b")
    assert (DUE, True) == await _claim(bench.store, "b", name="another")


async def test_a_run_that_has_happened_is_over(bench: Bench) -> None:
    """The next time is what was said in the unit, and the lease ends with it; nobody runs the same one again."""
    await _claim(bench.store, "a")
    await _advance(bench, "a")
    assert (2 * DUE, False) == await _claim(bench.store, "b")
    assert (2 * DUE, True) == await _claim(bench.store, "b", now=2 * DUE)
    with raises(AlreadyMarked):
        await _advance(bench, "a")


async def test_a_run_that_was_rolled_back_has_not_happened(bench: Bench) -> None:
    """What a run wrote and that it has happened are one unit: rolled back, it is due as before."""
    await _claim(bench.store, "a")
    await _advance(bench, "a", commit=False)
    assert (DUE, False) == await _claim(bench.store, "b"), "and still a's"
    await bench.pass_time(LEASE + timedelta(milliseconds=50))
    assert (DUE, True) == await _claim(bench.store, "b")


async def test_who_lost_the_lease_cannot_finish(bench: Bench) -> None:
    """R3: after a takeover the first owner's unit is `AlreadyMarked`; the run happens once."""
    await _claim(bench.store, "a")
    await bench.pass_time(LEASE + timedelta(milliseconds=50))
    assert (DUE, True) == await _claim(bench.store, "b")
    with raises(AlreadyMarked):
        await _advance(bench, "a")
    await _advance(bench, "b")
    assert (2 * DUE, False) == await _claim(bench.store, "a")


async def test_who_never_claimed_cannot_finish(bench: Bench) -> None:
    """A run that is not known, or not one's own, or of another time, is `AlreadyMarked`."""
    with raises(AlreadyMarked):
        await _advance(bench, "a")
    await _claim(bench.store, "a")
    with raises(AlreadyMarked):
        await _advance(bench, "b")
    with raises(AlreadyMarked):
        await _advance(bench, "a", due=DUE + 1)


async def test_another_rule_begins_anew(bench: Bench) -> None:
    """A name with another rule is due when that rule first says, whatever was planned or leased before."""
    await _claim(bench.store, "a")
    await _advance(bench, "a", to=100 * DUE)
    assert (DUE, True) == await _claim(bench.store, "b", rule="every 30 s")


async def test_many_claim_and_one_runs(bench: Bench) -> None:
    """Of twenty who ask at the same time exactly one is to run it."""
    async with asyncio.TaskGroup() as tasks:
        claims = [tasks.create_task(_claim(bench.store, f"owner-{number}")) for number in range(20)]
    assert 1 == sum(claim.result()[1] for claim in claims)


async def test_connections_claim_and_one_runs(bench: Bench) -> None:
    """The same between two connections; who holds it on one can be taken over from the other."""
    second = await bench.connect()
    assert (DUE, True) == await _claim(bench.store, "a")
    assert (DUE, False) == await _claim(second, "b")
    await bench.pass_time(LEASE + timedelta(milliseconds=50))
    assert (DUE, True) == await _claim(second, "b")
    with raises(AlreadyMarked):
        await _advance(bench, "a")
