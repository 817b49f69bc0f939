"""``tidewire bench``: how fast this broker is, here and now, beside what the disk itself takes for a sync."""

from __future__ import annotations

import argparse
import asyncio
import os
import tempfile
from collections.abc import Sequence
from contextlib import AsyncExitStack
from datetime import timedelta
from pathlib import Path
from typing import Any

from tidewire.chance import UUID7Ids
from tidewire.cli.exits import OK, CommandParser
from tidewire.cli.shown import Progress, emit, table
from tidewire.clock import SystemClock
from tidewire.config import masked, open_store, open_transport, settings_from
from tidewire.protocols import Store, Transport
from tidewire.rules.events import event
from tidewire.runtime.serve import Options, Running, running
from tidewire.runtime.service import Service

__all__ = ["main"]

DESCRIPTION = """\
Measure a broker from this machine, now: confirmed publishes alone and from 64 tasks, events handled per second, and
the time from publish to handler. It uses a topic and a group of its own on the broker, which stay there, empty.
"""
EPILOG = """\
examples:
  tidewire bench
  tidewire bench --broker sqlite:///data/broker.db --events 20000 --json
  tidewire bench --store            (with an exactly-once effect per event)

Machines are shared and noisy: run it twice, and compare rows of one run with each other.
"""
_TOPIC = "tidewire.bench"


@event("tidewire.bench.sent", key="key", topic=_TOPIC)
class Sent:
    """What is sent; *body* makes it as long as asked for."""

    key: str
    at: float
    body: str


def main(arguments: Sequence[str]) -> int:
    """Measure, print, and return the exit code."""
    parser = CommandParser("tidewire bench", DESCRIPTION, epilog=EPILOG)
    parser.add_argument("--broker", metavar="URL", help="the broker (default: an embedded one in a temporary folder)")
    parser.add_argument("--events", type=int, default=5_000, metavar="N", help="events for each row (default: 5000)")
    parser.add_argument("--size", type=int, default=500, metavar="BYTES", help="of an event's text (default: 500)")
    parser.add_argument("--store", action="store_true", help="handle each event with a row in a store, exactly once")
    parser.add_argument("--json", action="store_true", help="JSON on standard output")
    options = parser.parse_all(arguments)
    if options.events < 100 or options.size < 0:
        parser.error("--events is at least 100, --size at least 0")
    return asyncio.run(_measure(options))


async def _measure(options: argparse.Namespace) -> int:
    async with AsyncExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="tidewire-bench-")))
        url = settings_from(broker=options.broker).broker if options.broker else f"sqlite:///{folder}/broker.db"
        transport = await stack.enter_async_context(open_transport(url))
        store = None
        if options.store:
            store = await stack.enter_async_context(open_store(f"sqlite:///{folder}/store.db"))
        rows = await Bench(transport, store, events=options.events, size=options.size).run()
    sync = await asyncio.to_thread(_sync_seconds, folder.parent)
    if options.json:
        emit({"broker": masked(url), "events": options.events, "sync_us": round(sync * 1e6), "rows": rows})
        return OK
    print(f"{masked(url)}; one sync of the disk under {folder.parent} takes {sync * 1e6:,.0f} µs\n")
    shown = [(row["name"], f"{row['value']:,.0f}" if row["value"] >= 10 else f"{row['value']:.2f}", row["unit"])
             for row in rows]  # fmt: skip
    table(("measured", "", ""), shown, right=(1,))
    return OK


class Bench:
    """One run against one broker."""

    def __init__(self, transport: Transport, store: Store | None, *, events: int, size: int) -> None:
        self._transport = transport
        self._store = store
        self._events = events
        self._body = "x" * size
        self._loop = asyncio.get_running_loop()
        self._took: list[float] = []
        self._all = asyncio.Event()
        self._wanted = 0
        self._progress = Progress("events published:")

    async def run(self) -> list[dict[str, Any]]:
        """Measure one thing after the other and return the rows."""
        service = Service(f"tidewire-bench-{UUID7Ids().event_id()[-12:]}")
        service.on(Sent, on_dead_letter="continue")(self._receive if self._store is None else self._receive_once)
        options = Options(provision=True, grace=timedelta(seconds=5))
        rows: list[dict[str, Any]] = []
        async with running(service, transport=self._transport, store=self._store, options=options) as app:
            if self._store is not None:
                unit = self._store.unit()
                await unit.tx.execute("CREATE TABLE bench (key TEXT)")
                await (await unit.seal())
            few = min(500, self._events)
            self._expect(few)
            rate = few / await self._publish(app, few, tasks=1)
            rows.append(_row("confirmed publish, one at a time", rate, "events/s"))
            await self._all.wait()
            self._expect(self._events)
            started = self._loop.time()
            rate = self._events / await self._publish(app, self._events, tasks=64)
            rows.append(_row("confirmed publish, from 64 tasks", rate, "events/s"))
            await self._all.wait()
            handled = self._events / (self._loop.time() - started)
            what = "published, handled and settled" if self._store is None else "the same, with a row once each"
            rows.append(_row(what, handled, "events/s"))
            rows += await self._latency(app)
        self._progress.end()
        return rows

    async def _latency(self, app: Running) -> list[dict[str, Any]]:
        """Publish 100 events, one every 5 ms, and say how long they took to their handler."""
        self._expect(100)
        for number in range(100):
            await app.publisher.publish(self._event(number))
            await asyncio.sleep(0.005)
        await self._all.wait()
        took = sorted(self._took)
        return [
            _row("publish to handler, median", took[50] * 1e3, "ms"),
            _row("publish to handler, 99 of 100 within", took[98] * 1e3, "ms"),
        ]

    def _expect(self, count: int) -> None:
        self._took.clear()
        self._all.clear()
        self._wanted = count

    async def _publish(self, app: Running, count: int, *, tasks: int) -> float:
        """Publish *count* events from *tasks* tasks and return the seconds that took."""
        numbers = iter(range(count))

        async def work() -> None:
            for number in numbers:
                await app.publisher.publish(self._event(number))
                self._progress.at(number)

        started = self._loop.time()
        await asyncio.gather(*(work() for _ in range(tasks)))
        return self._loop.time() - started

    def _event(self, number: int) -> Sent:
        return Sent(key=str(number % 100), at=self._loop.time(), body=self._body)

    async def _receive(self, sent: Sent) -> None:
        self._took.append(self._loop.time() - sent.at)
        if len(self._took) >= self._wanted:
            self._all.set()

    async def _receive_once(self, sent: Sent, context: Any) -> None:
        await context.tx.execute("INSERT INTO bench VALUES (?)", (sent.key,))
        await self._receive(sent)


def _row(name: str, value: float, unit: str) -> dict[str, Any]:
    return {"name": name, "value": value, "unit": unit}


def _sync_seconds(folder: Path) -> float:
    """Return the median time of a small write and its sync under *folder*."""
    clock = SystemClock()
    took: list[float] = []
    with tempfile.TemporaryFile(dir=folder) as file:
        for _ in range(50):
            started = clock.ticks()
            file.write(b"x" * 4_096)
            file.flush()
            os.fdatasync(file.fileno())
            took.append((clock.ticks() - started) / 1e9)
    return sorted(took)[len(took) // 2]
