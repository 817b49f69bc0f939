"""From `publish` to the handler: within one process, and between two, at 200 events a second."""

from __future__ import annotations

import asyncio
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from benchmarks.measure import Figure
from benchmarks.work import OPTIONS, OrderSeen, shop
from tidewire import Service, running
from tidewire.transports.sqlite import open_sqlite_transport

__all__ = ["latency"]

_RATE = 200


def latency(scale: float) -> list[Figure]:
    """Measure both ways and compare."""
    count = max(200, int(1_000 * scale))
    with tempfile.TemporaryDirectory() as directory:
        one = asyncio.run(_one_process(Path(directory), count))
    with tempfile.TemporaryDirectory() as directory:
        two = asyncio.run(_two_processes(Path(directory), count))
    p50, p99 = _quantiles(two)
    base, base99 = _quantiles(one)
    ratio = p50 / base
    return [
        Figure("latency, one process, p50", "ms", "", base, more={"p99_ms": base99}),
        Figure(
            "latency, two processes, p50", "ms", "<= 1.5x one process", p50, base, round(ratio, 2), met=ratio <= 1.5
        ),
        Figure("latency, two processes, p99", "ms", "<= 3x p50", p99, p50, round(p99 / p50, 2), met=p99 <= 3 * p50),
    ]


def _quantiles(values: list[float]) -> tuple[float, float]:
    ordered = sorted(values)
    return round(statistics.median(ordered) * 1e3, 3), round(ordered[int(len(ordered) * 0.99)] * 1e3, 3)


async def _one_process(directory: Path, count: int) -> list[float]:
    service, times = Service("bench"), dict[str, float]()

    @service.on(OrderSeen, on_dead_letter="continue")
    async def handle(seen: OrderSeen) -> None:
        times[seen.order_id] = time.perf_counter() - float(seen.order_id)

    async with shop(directory, service) as (app, _, _):
        for _ in range(count):
            await app.publisher.publish(OrderSeen(repr(time.perf_counter())))
            await asyncio.sleep(1 / _RATE)
        await asyncio.sleep(0.1)
    return list(times.values())[count // 10 :]


async def _two_processes(directory: Path, count: int) -> list[float]:
    """The handlers are in a child; both clocks are the machine's monotonic one."""
    async with open_sqlite_transport(directory / "broker.db") as transport:
        async with running(Service("feeder"), transport=transport, options=OPTIONS) as app:
            await app.publisher.publish(OrderSeen("0"))
            child = subprocess.Popen(
                [sys.executable, "-m", "benchmarks.latency", str(directory), str(count)],
                stdout=subprocess.PIPE,
                text=True,
            )
            assert child.stdout is not None
            await asyncio.to_thread(child.stdout.readline)
            for _ in range(count):
                await app.publisher.publish(OrderSeen(repr(time.perf_counter())))
                await asyncio.sleep(1 / _RATE)
            answer = await asyncio.to_thread(child.stdout.read)
            child.wait()
    return [float(line) for line in answer.split()][count // 10 :]


async def _child(directory: Path, count: int) -> None:
    service, times, enough = Service("bench"), list[float](), asyncio.Event()

    @service.on(OrderSeen, on_dead_letter="continue")
    async def handle(seen: OrderSeen) -> None:
        if seen.order_id != "0":
            times.append(time.perf_counter() - float(seen.order_id))
            if len(times) == count:
                enough.set()

    async with shop(directory, service):
        print("ready", flush=True)
        await enough.wait()
    print("\n".join(map(str, times)))


if __name__ == "__main__":
    asyncio.run(_child(Path(sys.argv[1]), int(sys.argv[2])))
