"""How things are measured: A and B in turn, medians, and CPU from the operating system's accounting."""

from __future__ import annotations

import resource
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

__all__ = ["Figure", "Sample", "paired", "sample"]


@dataclass(frozen=True)
class Sample:
    """One run: events per second, and CPU µs per event of this process."""

    rate: float
    cpu_us: float


@dataclass
class Figure:
    """One line of the table. *ratio* is ours over native (or as *unit* says); *target* is what it should reach.

    *spread* is the smallest and the largest ratio of a round, *native_cpu* the twin's CPU µs an event, which tells
    more than rates where others use the machine; printed, and not in the file.
    """

    name: str
    unit: str
    target: str
    ours: float
    native: float | None = None
    ratio: float | None = None
    cpu_us_per_event: float | None = None
    rounds: int = 1
    met: bool | None = None
    spread: tuple[float, float] | None = None
    native_cpu: float | None = None

    def as_json(self) -> dict[str, Any]:
        """Return the object that ``build/bench.json`` holds."""
        return {name: value for name, value in self.__dict__.items() if name not in ("spread", "native_cpu")}


def sample(count: int, run: Callable[[], Any]) -> Sample:
    """Run *run*, which handles *count* events, and account for it."""
    before, started = _cpu(), time.perf_counter()
    run()
    seconds, cpu = time.perf_counter() - started, _cpu() - before
    return Sample(count / seconds, cpu / count * 1e6)


def paired(
    name: str,
    *,
    ours: Callable[[], Sample],
    native: Callable[[], Sample],
    rounds: int,
    target: float,
    cpu_max: float | None = None,
    rate_min: float | None = None,
) -> Figure:
    """Run both in turn, once to warm up and *rounds* times counted; the ratio is the median of the pairs' ratios."""
    ours(), native()
    pairs = [(ours(), native()) for _ in range(rounds)]
    ratios = sorted(a.rate / b.rate for a, b in pairs)
    ratio = statistics.median(ratios)
    cpu = statistics.median(a.cpu_us for a, _ in pairs)
    rate = statistics.median(a.rate for a, _ in pairs)
    met = ratio >= target and (cpu_max is None or cpu <= cpu_max) and (rate_min is None or rate > rate_min)
    aim = f">= {target}x" + (f", CPU <= {cpu_max} µs" if cpu_max is not None else "")
    aim += f", > {rate_min:,.0f}/s" if rate_min is not None else ""
    return Figure(
        name,
        "events/s",
        aim,
        ours=round(rate),
        native=round(statistics.median(b.rate for _, b in pairs)),
        ratio=round(ratio, 3),
        cpu_us_per_event=round(cpu, 1),
        rounds=rounds,
        met=met,
        spread=(round(ratios[0], 3), round(ratios[-1], 3)),
        native_cpu=round(statistics.median(b.cpu_us for _, b in pairs), 1),
    )


def _cpu() -> float:
    usage = resource.getrusage(resource.RUSAGE_SELF)
    return usage.ru_utime + usage.ru_stime
