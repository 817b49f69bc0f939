"""What an operator repairs in a store: quarantined outbox rows, and a group that is to run again."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from contextlib import AbstractAsyncContextManager
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

from tidewire.model import Message, Topic
from tidewire.stores.memory import open_memory_store
from tidewire.stores.sqlite import open_sqlite_store

Open = Callable[[], AbstractAsyncContextManager[Any]]


@pytest.fixture(params=["memory", "sqlite"])
def open_store(request: pytest.FixtureRequest, tmp_path: Path) -> Open:
    """A function that opens a store of one kind."""
    return open_memory_store if request.param == "memory" else lambda: open_sqlite_store(tmp_path / "s.db")


def message(number: int, key: str = "k") -> Message:
    return Message(Topic("t"), f"id-{number}", "s", key, {"ce-type": "t.x"}, b"{}")


def test_quarantined_rows_are_shown_and_leave_again_in_order(open_store: Open) -> None:
    """A refused row and what stands behind it are listed with the broker's word; requeued, they leave in order."""

    async def scenario() -> None:
        async with open_store() as store:
            unit = store.unit()
            await store.outbox.put(unit, [message(1), message(2), message(3, "other")])
            await (await unit.seal())
            backlog = store.backlog
            assert await backlog.lease("me", timedelta(seconds=30))
            first, *_ = await backlog.claim("me", after=0, limit=10)
            assert not await backlog.refused("me", first.row, detail="too_large: 2 MB", attempts_max=2)
            assert await backlog.refused("me", first.row, detail="too_large: 2 MB", attempts_max=2)
            assert ["id-3"] == [row.message.id for row in await backlog.claim("me", after=0, limit=10)]
            stuck = await store.outbox.stuck()
            assert ("id-1", 2, "too_large: 2 MB") == (stuck[0].message.id, stuck[0].attempts, stuck[0].detail)
            assert stuck[0].at > 0
            rows = [one.row for one in stuck]
            assert len(rows) == await store.outbox.requeue(rows)
            assert 0 == await store.outbox.requeue(rows)
            assert [] == list(await store.outbox.stuck())
            left = [row.message.id for row in await backlog.claim("me", after=0, limit=10)]
            assert {"id-1", "id-2", "id-3"} == set(left)
            if "id-2" in [one.message.id for one in stuck]:
                assert left.index("id-1") < left.index("id-2")

    asyncio.run(scenario())


def test_a_run_is_raised_and_kept(open_store: Open) -> None:
    """A group's run counts up, and no other group's does."""

    async def scenario() -> None:
        async with open_store() as store:
            assert [0, 1, 2] == [
                await store.inbox.run_of("g"),
                await store.inbox.next_run("g"),
                await store.inbox.next_run("g"),
            ]
            assert [2, 0] == [await store.inbox.run_of("g"), await store.inbox.run_of("other")]

    asyncio.run(scenario())
