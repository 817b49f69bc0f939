"""The relay on PostgreSQL: how fast it empties an outbox, how soon after the commit, and what size does to it.

On the server that ``TIDEWIRE_TEST_POSTGRESQL`` names, else on a private one with every commit synced.
"""

from __future__ import annotations

import asyncio
import statistics
import tempfile
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from datetime import timedelta
from pathlib import Path

import msgspec
import psycopg

from benchmarks.measure import Figure, Sample, sample
from benchmarks.native import NativeLog
from benchmarks.postgres import emptied, server
from benchmarks.relay import Opened, embedded_broker, null_publisher
from benchmarks.share import Nothing
from benchmarks.throughput import counted
from benchmarks.work import order
from tidewire import Service, running, transaction
from tidewire.model import Message, Receipt
from tidewire.runtime.serve import relay_once
from tidewire.stores.postgres import PostgresStore, open_postgres_store

__all__ = ["postgres_relay"]

_LONGEST, _HOUR = timedelta(seconds=300), timedelta(hours=1)
_BATCH, _SMALL = 512, 1_000
_PER_SECOND = 1_000
_decode_headers = msgspec.json.Decoder(dict[str, str]).decode
_SELECT = b'SELECT "row", id, aggregateid, headers, payload FROM bench.tidewire_outbox ORDER BY part, "row" LIMIT 512'
_DELETE = b'DELETE FROM bench.tidewire_outbox WHERE "row" = ANY(%s)'
_GROW = (
    b"INSERT INTO bench.tidewire_outbox (part, id, source, aggregatetype, aggregateid, type, headers, payload) "
    b"SELECT n %% 64, md5(n::text), 's', 'bench.order', n::text, 't', '{}', 'x' FROM generate_series(1, %s) AS n"
)
_OLD_MARKS = (
    b"INSERT INTO bench.tidewire_mark (scope, at, event_id, digest) "
    b"SELECT 1, n, decode(md5(n::text), 'hex'), 'x' FROM generate_series(1, 100000) AS n"
)


def postgres_relay(rounds: int, scale: float) -> list[Figure]:
    """Measure on the server of services-up, or on a private one that syncs every commit."""
    with server() as url:
        return [
            _drained(url, "to the embedded broker", embedded_broker, least=5_200, rounds=rounds, scale=scale),
            _drained(url, "to a null publisher", null_publisher, least=20_000, rounds=rounds, scale=scale),
            *asyncio.run(_latency(url, max(1_000, int(10_000 * scale)))),
            *asyncio.run(_growth(url, int(1_000_000 * scale))),
        ]


@asynccontextmanager
async def _store(url: str) -> AsyncIterator[PostgresStore]:
    """Open a store with empty tables of its own."""
    async with open_postgres_store(emptied(url), provision=True) as store:
        yield store


def _drained(url: str, name: str, opened: Opened, *, least: int, rounds: int, scale: float) -> Figure:
    """One relay empties an outbox, and a loop by hand does the same: select, publish, delete."""
    count = max(_BATCH, int(20_000 * scale))
    pairs = [asyncio.run(_pair(url, opened, count)) for _ in range(rounds)]
    ratios = sorted(ours.rate / native.rate for ours, native in pairs)
    rate = statistics.median(ours.rate for ours, _ in pairs)
    return Figure(
        f"PostgreSQL: relay {name}",
        "events/s",
        f"> {least:,}/s",
        round(rate),
        round(statistics.median(native.rate for _, native in pairs)),
        round(statistics.median(ratios), 3),
        cpu_us_per_event=round(statistics.median(ours.cpu_us for ours, _ in pairs), 1),
        rounds=rounds,
        met=rate > least,
        spread=(round(ratios[0], 3), round(ratios[-1], 3)),
        native_cpu=round(statistics.median(native.cpu_us for _, native in pairs), 1),
    )


async def _pair(url: str, opened: Opened, count: int) -> tuple[Sample, Sample]:
    messages = await _messages(count)
    async with _store(url) as store:
        with tempfile.TemporaryDirectory() as directory:
            async with opened(Path(directory)) as transport:

                async def work() -> None:
                    assert await relay_once(store, transport, owner="bench", longest=_LONGEST, provision=True) == 0

                await _fill(store, messages)  # nobody has a lease: nothing of it is in memory
                ours = await counted(count, work)
            await _fill(store, messages)
            log = None if opened is null_publisher else NativeLog(Path(directory) / "native.db")
            native = sample(count, lambda: _by_hand(store.place.url, log))
    return ours, native


async def _messages(count: int) -> list[Message]:
    async with running(Service("bench"), transport=Nothing()) as app:
        return [app.publisher.message(order(number)) for number in range(count)]


async def _fill(store: PostgresStore, messages: Sequence[Message]) -> None:
    for start in range(0, len(messages), _BATCH):
        unit = store.unit()
        await store.outbox.put(unit, messages[start : start + _BATCH])
        await (await unit.seal())


