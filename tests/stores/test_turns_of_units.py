"""The stores with one writer: units take turns, first come, first served."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest
from store_sites import memory_site, sqlite_site

from tidewire.testing.stores import Bench, Site, run_case


@pytest.mark.parametrize("kind", ["memory", "sqlite"])
def test_units_take_turns_first_come_first_served(kind: str, tmp_path: Path) -> None:
    """Two units never interleave, who waited longest is next, and a cancelled waiter passes its turn on."""
    site: Site = memory_site() if kind == "memory" else sqlite_site(str(tmp_path / "store.db"))

    async def scenario(bench: Bench) -> None:
        order: list[int] = []
        holder = bench.store.unit()
        await holder.begin()

        async def work(number: int) -> None:
            unit = bench.store.unit()
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

    run_case(scenario, site)
