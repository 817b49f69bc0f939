"""Four relays in processes of their own on one outbox in PostgreSQL: one is killed, one stands still beyond its lease.

Their broker is a file to which each call appends: what stands in it is what reached the broker, in that order.
Started by itself, this is one of the relays.
"""

from __future__ import annotations

import asyncio
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path
from typing import Any

from fault_rounds import Round
from postgres_rounds import campaign_server

from tidewire import Options, Service, running
from tidewire.model import Message, Receipt, Topic
from tidewire.stores.postgres import PostgresStore, open_postgres_store
from tidewire.transports.memory import open_memory_transport

__all__ = ["Books", "one_round", "run_fleet"]

LEASE = timedelta(seconds=2)
OPTIONS = Options(lease=LEASE, relay_lease=LEASE, grace=timedelta(seconds=5))
_WRITERS, _TOGETHER = 8, 5


class FileBroker:
    """A transport whose messages are lines of a file, those of one call in one write."""

    def __init__(self, inner: Any, path: Path, name: str) -> None:
        self._inner = inner
        self._name = name
        self._file = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._inner, name)

    async def publish(self, messages: Sequence[Message]) -> Sequence[Receipt]:
        lines = "".join(f"{self._name} {message.key} {message.id}\n" for message in messages).encode()
        assert len(lines) == os.write(self._file, lines)
        await asyncio.sleep(random.random() * 0.01)  # an answer takes a while
        return [Receipt(message.id, "stored") for message in messages]


async def relay(url: str, path: Path, name: str) -> None:
    """Be a relay until a signal."""
    stop = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, stop.set)
    async with (
        open_memory_transport() as inner,
        open_postgres_store(url) as store,
        running(Service(name), transport=FileBroker(inner, path, name), store=store, options=OPTIONS),
    ):
        await stop.wait()


@dataclass
class Books:
    """What was committed, by key and in order, and what reached the broker: (relay, key, id)."""

    sent: dict[str, list[str]] = field(default_factory=dict[str, list[str]])
    arrived: list[tuple[str, str, str]] = field(default_factory=list[tuple[str, str, str]])
    seconds: float = 0.0

    def read(self, path: Path) -> None:
        """Take in what reached the broker."""
        for line in path.read_text().splitlines():
            name, key, event_id = line.split(" ")
            self.arrived.append((name, key, event_id))

    def first(self) -> dict[str, list[str]]:
        """Return the ids of each key in the order in which they came first."""
        seen: dict[str, dict[str, None]] = {}
        for _, key, event_id in self.arrived:
            seen.setdefault(key, {})[event_id] = None
        return {key: [*ids] for key, ids in seen.items()}

    def relays(self) -> set[str]:
        """Return who has published something."""
        return {name for name, _, _ in self.arrived}


async def _write(
    store: PostgresStore, books: Books, *, keys: Sequence[str], events: int, chance: random.Random
) -> None:
    """Commit *events* of *keys*, which nobody else writes, a few to a unit; roll some units back."""
    count = 0
    while count < events:
        some = [(chance.choice(keys), f"{keys[0]}-{count + step}") for step in range(_TOGETHER)]
        unit = store.unit()
        await store.outbox.put(unit, [Message(Topic("t"), name, "s", key, {}, b"") for key, name in some])
        if chance.random() < 0.05:
            await unit.rollback()
            continue
        await (await unit.seal())
        count += len(some)
        for key, name in some:
            books.sent.setdefault(key, []).append(name)


def _start(url: str, path: Path, name: str) -> subprocess.Popen[bytes]:
    return subprocess.Popen([sys.executable, __file__, url, str(path), name])


async def run_fleet(url: str, path: Path, *, events: int, keys: int, seed: int = 1) -> Books:
    """Write *events* while four relays publish them and two of these fare badly; return when nothing is left."""
    books, began = Books(), time.monotonic()
    async with open_postgres_store(url, provision=True) as store:
        fleet = [_start(url, path, f"relay-{number}") for number in range(4)]
        try:
            await _until(lambda: _owners(store, 4))
            async with asyncio.TaskGroup() as tasks:
                for writer in range(_WRITERS):
                    each = events // _WRITERS
                    own = [f"k{number}" for number in range(writer, keys, _WRITERS)]
                    tasks.create_task(
                        _write(store, books, keys=own, events=each, chance=random.Random(f"{seed}-{writer}"))
                    )
                tasks.create_task(_harm(path, fleet, events))
            await _until(lambda: _emptied(store))
            books.seconds = time.monotonic() - began
            for process in fleet:
                process.send_signal(signal.SIGTERM)
            for process in fleet:
                await asyncio.to_thread(process.wait, 30)
        finally:
            for process in fleet:
                process.kill()
                process.wait()
    books.read(path)
    return books


async def _until(true: Callable[[], Awaitable[bool]]) -> None:
    """Ask other processes' doings every now and then; two minutes at most."""
    async with asyncio.timeout(120):
        while True:
            if await true():
                return
            await asyncio.sleep(0.05)


async def _owners(store: PostgresStore, number: int) -> bool:
    sql = "SELECT count(DISTINCT owner) FROM tidewire_partition WHERE until > clock_timestamp()"
    return bool((await store.access.run("counting relays", (sql, ()))).rows()[0][0] == number)


async def _emptied(store: PostgresStore) -> bool:
    return not sum(await store.outbox.count())


async def _harm(path: Path, fleet: list[subprocess.Popen[bytes]], events: int) -> None:
    """Once a part is out, some of it by each relay, kill the first and stop the second; let that one go on long after
    its lease."""

    async def some_are_out() -> bool:
        names = _published_by(path)
        return len(names) >= events // 4 and len(set(names)) == len(fleet)

    await _until(some_are_out)
    fleet[0].kill()
    fleet[1].send_signal(signal.SIGSTOP)
    await asyncio.sleep(2 * LEASE.total_seconds())
    fleet[1].send_signal(signal.SIGCONT)


def _published_by(path: Path) -> list[bytes]:
    """Return for each event on the broker the relay that brought it there."""
    lines = path.read_bytes().splitlines() if path.exists() else []
    return [line.partition(b" ")[0] for line in lines]


def one_round(seed: int) -> Round:
    """Run a fleet on 1,000 keys, on a server of its own; see ``make faults CAMPAIGN=relays``."""
    with campaign_server() as url, tempfile.TemporaryDirectory() as directory:
        books = asyncio.run(run_fleet(url, Path(directory) / "broker", events=25_000, keys=1_000, seed=seed))
    first, committed = books.first(), sum(map(len, books.sent.values()))
    wrong = [
        f"round {seed}: of key {key}, {first.get(key, [])} arrived for {sent}"
        for key, sent in books.sent.items()
        if sent != first.get(key)
    ]
    figures = {"events relayed by a fleet": committed, "published twice": len(books.arrived) - committed}
    return Round(Counter(figures), wrong)


if __name__ == "__main__":
    asyncio.run(relay(sys.argv[1], Path(sys.argv[2]), sys.argv[3]))
