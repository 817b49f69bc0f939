"""The store in PostgreSQL: exactly-once consume, outbox rows in a transaction, and marks up to a million."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Coroutine, Sequence
from contextlib import asynccontextmanager
from hashlib import blake2b
from typing import Any

import msgspec
import psycopg

from benchmarks.measure import Figure, Sample, paired
from benchmarks.postgres import emptied, server
from benchmarks.postgres_callers import callers_rows
from benchmarks.throughput import counted
from benchmarks.work import OPTIONS, Counter, OrderPlaced, OrderSeen, order
from tidewire import Context, Service, running
from tidewire.chance import UUID7Ids
from tidewire.model import Mark, Message, Topic
from tidewire.stores.postgres import PostgresStore, open_postgres_store
from tidewire.transports.memory import open_memory_transport

__all__ = ["postgres_store"]

_AT_ONCE = 16
_HANDLERS = 32
_encode = msgspec.json.Encoder().encode
_decode = msgspec.json.Decoder(OrderPlaced).decode
_HEADERS = {
    "ce-specversion": "1.0",
    "ce-source": "bench",
    "ce-type": "bench.seen.noted",
    "ce-time": "2026-11-24T09:30:00.000000Z",
    "content-type": "application/json",
}
_TABLES = """
DROP TABLE IF EXISTS seen, twin_mark, twin_outbox;
CREATE TABLE seen (id text PRIMARY KEY, number bigint);
CREATE TABLE twin_mark (id uuid PRIMARY KEY, digest bytea);
CREATE TABLE twin_outbox (row bigserial PRIMARY KEY, id text, source text, topic text, key text, headers text, body bytea)
"""


def postgres_store(rounds: int, scale: float) -> list[Figure]:
    """Measure on the server of services-up, or on a private one that syncs every commit."""
    with server() as url:
        synchronous = _execute(url, "SHOW synchronous_commit"), _execute(url, "SHOW fsync")
        assert synchronous == (("on",), ("on",)), f"commits must be durable, not {synchronous}"
        figures = [_exactly_once(url, rounds, scale)]
        figures += _outbox_rows(url, rounds, scale)
        figures += asyncio.run(_growth(url, max(2_000, int(1_000_000 * scale))))
    return figures


def _execute(url: str, sql: str) -> Any:
    with psycopg.connect(url, autocommit=True) as connection:
        cursor = connection.execute(sql.encode())
        return cursor.fetchone() if cursor.description else None


@asynccontextmanager
async def _opened(url: str) -> AsyncIterator[PostgresStore]:
    """An empty store of the run's own."""
    place = emptied(url)
    _execute(url, _TABLES)
    _execute(url, "CHECKPOINT")
    async with open_postgres_store(f"{place}&connections={_HANDLERS}", provision=True) as store:
        yield store


def _ours(scenario: Callable[[], Coroutine[Any, Any, Sample]]) -> Callable[[], Sample]:
    return lambda: asyncio.run(scenario())


def _exactly_once(url: str, rounds: int, scale: float) -> Figure:
    """A handler with one row and one returned event through the whole runtime, its relay included, beside psycopg's
    own pipeline on as many connections."""
    total = max(320, int(12_800 * scale))

    async def trip() -> Sample:
        service, counter = Service("bench", concurrency=_HANDLERS), Counter()

        @service.on(OrderPlaced)
        async def handle(placed: OrderPlaced, context: Context) -> OrderSeen:
            await context.tx.execute("INSERT INTO seen VALUES ($1, 1)", (placed.order_id,))
            counter.add()
            return OrderSeen(placed.order_id)

        async with (
            _opened(url) as store,
            open_memory_transport() as transport,
            running(service, transport=transport, store=store, options=OPTIONS) as app,
        ):
            orders = [order(n) for n in range(total)]

            async def work() -> None:
                for start in range(0, total, 128):
                    await app.publisher.publish_all(orders[start : start + 128])
                    await counter.reach(start)
                await counter.reach(total)
                while (await store.outbox.count())[0]:
                    await asyncio.sleep(0.002)

            return await counted(total, work)

    return paired(
        "PostgreSQL, exactly once: row, mark, one outgoing event",
        ours=_ours(trip),
        native=_ours(lambda: _twin(url, total)),
        rounds=rounds,
        target=0.6,
        rate_min=3_100,
    )


async def _twin(url: str, total: int) -> Sample:
    """The same by hand: decode, row, and mark, event and COMMIT in psycopg's pipeline; nothing is relayed."""
    _execute(url, _TABLES)
    ids = UUID7Ids()
    bodies = [_encode(order(n)) for n in range(total)]
    connections = [await psycopg.AsyncConnection.connect(url, prepare_threshold=0) for _ in range(_HANDLERS)]

    async def one(number: int) -> None:
        connection = connections[number]
        for body in bodies[number::_HANDLERS]:
            placed, event_id = _decode(body), ids.event_id()
            await connection.execute("INSERT INTO seen VALUES (%s, 1)", (placed.order_id,))
            async with connection.pipeline():
                await connection.execute(
                    "INSERT INTO twin_mark VALUES (%s, %s)", (event_id, blake2b(body, digest_size=16).digest())
                )
                await connection.execute(
                    "INSERT INTO twin_outbox (id, source, topic, key, headers, body) VALUES (%s, %s, %s, %s, %s, %s)",
                    (event_id, "bench", "bench.seen", placed.order_id, _encode(_HEADERS).decode(),
                     _encode(OrderSeen(placed.order_id))),
                )  # fmt: skip
                await connection.commit()

    async def work() -> None:
        await asyncio.gather(*(one(number) for number in range(_HANDLERS)))

    try:
        return await counted(total, work)
    finally:
        for connection in connections:
            await connection.close()


