"""Run the benchmarks, print the table, write ``build/bench.json``."""

from __future__ import annotations

import argparse
import json
import os
import platform
import sqlite3
import sys
import time
from collections.abc import Callable
from pathlib import Path

from benchmarks.commands import commands
from benchmarks.growth import growth
from benchmarks.kafka import kafka
from benchmarks.latency import latency
from benchmarks.measure import Figure
from benchmarks.memory import memory
from benchmarks.postgres_broker import postgres_broker
from benchmarks.postgres_relay import postgres_relay
from benchmarks.postgres_store import postgres_store
from benchmarks.rabbitmq import rabbitmq
from benchmarks.relay import relay
from benchmarks.share import share
from benchmarks.throughput import exactly_once, outbox_rows, publish, whole_path
from tidewire.testing.servers.processes import NoServer

PARTS = (
    "rates",
    "share",
    "relay",
    "postgres-relay",
    "latency",
    "growth",
    "memory",
    "commands",
    "kafka",
    "rabbitmq",
    "postgres-store",
    "postgres-broker",
)


def _with_server(name: str, measure: Callable[[], list[Figure]]) -> list[Figure]:
    """Measure what needs the server called *name*, or say loudly that there is none."""
    try:
        return measure()
    except NoServer as error:
        print(f"!!! NOT MEASURED: {name}: {error}", file=sys.stderr)
        return []


def main() -> int:
    """Run everything, or what is named."""
    parser = argparse.ArgumentParser(prog="benchmarks")
    parser.add_argument("names", nargs="*", help=f"parts to run: {', '.join(PARTS)}")
    parser.add_argument("--quick", action="store_true", help="fewer events and rounds")
    parser.add_argument("--scale", type=float, help="factor on the numbers of events")
    parser.add_argument("--output", type=Path, default=Path("build/bench.json"))
    arguments = parser.parse_args()
    started = time.perf_counter()
    rounds = 2 if arguments.quick else 5
    scale = arguments.scale or (0.2 if arguments.quick else 1.0)
    wanted = set(arguments.names or PARTS)
    if (load := os.getloadavg()[0]) > 0.5:
        print(f"this machine is busy (load {load:.1f}): rates and latencies are low, and so may be their ratios")
    print(f"Python {platform.python_version()}, SQLite {sqlite3.sqlite_version}, WAL, synchronous=FULL, 1 KiB events")
    figures: list[Figure] = []
    if "rates" in wanted:
        figures += show(publish(rounds, scale) + whole_path(rounds, scale))
        figures += show([exactly_once(rounds, scale), *outbox_rows(rounds, scale)])
    if "share" in wanted:
        figures += show(share(rounds, scale))
    if "relay" in wanted:
        figures += show(relay(rounds, scale))
    if "postgres-relay" in wanted:
        figures += show(_with_server("PostgreSQL", lambda: postgres_relay(rounds, scale)))
    if "latency" in wanted:
        figures += show(latency(scale))
    if "growth" in wanted:
        figures += show(growth(scale))
    if "memory" in wanted:
        figures += show(memory(scale))
    if "commands" in wanted:
        figures += show(commands(scale))
    if "postgres-store" in wanted:
        figures += show(_with_server("PostgreSQL", lambda: postgres_store(rounds, scale)))
    if "postgres-broker" in wanted:
        figures += show(_with_server("PostgreSQL", lambda: postgres_broker(rounds, scale)))
    if "kafka" in wanted:
        figures += show(_with_server("Kafka", lambda: kafka(rounds, scale)))
    if "rabbitmq" in wanted:
        figures += show(_with_server("RabbitMQ", lambda: rabbitmq(rounds, scale)))
    arguments.output.parent.mkdir(parents=True, exist_ok=True)
    arguments.output.write_text(json.dumps([figure.as_json() for figure in figures], indent=1) + "\n")
    missed = [figure.name for figure in figures if figure.met is False]
    print(f"{time.perf_counter() - started:.0f} s")
    print(f"{len(figures)} figures, {len(missed)} short of their target{': ' if missed else ''}{'; '.join(missed)}")
    return 0


def show(figures: list[Figure]) -> list[Figure]:
    """Print *figures* as rows and return them."""
    for figure in figures:
        native = "" if figure.native is None else f"  native {figure.native:>9,}"
        ratio = "" if figure.ratio is None else f"  ratio {figure.ratio:>6}"
        ratio += "" if figure.spread is None else f" ({figure.spread[0]} to {figure.spread[1]})"
        cpu = "" if figure.cpu_us_per_event is None else f"  {figure.cpu_us_per_event:>6} µs CPU"
        cpu += "" if figure.native_cpu is None else f" (native {figure.native_cpu})"
        mark = {True: "met", False: "SHORT", None: ""}[figure.met]
        print(f"{figure.name:<44}{figure.ours:>10,} {figure.unit:<10}{native}{ratio}{cpu}  [{figure.target}] {mark}")
        sys.stdout.flush()
    return figures


if __name__ == "__main__":
    sys.exit(main())
