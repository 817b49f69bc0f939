"""Memory: a consumer with a long backlog, and what importing costs. Each in a process of its own."""

from __future__ import annotations

import asyncio
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

from benchmarks.measure import Figure
from benchmarks.work import OrderPlaced, order, shop
from tidewire import Service

__all__ = ["memory"]

_IMPORT = """
import time
started = time.perf_counter()
import tidewire
took = time.perf_counter() - started
def peak(): return int(next(line for line in open("/proc/self/status") if line.startswith("VmHWM")).split()[1]) / 1024
alone = peak()
started = time.perf_counter()
from tidewire import Service, event, running
whole = time.perf_counter() - started + took
print(took * 1e3, whole * 1e3, alone, peak())
"""


def memory(scale: float) -> list[Figure]:
    """Backlog and imports."""
    backlog = int(1_000_000 * scale)
    with tempfile.TemporaryDirectory() as directory:
        rss = float(_output("benchmarks.memory", directory, str(backlog)))
    times = [[float(part) for part in _run([sys.executable, "-c", _IMPORT]).split()] for _ in range(7)]
    took, whole, alone, size = (round(statistics.median(column), 1) for column in zip(*times, strict=True))
    return [
        Figure(f"consumer with a backlog of {backlog:,}", "MB RSS", "<= 80 MB", round(rss, 1), met=rss <= 80),
        Figure("import tidewire", "ms", "<= 60 ms", took, rounds=7, met=took <= 60),
        Figure("import tidewire, memory", "MB RSS", "<= 25 MB", alone, rounds=7, met=alone <= 25),
        Figure("import of what runs a service", "ms", "", whole, rounds=7),
        Figure("import of what runs a service, memory", "MB RSS", "", size, rounds=7),
    ]


def _output(module: str, *arguments: str) -> str:
    return _run([sys.executable, "-m", module, *arguments])


def _run(command: list[str]) -> str:
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()


async def _fill(directory: Path, backlog: int) -> None:
    async with shop(directory, Service("feeder")) as (app, _, _):
        for start in range(0, backlog, 1_000):
            await app.publisher.publish_all([order(n) for n in range(start, min(start + 1_000, backlog))])


async def _consume(directory: Path) -> None:
    service, enough = Service("bench"), asyncio.Event()
    seen = 0

    @service.on(OrderPlaced, on_dead_letter="continue")
    async def handle(placed: OrderPlaced) -> None:
        nonlocal seen
        seen += 1
        if seen == 20_000:
            enough.set()

    async with shop(directory, service):
        try:
            async with asyncio.timeout(60):
                await enough.wait()
        except TimeoutError:
            pass
        # Not ru_maxrss: that is inherited from whoever started this process.
        status = Path("/proc/self/status").read_text()  # noqa: ASYNC240 - the measuring is over
        peak = next(line for line in status.splitlines() if line.startswith("VmHWM"))
        print(int(peak.split()[1]) / 1024)


if __name__ == "__main__":
    if len(sys.argv) > 2 and int(sys.argv[2]):
        # Filled by a process of its own, so that what it needed is not counted.
        subprocess.run([sys.executable, "-m", "benchmarks.memory", sys.argv[1], "0", sys.argv[2]], check=True)
        asyncio.run(_consume(Path(sys.argv[1])))
    else:
        asyncio.run(_fill(Path(sys.argv[1]), int(sys.argv[3])))
