"""The broker in PostgreSQL: durable publish, and publish → handle → ack, beside a log that is written by hand."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import asynccontextmanager
from typing import Any

import msgspec
import psycopg

from benchmarks.measure import Figure, Sample, paired, sample
from benchmarks.postgres import emptied, server
from benchmarks.throughput import counted, published_in_batches, published_one_by_one
from benchmarks.work import OPTIONS, Counter, OrderPlaced, order
from tidewire import Running, Service, running
from tidewire.transports.postgres import open_postgres_transport

__all__ = ["postgres_broker"]

Scenario = Callable[[str, int], Coroutine[Any, Any, Sample]]
_encode = msgspec.json.Encoder().encode
_TABLES = """
CREATE SCHEMA IF NOT EXISTS bench;
DROP TABLE IF EXISTS bench.twin_log, bench.twin_cursor;
CREATE TABLE bench.twin_log (seq bigserial PRIMARY KEY, topic bigint, id text, key text, headers text, body bytea);
CREATE INDEX ON bench.twin_log (topic, seq);
CREATE UNIQUE INDEX ON bench.twin_log (topic, id);
CREATE TABLE bench.twin_cursor (pos bigint);
INSERT INTO bench.twin_cursor VALUES (0);
"""
_INSERT = "INSERT INTO bench.twin_log (topic, id, key, headers, body) VALUES (1, %s, %s, %s, %s)"


def postgres_broker(rounds: int, scale: float) -> list[Figure]:
    """Measure on the server of services-up, or on a private one that syncs every commit."""
    with server() as url:
        figures: list[Figure] = []
        for flight, count in ((1, 500), (64, 6_000), (100, 10_000)):
            total = max(200, int(count * scale))
            figures.append(
                paired(
                    f"PostgreSQL broker: publish, {'batches of 100' if flight == 100 else f'{flight} at a time'}",
                    ours=_ours(url, _batches if flight == 100 else _concurrent(flight), total),
                    native=lambda total=total, flight=flight: sample(total, lambda: _by_hand(url, total, flight)),
                    rounds=rounds,
                    target=0.5,
                )
            )
        total = max(200, int(6_000 * scale))
        figures.append(
            paired(
                "PostgreSQL broker: publish, handle, ack; 100 in flight",
                ours=_ours(url, _trip, total),
                native=lambda: sample(total, lambda: _by_hand(url, total, 100, consume=True)),
                rounds=rounds,
                target=0.3,
            )
        )
    return figures


def _ours(url: str, scenario: Scenario, total: int) -> Callable[[], Sample]:
    def run() -> Sample:
        return asyncio.run(scenario(emptied(url), total))

    return run


@asynccontextmanager
async def _shop(url: str, service: Service) -> AsyncIterator[Running]:
    async with (
        open_postgres_transport(url) as transport,
        running(service, transport=transport, options=OPTIONS) as app,
    ):
        yield app


def _concurrent(tasks: int) -> Scenario:
    async def publish(url: str, total: int) -> Sample:
        async with _shop(url, Service("bench")) as app:
            return await published_one_by_one(app, total, tasks)

    return publish


async def _batches(url: str, total: int) -> Sample:
    async with _shop(url, Service("bench")) as app:
        return await published_in_batches(app, total)


async def _trip(url: str, total: int) -> Sample:
    service, counter = Service("bench"), Counter()

    @service.on(OrderPlaced, on_dead_letter="continue")
    async def handle(placed: OrderPlaced) -> None:
        counter.add()

    async with _shop(url, service) as app:
        orders = [order(n) for n in range(total)]

        async def work() -> None:
            for start in range(0, total, 100):
                await app.publisher.publish_all(orders[start : start + 100])
                await counter.reach(start + len(orders[start : start + 100]))

        return await counted(total, work)


def _by_hand(url: str, total: int, together: int, *, consume: bool = False) -> None:
    """Append, and read and move a cursor, with psycopg alone; nothing is leased, fenced, held or looked up again."""
    with psycopg.connect(url, autocommit=True) as connection:
        connection.execute(_TABLES)
        for start in range(0, total, together):
            orders = [order(n) for n in range(start, min(start + together, total))]
            rows = [(f"id-{one.order_id}", one.order_id, "{}", _encode(one)) for one in orders]
            with connection.transaction(), connection.cursor() as cursor:
                cursor.executemany(_INSERT, rows)
            if consume:
                found = connection.execute(
                    "SELECT seq, body FROM bench.twin_log WHERE topic = 1 AND seq > %s ORDER BY seq LIMIT 100", (start,)
                ).fetchall()
                for _, body in found:
                    msgspec.json.decode(body, type=OrderPlaced)
                connection.execute("UPDATE bench.twin_cursor SET pos = %s", (found[-1][0],))
