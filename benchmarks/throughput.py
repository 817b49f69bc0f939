"""Rates beside their native twins."""

from __future__ import annotations

import asyncio
import tempfile
from collections.abc import Awaitable, Callable, Coroutine
from pathlib import Path
from typing import Any

from benchmarks.measure import Figure, Sample, paired, sample
from benchmarks.native import NativeLog, NativeStore
from benchmarks.work import Counter, OrderPlaced, OrderSeen, order, shop
from tidewire import Context, Running, Service, transaction
from tidewire.stores.sqlite import open_sqlite_store

__all__ = ["exactly_once", "outbox_rows", "publish", "whole_path"]

Scenario = Callable[[Path, int], Coroutine[Any, Any, Sample]]


def ours(scenario: Scenario, count: int) -> Callable[[], Sample]:
    """Return a run of *scenario* in a fresh directory."""

    def run() -> Sample:
        with tempfile.TemporaryDirectory() as directory:
            return asyncio.run(scenario(Path(directory), count))

    return run


def native(work: Callable[[Path], Callable[[], None]], count: int) -> Callable[[], Sample]:
    """Return a run of a twin in a fresh directory; setting up is not counted."""

    def run() -> Sample:
        with tempfile.TemporaryDirectory() as directory:
            return sample(count, work(Path(directory)))

    return run


async def counted(count: int, work: Callable[[], Awaitable[None]]) -> Sample:
    """Account for an awaited *work*."""
    import resource
    import time

    usage = resource.getrusage(resource.RUSAGE_SELF)
    started = time.perf_counter()
    await work()
    seconds = time.perf_counter() - started
    after = resource.getrusage(resource.RUSAGE_SELF)
    cpu = after.ru_utime + after.ru_stime - usage.ru_utime - usage.ru_stime
    return Sample(count / seconds, cpu / count * 1e6)


async def published_one_by_one(app: Running, total: int, tasks: int) -> Sample:
    """Publish *total* orders by so many *tasks*, each of which waits for one before the next."""
    await app.publisher.publish(order(0))
    orders = [order(n) for n in range(total)]

    async def one(start: int) -> None:
        for each in orders[start::tasks]:
            await app.publisher.publish(each)

    async def work() -> None:
        await asyncio.gather(*(one(start) for start in range(tasks)))

    return await counted(total, work)


async def published_in_batches(app: Running, total: int) -> Sample:
    """Publish *total* orders, a hundred a call."""
    await app.publisher.publish(order(0))
    orders = [order(n) for n in range(total)]

    async def work() -> None:
        for start in range(0, total, 100):
            await app.publisher.publish_all(orders[start : start + 100])

    return await counted(total, work)


def publish(rounds: int, scale: float) -> list[Figure]:
    """Durable publish by 1 and by 64 tasks, and in batches of 100."""
    figures: list[Figure] = []
    for tasks, count, target in ((1, 1_500, 0.5), (64, 8_000, 0.5)):
        total = int(count * scale)

        async def concurrent(directory: Path, total: int, tasks: int = tasks) -> Sample:
            async with shop(directory, Service("bench")) as (app, _, _):
                return await published_one_by_one(app, total, tasks)

        def twin(directory: Path, total: int = total, tasks: int = tasks) -> Callable[[], None]:
            return _publishes(directory, total, tasks)

        figures.append(
            paired(
                f"publish, {tasks} at a time",
                ours=ours(concurrent, total),
                native=native(twin, total),
                rounds=rounds,
                target=target,
            )
        )

    async def batches(directory: Path, total: int) -> Sample:
        async with shop(directory, Service("bench")) as (app, _, _):
            return await published_in_batches(app, total)

    total = int(20_000 * scale)
    figures.append(
        paired(
            "publish, batches of 100",
            ours=ours(batches, total),
            native=native(lambda directory: _publishes(directory, total, 100), total),
            rounds=rounds,
            target=0.5,
            cpu_max=35.0,
        )
    )
    return figures


