"""From `publish` to the handler at 200 events a second on a broker, in one process, beside a native twin."""

from __future__ import annotations

import asyncio
import statistics
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from typing import TypeAlias

from benchmarks.measure import Figure
from tidewire import Options, Service, event, running
from tidewire.chance import UUID7Ids

__all__ = ["Heard", "Place", "beside_native", "ours"]

_RATE = 200
_ROUNDS = 3
_MORE_MAX_MS = 2.0
_FIRST = "first"

Heard: TypeAlias = Callable[[str], None]
Place: TypeAlias = AbstractAsyncContextManager[Callable[[str], Awaitable[object]]]
"""What is open while it is measured: a function that publishes a text, which comes back to `Heard` in a handler."""


def beside_native(
    broker: str, scale: float, ours: Callable[[Heard], Place], native: Callable[[Heard], Place]
) -> Figure:
    """Measure both in turn; the medians of their rounds' p99 are compared."""
    count = max(100, int(1_000 * scale))
    pairs = [(asyncio.run(_p99(ours, count)), asyncio.run(_p99(native, count))) for _ in range(_ROUNDS)]
    mine, twins = (statistics.median(values) for values in zip(*pairs, strict=True))
    return Figure(
        f"{broker}: publish → handler p99 at {_RATE}/s",
        "ms",
        f"<= {_MORE_MAX_MS} ms more",
        round(mine, 2),
        round(twins, 2),
        round(mine / twins, 2),
        rounds=_ROUNDS,
        met=mine - twins <= _MORE_MAX_MS,
    )


@asynccontextmanager
async def ours(url: str, heard: Heard) -> AsyncIterator[Callable[[str], Awaitable[object]]]:
    """A service that publishes to itself."""
    from tidewire.config import open_transport

    name = UUID7Ids().event_id()[-12:]
    service = Service(f"g{name}")

    @event(f"t{name}.noted", key="text")
    class Noted:
        text: str

    @service.on(Noted, on_dead_letter="continue")
    async def seen(noted: Noted) -> None:
        heard(noted.text)

    async with (
        open_transport(url) as transport,
        running(service, transport=transport, options=Options(lanes=4, relay=False)) as app,
    ):
        yield lambda text: app.publisher.publish(Noted(text))


async def _p99(place: Callable[[Heard], Place], count: int) -> float:
    """Publish at a pace, and return the p99 in milliseconds of all but the first tenth."""
    times: list[float] = []
    first, last = asyncio.Event(), asyncio.Event()

    def heard(text: str) -> None:
        first.set()
        if text != _FIRST:
            times.append(time.perf_counter() - float(text))
        if len(times) == count:
            last.set()

    async with place(heard) as publish:
        await publish(_FIRST)  # whoever takes part has its lanes when this one is heard
        await first.wait()
        async with asyncio.TaskGroup() as tasks:
            for _ in range(count):
                tasks.create_task(_published(publish))
                await asyncio.sleep(1 / _RATE)
        await last.wait()
    settled = sorted(times[count // 10 :])
    return settled[int(len(settled) * 0.99)] * 1e3


async def _published(publish: Callable[[str], Awaitable[object]]) -> None:
    await publish(repr(time.perf_counter()))