def _outbox_rows(url: str, rounds: int, scale: float) -> list[Figure]:
    """A transaction with one row of the user's, beside the same with one and with three outbox rows; and those of other
    libraries, with one."""
    total = max(320, int(8_000 * scale))

    async def transactions(rows: int) -> Sample:
        async with _opened(url) as store:
            messages = [_message(f"o-{n}") for n in range(rows)]
            return await counted(total, lambda: _units(store, total, messages))

    def bound(rows: int) -> Callable[[], Sample]:
        return _ours(lambda: transactions(rows))

    return [
        paired(
            "PostgreSQL, transaction with 1 outbox row, beside one without",
            ours=bound(1),
            native=bound(0),
            rounds=rounds,
            target=0.7,
        ),
        paired(
            "PostgreSQL, transaction with 3 outbox rows, beside one with 1",
            ours=bound(3),
            native=bound(1),
            rounds=rounds,
            target=0.9,
        ),
        *callers_rows(url, _opened, [_message("o-1")], total=total, rounds=rounds),
    ]


async def _units(store: PostgresStore, total: int, messages: Sequence[Message]) -> None:
    async def some(start: int) -> None:
        for number in range(start, total, _AT_ONCE):
            unit = store.unit()
            await unit.tx.execute("INSERT INTO seen VALUES ($1, 1)", (str(number),))
            if messages:
                await store.outbox.put(unit, messages)
            await (await unit.seal())

    await asyncio.gather(*(some(start) for start in range(_AT_ONCE)))


def _message(name: str) -> Message:
    return Message(Topic("bench.seen"), name, "bench", name, {**_HEADERS, "ce-id": name}, _encode(OrderSeen(name)))


async def _growth(url: str, total: int) -> list[Figure]:
    """Marks at 1,000 and at *total*, of which a tenth are old and go, a batch at a time, while others are written."""
    async with _opened(url) as store:
        await _marked(store, 1)  # makes the scope
        await _fill(url, 1_000)
        small = await _timed(store)
        await _fill(url, total)
        large = await _timed(store)
    size = f"1,000 → {total:,} marks"
    return [
        _grown(f"PostgreSQL, mark, {size}, while old ones are pruned", large[0], small[0], 1.5),
        _grown(f"PostgreSQL, look-up of 100 marks, {size}", large[1], small[1], 1.5),
        _grown(f"PostgreSQL, prune 1,000, {size}", large[2], small[2], 3.5),
    ]


def _grown(name: str, large: float, small: float, most: float) -> Figure:
    ratio = round(large / small, 2)
    return Figure(name, "µs", f"<= {most}x", round(large, 1), round(small, 1), ratio, met=ratio <= most)


async def _marked(store: PostgresStore, count: int) -> list[Mark]:
    ids = UUID7Ids()
    marks = [Mark("bench", "handle", 0, "bench", ids.event_id()) for _ in range(count)]

    async def some(start: int) -> None:
        for mark in marks[start::_AT_ONCE]:
            unit = store.unit()
            await store.inbox.mark(unit, mark, b"d" * 16)
            await (await unit.seal())

    await asyncio.gather(*(some(start) for start in range(_AT_ONCE)))
    return marks


async def _fill(url: str, total: int) -> None:
    """Write what a service would have in weeks: version 7 ids in the order of their times."""
    _execute(
        url,
        "INSERT INTO bench.tidewire_mark (scope, at, event_id, digest) "
        "SELECT 1, n, decode(lpad(to_hex(n), 12, '0') || substr(md5(n::text), 1, 20), 'hex'), decode(md5(n::text), 'hex') "
        f"FROM generate_series(1, {total}) AS n ON CONFLICT DO NOTHING",
    )
    _execute(url, "VACUUM ANALYZE bench.tidewire_mark")
    _execute(url, "CHECKPOINT")


async def _timed(store: PostgresStore) -> tuple[float, float, float]:
    """Return µs for a mark, for a look-up of 100, and for pruning 1,000, while both go on at the same time."""
    looks: list[float] = []
    prunes: list[float] = []
    old = max(1_000, await _count(store) // 10)

    async def prune() -> None:
        while True:
            before = time.perf_counter()
            gone = await store.inbox.prune(old, 1_000)
            if gone:
                prunes.append((time.perf_counter() - before) * 1e6)
            await asyncio.sleep(0.1)

    async with asyncio.TaskGroup() as tasks:
        cleaner = tasks.create_task(prune())
        before = time.perf_counter()
        marks = await _marked(store, 4_000)
        each = (time.perf_counter() - before) / 4_000 * 1e6
        for start in range(0, 4_000, 100):
            began = time.perf_counter()
            await store.inbox.known(marks[start : start + 100])
            looks.append((time.perf_counter() - began) * 1e6)
        cleaner.cancel()
    return each, sorted(looks)[len(looks) // 2], sorted(prunes)[len(prunes) // 2]


async def _count(store: PostgresStore) -> int:
    unit = store.unit()
    count = await unit.tx.fetchval("SELECT count(*) FROM bench.tidewire_mark WHERE at < 1000000000")
    await unit.rollback()
    return int(count)
