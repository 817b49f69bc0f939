"""The processes of a world that is killed all the time: a shop, billing twice, an audit, and the one that heals.

A role is a function of (directory, say): `say` tells the parent a line. Roles keep their state in databases alone.
"""

from __future__ import annotations

import asyncio
import signal
from collections.abc import AsyncGenerator, Callable
from contextlib import AbstractAsyncContextManager, AsyncExitStack, asynccontextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any
from zlib import crc32

from tidewire import (
    Context,
    Options,
    PublishRejected,
    PublishUnknown,
    Retry,
    Service,
    event,
    running,
    transaction,
)
from tidewire.chance import UUID7Ids
from tidewire.clock import SystemClock
from tidewire.config import open_transport
from tidewire.errors import TransportUnavailable
from tidewire.operations.audit import Operator
from tidewire.operations.redrive import plan_letters, redrive
from tidewire.operations.selection import Selection
from tidewire.stores.sqlite import open_sqlite_store
from tidewire.transports.sqlite import open_sqlite_transport

OPTIONS = Options(
    lease=timedelta(milliseconds=500),
    relay_lease=timedelta(milliseconds=500),
    grace=timedelta(seconds=3),
    max_hold=timedelta(seconds=5),
    lanes=4,
)
RETRY = Retry(attempts=8, first_delay=timedelta(milliseconds=10), factor=2, max_delay=timedelta(milliseconds=100))
KEYS = 6
Say = Callable[[str], None]


@event("shop.order.placed", key="key")
class OrderPlaced:
    """The n-th order of a customer."""

    key: str
    n: int


@event("shop.payment.taken", key="key")
class PaymentTaken:
    """What billing makes of it."""

    key: str
    n: int


TABLES = {
    "shop": "CREATE TABLE IF NOT EXISTS orders (row INTEGER PRIMARY KEY, key TEXT, n INTEGER, sent INTEGER)",
    "billing": "CREATE TABLE IF NOT EXISTS effect (row INTEGER PRIMARY KEY, key TEXT, n INTEGER, attempt INTEGER)",
    "audit": "CREATE TABLE IF NOT EXISTS effect (row INTEGER PRIMARY KEY, key TEXT, n INTEGER, attempt INTEGER)",
}


def broker_of(directory: Path) -> AbstractAsyncContextManager[Any]:
    """Open the world's broker: the one that the file ``broker.url`` names, else the embedded one."""
    named = directory / "broker.url"
    return open_transport(named.read_text()) if named.exists() else open_sqlite_transport(directory / "broker.db")


@asynccontextmanager
async def store_of(name: str, directory: Path) -> AsyncGenerator[Any]:
    """Open a service's store, with its table."""
    async with open_sqlite_store(directory / f"{name}.db") as store:
        async with transaction(store) as tx:
            await tx.execute(TABLES[name])
        yield store


def billing() -> Service:
    """Charge: one row and one event for each order; some orders fail at their first attempts."""
    service = Service("billing")

    @service.on(OrderPlaced, retry=RETRY)
    async def charge(order: OrderPlaced, context: Context[Any]) -> PaymentTaken:
        await context.tx.execute(
            "INSERT INTO effect (key, n, attempt) VALUES (?, ?, ?)", (order.key, order.n, context.attempt)
        )
        if context.attempt <= crc32(f"{order.key}-{order.n}".encode()) % 24 - 21:
            raise RuntimeError("not yet")
        return PaymentTaken(order.key, order.n)

    return service


def audit() -> Service:
    """Keep one row of each payment."""
    service = Service("audit")

    @service.on(PaymentTaken, retry=RETRY)
    async def keep(payment: PaymentTaken, context: Context[Any]) -> None:
        await context.tx.execute(
            "INSERT INTO effect (key, n, attempt) VALUES (?, ?, ?)", (payment.key, payment.n, context.attempt)
        )

    return service


