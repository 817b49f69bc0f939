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
from benchmarks.native import NativeLog
from benchmarks.work import OPTIONS, OrderSeen, shop
from tidewire import Service, running
from tidewire.transports.sqlite import open_sqlite_transport

__all__ = ["latency"]

_RATE = 200


def latency(scale: float) -> list[Figure]:
    """Measure both ways, and a bare commit at the same pace: nothing that is durable can be quicker or steadier."""
    count = max(200, int(1_000 * scale))
    with tempfile.TemporaryDirectory() as directory:
        bare = _quantiles(_bare_commits(Path(directory), count))
    with tempfile.TemporaryDirectory() as directory:
        one = _quantiles(asyncio.run(_one_process(Path(directory), count)))
    with tempfile.TemporaryDirectory() as directory:
        two = _quantiles(asyncio.run(_two_processes(Path(directory), count)))
    return [
        _beside("bare commit, p99 beside its p50", bare[1], bare[0], None),
        _beside("latency, one process, p50 beside a bare commit", one[0], bare[0], None),
        _beside("latency, one process, p99 beside p50", one[1], one[0], None),
        _beside("latency, two processes, p50 beside one process", two[0], one[0], 1.5),
        _beside("latency, two processes, p99 beside p50", two[1], two[0], 3.0),
    ]


def _beside(name: str, value: float, base: float, most: float | None) -> Figure:
    ratio = value / base
    target = "" if most is None else f"<= {most}x"
    return Figure(name, "ms", target, value, base, round(ratio, 2), met=None if most is None else ratio <= most)


def _bare_commits(directory: Path, count: int) -> list[float]:
    log, times = NativeLog(directory / "native.db"), list[float]()
    for _ in range(count):
        started = time.perf_counter()
        log.append(1, 1)
        times.append(time.perf_counter() - started)
        time.sleep(1 / _RATE)
    return times[count // 10 :]


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
