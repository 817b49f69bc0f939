"""What every store keeps: units, marks, outbox, records. The memory store is an equal sibling."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

from tidewire.clock import SystemClock
from tidewire.errors import AlreadyMarked, LaneFenced, TransactionClosed
from tidewire.model import Failure, Guard, Held, Mark, Message, Topic
from tidewire.stores.memory import open_memory_store
from tidewire.stores.sqlite import open_sqlite_store

SECOND = timedelta(seconds=1)
MARK = Mark("g", "h", 0, "src", "01890a5d-ac96-774b-bcce-b302099a8057")
Scenario = Callable[[Any], Awaitable[None]]
Run = Callable[[Scenario], None]


@pytest.fixture(params=["memory", "sqlite"])
def run(request: pytest.FixtureRequest, tmp_path: Path) -> Run:
    """Return a function that runs a scenario on a fresh store of each kind."""

    def opened() -> AbstractAsyncContextManager[Any]:
        return open_memory_store() if request.param == "memory" else open_sqlite_store(tmp_path / "store.db")

    @asynccontextmanager
    async def limited() -> AsyncIterator[Any]:
        async with asyncio.timeout(20), opened() as store:
            yield store

    async def scene(scenario: Scenario) -> None:
        async with limited() as store:
            await scenario(store)

    return lambda scenario: asyncio.run(scene(scenario))


def message(number: int, key: str | None = "k", not_before: int | None = None) -> Message:
    headers = {"ce-id": str(number), "ce-type": "a.b"}
    return Message(Topic("t"), str(number), "src", key, headers, b"body", not_before)


async def put(store: Any, *messages: Message) -> None:
    unit = store.unit()
    await store.outbox.put(unit, messages)
    await (await unit.seal())


async def pending(store: Any, owner: str = "me") -> list[str]:
    assert await store.backlog.lease(owner, SECOND)
    return [row.message.id for row in await store.backlog.claim(owner, after=0, limit=100)]


def test_a_mark_and_an_outbox_row_commit_together_or_not_at_all(run: Run) -> None:
    """IX-13: sealed, both are there; rolled back, neither is."""

    async def scenario(store: Any) -> None:
        lost = store.unit()
        await store.inbox.mark(lost, MARK, b"d")
        await store.outbox.put(lost, [message(1)])
        await lost.rollback()
        assert ([None], (0, 0)) == (list(await store.inbox.known([MARK])), await store.outbox.count())
        kept = store.unit()
        await store.inbox.mark(kept, MARK, b"d")
        await store.outbox.put(kept, [message(1)])
        await (await kept.seal())
        assert ([b"d"], (1, 0)) == (list(await store.inbox.known([MARK])), await store.outbox.count())

    run(scenario)


def test_an_event_is_marked_once(run: Run) -> None:
    """IX-1: the second unit is refused; other handlers, groups, runs and sources have marks of their own."""

    async def scenario(store: Any) -> None:
        first = store.unit()
        await store.inbox.mark(first, MARK, b"d")
        await (await first.seal())
        second = store.unit()
        with pytest.raises(AlreadyMarked):
            await store.inbox.mark(second, MARK, b"d")
        await second.rollback()
        others = [Mark("g2", "h", 0, "src", MARK.event_id), Mark("g", "h2", 0, "src", MARK.event_id)]
        others += [Mark("g", "h", 1, "src", MARK.event_id), Mark("g", "h", 0, "src2", MARK.event_id)]
        others += [Mark("g", "h", 0, "src", MARK.event_id.upper())]
        assert [None] * 5 == list(await store.inbox.known(others))

    run(scenario)


def test_units_take_turns_first_come_first_served(run: Run) -> None:
    """Two transactions never interleave; a cancelled waiter passes its turn on."""

    async def scenario(store: Any) -> None:
        order: list[int] = []
        holder = store.unit()
        await holder.begin()

        async def work(number: int) -> None:
            unit = store.unit()
            await unit.begin()
            order.append(number)
            await (await unit.seal())

        async with asyncio.TaskGroup() as tasks:
            waiting = [tasks.create_task(work(number)) for number in range(5)]
            await asyncio.sleep(0.01)
            assert [] == order
            waiting[1].cancel()
            await holder.rollback()
        assert [0, 2, 3, 4] == order

    run(scenario)


def test_a_fenced_unit_cannot_commit(run: Run) -> None:
    """R3: a lane that was adopted under a higher epoch refuses the old owner's unit; epochs never go back."""

    async def scenario(store: Any) -> None:
        assert 5 == await store.lanes.adopt("g", "t/0", 5)
        good = store.unit(Guard("g", "t/0", 5))
        await store.inbox.mark(good, MARK, b"d")
        await (await good.seal())
        await store.lanes.adopt("g", "t/0", 6)
        zombie = store.unit(Guard("g", "t/0", 5))
        await store.outbox.put(zombie, [message(1)])
        with pytest.raises(LaneFenced):
            await (await zombie.seal())
        assert (0, 0) == await store.outbox.count()
        with pytest.raises(LaneFenced):
            await store.lanes.adopt("g", "t/0", 5)

    run(scenario)