async def take_orders(directory: Path, say: Say, *, new: bool = True) -> None:
    """Place orders: half of the keys through the outbox, half straight to the broker, sent again after a crash."""
    async with (
        broker_of(directory) as transport,
        store_of("shop", directory) as store,
        running(Service("shop"), transport=transport, store=store, options=OPTIONS) as app,
    ):
        async with transaction(store) as tx:
            placed = {row[0]: row[1] for row in await tx.fetchall("SELECT key, max(n) FROM orders GROUP BY key")}
            unsent = await tx.fetchall("SELECT key, n FROM orders WHERE NOT sent ORDER BY row")
        for key, n in unsent:
            await _send(app, store, key, n)
            say(f"{key}-{n}")
        say("ready")
        while new:
            for number in range(KEYS):
                key = f"{'outbox' if number % 2 else 'direct'}-{number}"
                n = placed[key] = placed.get(key, 0) + 1
                async with transaction(store) as tx:
                    await tx.execute("INSERT INTO orders (key, n, sent) VALUES (?, ?, ?)", (key, n, number % 2))
                    if number % 2:
                        await app.publisher.publish(OrderPlaced(key, n), tx=tx, id=f"{key}-{n}")
                if not number % 2:
                    await _send(app, store, key, n)
                say(f"{key}-{n}")
            await asyncio.sleep(0.01)


async def _send(app: Any, store: Any, key: str, n: int) -> None:
    """Send an order until the broker has it, always under the same id."""
    while True:  # until stored, or killed
        try:
            await app.publisher.publish(OrderPlaced(key, n), id=f"{key}-{n}")
            break
        except (PublishUnknown, PublishRejected, TransportUnavailable):
            await asyncio.sleep(0.1)
    async with transaction(store) as tx:
        await tx.execute("UPDATE orders SET sent = 1 WHERE key = ? AND n = ?", (key, n))


async def serve(name: str, directory: Path, say: Say) -> None:
    """Run billing or audit until killed, or drained by SIGTERM."""
    stopped = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, stopped.set)
    async with (
        broker_of(directory) as transport,
        store_of(name, directory) as store,
        running({"billing": billing, "audit": audit}[name](), transport=transport, store=store, options=OPTIONS),
    ):
        say("ready")
        await stopped.wait()


async def heal(directory: Path, say: Say) -> None:
    """With nobody killed any more: send what is unsent, work everything off, give dead letters back, and end."""
    await take_orders(directory, say, new=False)
    async with AsyncExitStack() as stack:
        transport = await stack.enter_async_context(broker_of(directory))
        stores = {name: await stack.enter_async_context(store_of(name, directory)) for name in TABLES}
        for service in (billing(), audit(), Service("shop")):
            app = running(service, transport=transport, store=stores[service.name], options=OPTIONS)
            await stack.enter_async_context(app)
        operator = Operator(who="test", clock=SystemClock(), ids=UUID7Ids())
        async with asyncio.timeout(60):
            for _ in range(20):
                await _idle(transport, stores)
                plan = await plan_letters(transport, Selection(), now=operator.clock.now_us())
                if not plan.count:
                    say("healed")
                    return
                say(f"redriven {plan.count}")
                await redrive(transport, plan, by=operator)


async def _idle(transport: Any, stores: dict[str, Any]) -> None:
    while True:
        stats = [await transport.stats("shop.order", "billing"), await transport.stats("shop.payment", "audit")]
        busy = any(one.ready or one.in_flight or one.delayed for one in stats)
        pending = [await store.outbox.count() for store in stores.values()]
        if not busy and not any(count[0] for count in pending):
            return
        await asyncio.sleep(0.01)


async def role(name: str, directory: Path, say: Say) -> None:
    """Be one of the world's processes."""
    match name:
        case "shop":
            await take_orders(directory, say)
        case "heal":
            await heal(directory, say)
        case _:
            await serve(name.rstrip("12"), directory, say)
