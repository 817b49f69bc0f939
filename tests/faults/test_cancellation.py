"""Every public coroutine, cancelled at every `await`: nothing is lost or leaks, and what it was called on goes on.

`run_alone` demands that no task, thread or file descriptor outlives a case.
"""

from __future__ import annotations

import asyncio
from contextlib import AsyncExitStack
from pathlib import Path

import pytest
from cancel_world import CASES, open_world
from cancelling import Cut, cancelled_everywhere

from tidewire.testing.leftovers import run_alone


@pytest.mark.parametrize("kind", ["memory", "sqlite"])
@pytest.mark.parametrize("name", CASES)
def test_cancelled_at_any_await_it_leaves_everything_usable(name: str, kind: str, tmp_path: Path) -> None:
    """Before or after what it waits for has come: it ends, is whole or has not happened, and all works on (AS1)."""
    run, look = CASES[name]
    cuts = 0

    async def scenario() -> None:
        nonlocal cuts
        async with AsyncExitStack() as stack:
            world = await open_world(kind, tmp_path, stack)

            async def then(number: int) -> None:
                if look is not None:
                    await look(world, number)
                await world.usable()

            cuts = await cancelled_everywhere(lambda number: run(world, number), then)

    run_alone(scenario)
    assert cuts > 0 or kind == "memory"


def test_the_cut_falls_where_it_is_asked_for() -> None:
    """The instrument itself: before the n-th await ends, or when it has ended and nobody has heard."""

    async def scenario() -> None:
        heard: list[int] = []
        loop = asyncio.get_running_loop()

        async def three() -> None:
            for number in range(3):
                future = loop.create_future()
                loop.call_soon(future.set_result, number)
                heard.append(await future)

        for moment in ("before", "after"):
            heard.clear()
            cut = Cut(three(), 2, moment)
            with pytest.raises(asyncio.CancelledError):
                await asyncio.wait_for(cut, 5)
            assert ([0], True) == (heard, cut.reached)

    run_alone(scenario)