def test_an_ended_unit_is_closed(run: Run) -> None:
    """What comes late writes nothing."""

    async def scenario(store: Any) -> None:
        unit = store.unit()
        await unit.begin()
        await (await unit.seal())
        with pytest.raises(TransactionClosed):
            await store.outbox.put(unit, [message(1)])
        await unit.rollback()
        assert (0, 0) == await store.outbox.count()

    run(scenario)


def test_the_outbox_is_read_in_commit_order_by_one_owner(run: Run) -> None:
    """OX-5: one lease; rows in order; done deletes exactly what was sent, and only for the owner."""

    async def scenario(store: Any) -> None:
        await put(store, message(1), message(2))
        await put(store, message(3))
        assert ["1", "2", "3"] == await pending(store)
        assert not await store.backlog.lease("other", SECOND)
        assert [] == list(await store.backlog.claim("other", after=0, limit=9))
        rows = await store.backlog.claim("me", after=0, limit=9)
        await put(store, message(4))
        assert not await store.backlog.done("other", [rows[0].row])
        assert await store.backlog.done("me", [rows[0].row, rows[2].row])
        assert ["2", "4"] == await pending(store)
        await store.backlog.lease("me", timedelta(0))
        assert await store.backlog.lease("other", SECOND)

    run(scenario)


def test_a_refused_row_is_quarantined_with_its_key_and_others_flow(run: Run) -> None:
    """OX-21: at the limit; what comes behind it of its key waits, everything else goes on."""

    async def scenario(store: Any) -> None:
        await put(store, message(1, "bad"), message(2, "bad"), message(3, "good"), message(4, None))
        assert ["1", "2", "3", "4"] == await pending(store)
        row = (await store.backlog.claim("me", after=0, limit=1))[0].row
        assert not await store.backlog.refused("me", row, detail="too large", attempts_max=2)
        assert await store.backlog.refused("me", row, detail="too large", attempts_max=2)
        await put(store, message(5, "bad"))
        assert ["3", "4"] == await pending(store)

    run(scenario)


def test_a_delayed_row_waits_for_its_time(run: Run) -> None:
    """It joins when it is due, and the waiting relay is woken for it."""

    async def scenario(store: Any) -> None:
        await put(store, message(1, not_before=SystemClock().now_us() + 60_000), message(2))
        assert ["2"] == await pending(store)
        await store.backlog.done("me", [row.row for row in await store.backlog.claim("me", after=0, limit=9)])
        async with asyncio.timeout(2):
            while await pending(store) != ["1"]:
                await store.outbox.wait(SECOND)

    run(scenario)


def test_waiting_is_a_flag_and_not_a_pulse(run: Run) -> None:
    """OB11: what was committed before the wait ends it at once; nothing committed, it lasts."""

    async def scenario(store: Any) -> None:
        await put(store, message(1))
        async with asyncio.timeout(0.2):
            assert await store.outbox.wait(SECOND)
        rows = [row.row for row in await store.backlog.claim("me", after=0, limit=9)]
        assert await store.backlog.lease("me", SECOND)
        rows = [row.row for row in await store.backlog.claim("me", after=0, limit=9)]
        await store.backlog.done("me", rows)
        assert not await store.outbox.wait(timedelta(milliseconds=20))

    run(scenario)


def test_starts_and_failures_are_remembered(run: Run) -> None:
    """A failure ends the start it belongs to; forgetting forgets."""

    async def scenario(store: Any) -> None:
        attempts = store.attempts
        assert [1, 2] == [await attempts.begin("g", "s", "1") for _ in range(2)]
        await attempts.fail("g", "s", "1", Failure(failures=3, starts=9, first_error="x"))
        kept = await attempts.get("g", "s", "1")
        assert (3, 0, "x") == (kept.failures, kept.starts, kept.first_error)
        assert 1 == await attempts.begin("g", "s", "1")
        await attempts.forget("g", "s", "1")
        assert await attempts.get("g", "s", "1") is None

    run(scenario)


def test_held_rows_keep_their_place(run: Run) -> None:
    """An update changes where an event waits, not its turn; the key is free without rows."""

    async def scenario(store: Any) -> None:
        first = Held("g", "t", "k", "s", "1", "inbox", 7)
        second = Held("g", "t", "k", "s", "2", "inbox", 7)
        await store.held.put([first])
        await store.held.put([second])
        await store.held.put([Held("g", "t", "k", "s", "1", "dead")])
        head = await store.held.head("g", "t", "k")
        assert ("1", "dead", None) == (head.event_id, head.state, head.due)
        assert [("t", "k")] == list(await store.held.keys("g", ["t"]))
        assert [] == list(await store.held.keys("g2", ["t"])) == list(await store.held.keys("g", ["u"]))
        await store.held.free([first])
        assert "2" == (await store.held.head("g", "t", "k")).event_id
        await store.held.free([second, second])
        assert await store.held.head("g", "t", "k") is None

    run(scenario)


def test_old_marks_are_pruned_in_bounded_batches(run: Run) -> None:
    """Never more than asked for, never a young one."""

    async def scenario(store: Any) -> None:
        for number in range(5):
            unit = store.unit()
            await store.inbox.mark(unit, Mark("g", "h", 0, "s", str(number)), b"d")
            await (await unit.seal())
        assert 0 == await store.inbox.prune(0, 10)
        later = SystemClock().now_us() + 1_000_000
        assert [2, 2, 1, 0] == [await store.inbox.prune(later, 2) for _ in range(4)]

    run(scenario)
