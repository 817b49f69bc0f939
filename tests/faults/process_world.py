"""A billing service as a process that tests stop, continue, end and starve: `DIRECTORY SECONDS-OF-WORK LEASE`.

It says a line when its files are open, one when it hears signals and is about to receive, one when a handler begins
and one when a handler has ended; it keeps its effects in `billing.db`.
"""

from __future__ import annotations

import asyncio
import os
import resource
import sqlite3
import sys
from collections.abc import AsyncIterator, Sequence
from contextlib import closing, suppress
from datetime import timedelta
from pathlib import Path
from typing import Any

import msgspec

from tidewire import Context, Options, PublishRejected, Service, event, open_publisher, running, transaction
from tidewire.errors import TransportUnavailable
from tidewire.model import GroupSpec, TopicSpec
from tidewire.runtime.serve import serve_until_signal
from tidewire.stores.sqlite import open_sqlite_store
from tidewire.transports.sqlite import open_sqlite_transport

LEASE = timedelta(milliseconds=600)
OPTIONS = Options(lease=LEASE, relay_lease=LEASE, grace=timedelta(seconds=3), lanes=2)


@event("shop.order.placed", key="order_id")
class OrderPlaced:
    """An order."""

    order_id: str


@event("shop.payment.taken", key="order_id")
class PaymentTaken:
    """What follows."""

    order_id: str


def say(line: str) -> None:
    """Print one line at once."""
    os.write(1, f"{line}\n".encode())


def billing(seconds: float) -> Service:
    """Return the service, whose handler takes its time after its row is written."""
    service = Service("billing", concurrency=8)

    @service.lifespan
    async def up(service: Service) -> AsyncIterator[dict[str, Any]]:
        say("up")
        yield {}

    @service.on(OrderPlaced)
    async def charge(order: OrderPlaced, context: Context[Any]) -> PaymentTaken:
        say(f"begin {order.order_id}")
        await asyncio.sleep(seconds)
        await context.tx.execute("INSERT INTO effect VALUES (?, ?)", (order.order_id, context.attempt))
        say(f"end {order.order_id}")
        return PaymentTaken(order.order_id)

    return service


async def publish(directory: Path, ids: Sequence[str], *, patience: float = 20.0) -> list[str]:
    """Publish orders and return the ids of those that were stored; one that is refused for now ends it."""
    stored: list[str] = []
    async with open_sqlite_transport(directory / "broker.db") as transport:
        # What no group reads is kept by its age alone: a wall clock that is a year ahead would end it.
        await transport.provision([TopicSpec("shop.order", lanes=2)], [GroupSpec("billing", ["shop.order"])])
        options = msgspec.structs.replace(OPTIONS, relay=False)
        async with open_publisher("shop", transport=transport, options=options) as publisher:
            with suppress(TransportUnavailable, PublishRejected):
                for one in ids:
                    async with asyncio.timeout(patience):
                        await publisher.publish(OrderPlaced(one), id=one)
                    stored.append(one)
    return stored


async def starved(directory: Path) -> None:
    """Handle orders, then with no file descriptor left to open anything, then again with plenty."""
    async with (
        open_sqlite_transport(directory / "broker.db") as transport,
        open_sqlite_store(directory / "billing.db") as store,
    ):
        async with transaction(store) as tx:
            await tx.execute("CREATE TABLE IF NOT EXISTS effect (name TEXT, attempt INTEGER)")
        soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        async with running(billing(0), transport=transport, store=store, options=OPTIONS) as app:
            for turn, limit in enumerate((soft, len(os.listdir("/proc/self/fd")) - 1, soft)):
                resource.setrlimit(resource.RLIMIT_NOFILE, (limit, hard))
                names = [f"fd-{turn}-{number}" for number in range(10)]
                for name in names:
                    await app.publisher.publish(OrderPlaced(name), id=name)
                if turn == 1:
                    try:
                        async with open_sqlite_transport(directory / "another.db"):
                            say("opened")
                    except TransportUnavailable:
                        say("no descriptor left")
                async with asyncio.timeout(20):
                    stats = await transport.stats("shop.order", "billing")
                    while stats.ready or stats.in_flight:
                        await asyncio.sleep(0.01)
                        stats = await transport.stats("shop.order", "billing")
            say(f"ready {app.ready}")


async def serve(directory: Path, seconds: float, lease: timedelta) -> None:
    """Run until SIGTERM."""
    options = msgspec.structs.replace(OPTIONS, lease=lease, relay_lease=lease)
    async with (
        open_sqlite_transport(directory / "broker.db") as transport,
        open_sqlite_store(directory / "billing.db") as store,
    ):
        async with transaction(store) as tx:
            await tx.execute("CREATE TABLE IF NOT EXISTS effect (name TEXT, attempt INTEGER)")
        say("open")
        await serve_until_signal(billing(seconds), transport=transport, store=store, options=options)


async def unsettled(directory: Path) -> int:
    """Return how many orders the broker has still to hear of."""
    async with open_sqlite_transport(directory / "broker.db") as transport:
        stats = await transport.stats("shop.order", "billing")
    return (stats.ready or 0) + (stats.in_flight or 0)


def effects(directory: Path) -> list[tuple[str, int]]:
    """Return the effects with their attempts."""
    return rows(directory, "SELECT name, attempt FROM effect")


def rows(directory: Path, sql: str, name: str = "billing.db") -> list[Any]:
    """Read from one of the files."""
    with closing(sqlite3.connect(directory / name)) as connection:
        return connection.execute(sql).fetchall()


def main(argv: Sequence[str]) -> None:
    """Serve; or, with the word ``starved``, show what happens without file descriptors."""
    if argv[1] == "starved":
        asyncio.run(starved(Path(argv[0])))
    else:
        asyncio.run(serve(Path(argv[0]), float(argv[1]), timedelta(seconds=float(argv[2]))))


if __name__ == "__main__":
    main(sys.argv[1:])