def _by_hand(url: str, log: NativeLog | None) -> None:
    """Empty the outbox with psycopg alone, into *log* if there is one; nothing is leased, scheduled or fenced."""
    with psycopg.connect(url, autocommit=True) as connection:
        while rows := connection.execute(_SELECT).fetchall():
            for row in rows:
                _decode_headers(row[3])
            if log is not None:
                log.write([(1, 0, *row[1:]) for row in rows])
            connection.execute(_DELETE, ([row[0] for row in rows],))


class _Timed(Nothing):
    """A null publisher that notes when each message reached it."""

    def __init__(self) -> None:
        super().__init__()
        self.at: dict[str, float] = {}

    async def publish(self, messages: Sequence[Message]) -> list[Receipt]:
        now = time.perf_counter()
        self.at.update((message.id, now) for message in messages)
        return await super().publish(messages)


async def _latency(url: str, count: int) -> list[Figure]:
    """Commit single events at a steady pace and note how long after its commit each is published."""
    committed: dict[str, float] = {}
    timed = _Timed()
    async with _store(url) as store, running(Service("bench"), transport=timed, store=store) as app:

        async def one(number: int) -> None:
            async with transaction(store) as tx:
                event_id = await app.publisher.publish(order(number), tx=tx)
            committed[event_id] = time.perf_counter()

        await one(0)
        started = time.perf_counter()
        async with asyncio.TaskGroup() as tasks:
            for number in range(count):
                await asyncio.sleep(max(0.0, started + number / _PER_SECOND - time.perf_counter()))
                tasks.create_task(one(number))
        pace = count / (time.perf_counter() - started)
        async with asyncio.timeout(60):
            while len(timed.at) <= count:
                await asyncio.sleep(0.01)
    # What was published before its committer heard of the commit took no time.
    took = sorted(max(0.0, timed.at[event_id] - at) * 1e3 for event_id, at in committed.items())
    middle, late = round(statistics.median(took), 2), round(took[int(len(took) * 0.99)], 2)
    return [
        Figure("PostgreSQL: commit to published, p50", "ms", "", middle),
        Figure(f"PostgreSQL: commit to published, p99, {pace:,.0f}/s", "ms", "< 25 ms", late, met=late < 25),
    ]


async def _growth(url: str, total: int) -> list[Figure]:
    """Append, claim and look with 1,000 rows and with *total* waiting, while old marks are being pruned."""
    messages = await _messages(_SMALL)
    async with _store(url) as store:
        assert await store.backlog.lease("bench", _HOUR)
        await _fill(store, messages)
        with psycopg.connect(store.place.url, autocommit=True) as connection:
            connection.execute(_OLD_MARKS)
            few = await _while_pruning(store, messages)
            await asyncio.to_thread(connection.execute, _GROW, (total,))
        many = await _while_pruning(store, messages)
    units = ("µs/row", "µs/row", "µs")
    return [
        Figure(
            f"PostgreSQL: {name}, {_SMALL:,} → {total:,} rows",
            unit,
            f"<= {most}x",
            after,
            before,
            round(after / before, 2),
            met=after <= most * before,
        )
        for name, unit, before, after, most in zip(
            ("append", "claim and done", "look"), units, few, many, (1.5, 1.5, 3.5), strict=True
        )
    ]


async def _while_pruning(store: PostgresStore, messages: Sequence[Message]) -> tuple[float, float, float]:
    over = asyncio.Event()

    async def prune() -> None:
        while not over.is_set():
            await store.inbox.prune(1 << 60, 1_000)
            await asyncio.sleep(0.05)

    async with asyncio.TaskGroup() as tasks:
        tasks.create_task(prune())
        costs = await _costs(store, messages)
        over.set()
    return costs


async def _costs(store: PostgresStore, messages: Sequence[Message]) -> tuple[float, float, float]:
    """What it costs to append a row, to claim and delete one, and to look at the head of the outbox."""
    backlog = store.backlog
    behind = (await backlog.claim("bench", after=0, limit=1))[0].row

    async def fill() -> None:
        await _fill(store, messages[:_BATCH])

    async def claim() -> None:
        rows = await backlog.claim("bench", after=0, limit=_BATCH)
        assert await backlog.done("bench", [row.row for row in rows])

    async def look() -> None:
        await backlog.claim("bench", after=behind, limit=1)

    appended, claimed = await _medians(fill, claim)
    looked, _ = await _medians(look)
    return round(appended / _BATCH, 2), round(claimed / _BATCH, 2), round(looked, 1)


async def _medians(*acts: Callable[[], Awaitable[None]]) -> tuple[float, float]:
    """Do *acts* in turn, and return the medians of the microseconds that the first and the last take."""
    times: list[list[float]] = [[] for _ in acts]
    for _ in range(21):
        for act, took in zip(acts, times, strict=True):
            before = time.perf_counter()
            await act()
            took.append((time.perf_counter() - before) * 1e6)
    return statistics.median(times[0]), statistics.median(times[-1])