def whole_path(rounds: int, scale: float) -> list[Figure]:
    """Publish → handle → ack, one and a hundred in flight, beside the bare append."""
    figures: list[Figure] = []
    for flight, count, target, cpu_max in ((1, 1_000, 0.5, None), (100, 20_000, 0.3, 49.0)):
        total = int(count * scale)

        async def trip(directory: Path, total: int, flight: int = flight) -> Sample:
            service, counter = Service("bench"), Counter()

            @service.on(OrderPlaced, on_dead_letter="continue")
            async def handle(placed: OrderPlaced) -> None:
                counter.add()

            async with shop(directory, service) as (app, _, _):
                orders = [order(n) for n in range(total)]

                async def work() -> None:
                    for start in range(0, total, flight):
                        await app.publisher.publish_all(orders[start : start + flight])
                        if start + flight < total and flight == 1:
                            await counter.reach(start + flight)
                        elif start >= flight:
                            await counter.reach(start)  # one batch in the shop while the next is stored
                    await counter.reach(total)

                return await counted(total, work)

        figures.append(
            paired(
                f"publish, handle, ack; {flight} in flight",
                ours=ours(trip, total),
                native=native(lambda directory, total=total, flight=flight: _appends(directory, total, flight), total),
                rounds=rounds,
                target=target,
                cpu_max=cpu_max,
            )
        )
    return figures


def exactly_once(rounds: int, scale: float) -> Figure:
    """A handler that writes a row and returns an event, exactly once, beside the same SQL by hand."""
    total = int(6_400 * scale) // 64 * 64

    async def trip(directory: Path, total: int) -> Sample:
        service, counter = Service("bench"), Counter()

        @service.on(OrderPlaced)
        async def handle(placed: OrderPlaced, context: Context) -> OrderSeen:
            await context.tx.execute("INSERT INTO seen VALUES (?, 1)", (placed.order_id,))
            counter.add()
            return OrderSeen(placed.order_id)

        async with shop(directory, service, store=True) as (app, transport, store):
            async with transaction(store) as tx:
                await tx.execute("CREATE TABLE seen (id TEXT PRIMARY KEY, number INTEGER)")
            orders = [order(n) for n in range(total)]

            async def work() -> None:
                for start in range(0, total, 64):
                    await app.publisher.publish_all(orders[start : start + 64])
                    if start >= 64:
                        await counter.reach(start)
                await counter.reach(total)
                while (await store.outbox.count())[0] or (await transport.stats("bench.order", "bench")).ready:
                    await asyncio.sleep(0.002)

            return await counted(total, work)

    def twin(directory: Path) -> Callable[[], None]:
        store, orders = NativeStore(directory), [order(n) for n in range(total)]
        return lambda: store.handle(orders, 64)

    return paired(
        "exactly once: row and one outgoing event",
        ours=ours(trip, total),
        native=native(twin, total),
        rounds=rounds,
        target=0.6,
        cpu_max=None,
    )


def outbox_rows(rounds: int, scale: float) -> list[Figure]:
    """A transaction with 1 and with 3 outbox rows beside the same transaction without, in the same store."""
    figures: list[Figure] = []
    total = int(1_000 * scale)
    for rows, target in ((1, 0.95), (3, 0.80)):

        async def transactions(directory: Path, total: int, rows: int) -> Sample:
            async with shop(directory, Service("bench"), store=True) as (app, _, _):
                async with open_sqlite_store(directory / "own.db") as store:
                    async with transaction(store) as tx:
                        await tx.execute("CREATE TABLE seen (id INTEGER)")
                    messages = [app.publisher.message(OrderSeen(f"o-{n}")) for n in range(max(rows, 1))]

                    async def work() -> None:
                        for number in range(total):
                            unit = store.unit()
                            await unit.tx.execute("INSERT INTO seen VALUES (?)", (number,))
                            if rows:
                                await store.outbox.put(unit, messages)
                            await (await unit.seal())

                    return await counted(total, work)

        def bound(rows: int) -> Callable[[], Sample]:
            async def run(directory: Path, total: int) -> Sample:
                return await transactions(directory, total, rows)

            return ours(run, total)

        figures.append(
            paired(
                f"transaction with {rows} outbox row{'s' if rows > 1 else ''}",
                ours=bound(rows),
                native=bound(0),
                rounds=rounds,
                target=target,
            )
        )
    return figures


def _publishes(directory: Path, total: int, batch: int) -> Callable[[], None]:
    log, orders = NativeLog(directory / "native.db"), [order(n) for n in range(total)]
    return lambda: log.publish(orders, batch)


def _appends(directory: Path, total: int, batch: int) -> Callable[[], None]:
    log = NativeLog(directory / "native.db")
    return lambda: log.append(total, batch)
