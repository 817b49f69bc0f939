"""The command line: how soon it says something, and how soon it finds one event among a million."""

from __future__ import annotations

import asyncio
import json
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from benchmarks.measure import Figure
from tidewire.model import GroupSpec, Message, Topic, TopicSpec
from tidewire.transports.sqlite import open_sqlite_transport

__all__ = ["commands"]

BARE = """
import argparse
parser = argparse.ArgumentParser(prog="bare", description="The same list of commands, and nothing else.")
parsers = parser.add_subparsers()
for name in "bench check demo describe dev dlq doctor find groups new outbox publish replay run tail topics trace".split():
    parsers.add_parser(name, help="what it does, in a line of about the same length")
parser.print_help()
"""


def commands(scale: float) -> list[Figure]:
    """Time ``tidewire --help`` beside a bare argparse program, and ``tidewire find`` at 10⁶ events (scaled)."""
    ours: list[float] = []
    bare: list[float] = []
    for _ in range(15):  # in turn, so that both meet the same machine
        ours.append(_seconds([sys.executable, "-m", "tidewire.cli", "--help"]))
        bare.append(_seconds([sys.executable, "-c", BARE]))
    ratio = statistics.median(ours) / statistics.median(bare)
    total = int(1_000_000 * scale)
    with tempfile.TemporaryDirectory() as directory:
        path = Path(directory) / "broker.db"
        asyncio.run(_fill(path, total))
        command = [sys.executable, "-m", "tidewire.cli", "find", f"id-{total // 2}", "--broker", f"sqlite:///{path}"]
        found = min(_seconds(command) for _ in range(5))
        answer = subprocess.run([*command, "--json"], capture_output=True, text=True, check=True)
        assert len(json.loads(answer.stdout)["found"]) == 1
    return [
        Figure(
            "tidewire --help, beside bare argparse",
            "ms",
            "<= 1.5x",
            round(statistics.median(ours) * 1e3, 1),
            round(statistics.median(bare) * 1e3, 1),
            round(ratio, 2),
            met=ratio <= 1.5,
        ),
        Figure(f"tidewire find among {total:,} events", "ms", "<= 1 s", round(found * 1e3, 1), met=found <= 1.0),
    ]


async def _fill(path: Path, total: int) -> None:
    async with open_sqlite_transport(path) as transport:
        await transport.provision([TopicSpec("bench.seen")], [GroupSpec("reader", ["bench.seen"])])
        for start in range(0, total, 2_000):
            await transport.publish(
                [
                    Message(Topic("bench.seen"), f"id-{number}", "bench", str(number), {"ce-type": "bench.seen"}, b"{}")
                    for number in range(start, min(start + 2_000, total))
                ]
            )


def _seconds(command: list[str]) -> float:
    started = time.perf_counter()
    subprocess.run(command, check=True, capture_output=True)
    return time.perf_counter() - started
