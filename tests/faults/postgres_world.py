"""A service whose effects are in PostgreSQL, orders for it, and its books: what a fault may and may not change."""

from __future__ import annotations

import asyncio
import struct
from collections import Counter, defaultdict
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import asynccontextmanager
from datetime import timedelta
from typing import Any
from urllib.parse import urlsplit

import psycopg

from tidewire import Context, Retry, Service, event, running, transaction
from tidewire.runtime.serve import Options
from tidewire.stores.postgres import PostgresStore, open_postgres_store
from tidewire.transports.memory import open_memory_transport

QUICK = Retry(attempts=6, first_delay=timedelta(milliseconds=20), factor=1.0)
PATIENCE = 40.0


@event("shop.order.placed", key="order_id")
class OrderPlaced:
    """An order."""

    order_id: str


@event("shop.payment.taken", key="order_id")
class PaymentTaken:
    """What billing makes of it."""

    order_id: str


Handle = Callable[[OrderPlaced, Context[Any]], Awaitable[None]]


class Books:
    """What the handlers have seen: attempts, calls, and the ids of the payments that were published for each order."""

    def __init__(self) -> None:
        self.attempts: dict[str, int] = defaultdict(int)
        self.calls: Counter[str] = Counter()
        self.payments: dict[str, set[str]] = defaultdict(set)
        self.changed = asyncio.Event()

    async def until(self, true: Callable[[], bool]) -> None:
        """Wait until *true* holds, which only a handler can make true."""
        async with asyncio.timeout(PATIENCE):
            while not true():
                self.changed.clear()
                await self.changed.wait()

    async def until_paid(self, orders: int) -> None:
        """Wait until a payment was published for each of so many orders."""
        await self.until(lambda: len(self.payments) >= orders)

    def balance(self, url: str, orders: int) -> None:
        """Demand one row, one mark and one payment for each order, and nothing else."""
        expected = {f"o-{number}": 1 for number in range(orders)}
        with psycopg.connect(url) as connection:
            rows = connection.execute("SELECT order_id, count(*) FROM paid GROUP BY 1").fetchall()
            marks = connection.execute("SELECT count(*) FROM tidewire_mark").fetchone()
            pending = connection.execute("SELECT count(*) FROM tidewire_outbox").fetchone()
        assert expected == dict(rows), "each effect once"
        assert expected == {order: len(ids) for order, ids in self.payments.items()}, "each event once"
        assert ((orders,), (0,)) == (marks, pending)


@asynccontextmanager
async def billing(
    url: str, orders: int, *, handle: Handle | None = None
) -> AsyncGenerator[tuple[Books, PostgresStore]]:
    """Run billing on the store at *url* and feed it *orders*; yields its books and its store."""
    service, ledger, books = Service("billing", concurrency=8), Service("ledger"), Books()

    @service.on(OrderPlaced, retry=QUICK)
    async def charge(order: OrderPlaced, context: Context[Any]) -> PaymentTaken:
        books.attempts[order.order_id] = max(books.attempts[order.order_id], context.attempt)
        books.calls[order.order_id] += 1
        books.changed.set()
        if handle is not None:
            await handle(order, context)
        await context.tx.execute("INSERT INTO paid VALUES ($1)", (order.order_id,))
        return PaymentTaken(order_id=order.order_id)

    @ledger.on(PaymentTaken, on_dead_letter="continue")
    async def note(payment: PaymentTaken, context: Context[Any]) -> None:
        books.payments[payment.order_id].add(context.envelope.id)
        books.changed.set()

    options = Options(relay_lease=timedelta(seconds=2))
    async with (
        open_memory_transport() as transport,
        open_postgres_store(url, poll=timedelta(milliseconds=50)) as store,
        running(ledger, transport=transport),
        running(service, transport=transport, store=store, options=options) as app,
    ):
        await app.publisher.publish_all([OrderPlaced(order_id=f"o-{number}") for number in range(orders)])
        yield books, store


async def prepare(url: str) -> None:
    """Make the tables of the store and of billing."""
    async with open_postgres_store(url, provision=True) as store, transaction(store) as tx:
        await tx.execute("CREATE TABLE paid (order_id text)")
        await tx.execute("CREATE TABLE stock (name text PRIMARY KEY, number bigint NOT NULL)")
        await tx.execute("INSERT INTO stock VALUES ('book', 0)")


class CommitCutter:
    """A proxy before a server that cuts the connection at a COMMIT: before the server hears it, or before we hear of
    it. *cut* says how often each has happened."""

    def __init__(self, url: str, *, every: int) -> None:
        self._parts = urlsplit(url)
        self._every = every
        self._commits = self._answers = 0
        self._server: asyncio.Server | None = None
        self._tasks: set[asyncio.Task[None]] = set()
        self.cut: Counter[str] = Counter()

    @asynccontextmanager
    async def open(self) -> AsyncGenerator[str]:
        """Yield the URL that leads through the proxy."""
        server = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        port = server.sockets[0].getsockname()[1]
        parts = self._parts
        try:
            yield (
                parts._replace(netloc=f"{parts.username}:{parts.password}@127.0.0.1:{port}").geturl()
                + "?sslmode=disable"
            )
        finally:
            server.close()
            for task in self._tasks:
                task.cancel()
            await asyncio.gather(*self._tasks, return_exceptions=True)
            await server.wait_closed()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        theirs, ours = await asyncio.open_connection("127.0.0.1", self._parts.port)
        names: set[bytes] = set()
        try:
            async with asyncio.TaskGroup() as ways:
                ways.create_task(self._up(reader, ours, names))
                ways.create_task(self._down(theirs, writer))
        except* (ConnectionError, asyncio.IncompleteReadError, _CutOff):
            pass
        finally:
            self._tasks.discard(task)
            ours.close()
            writer.close()

    async def _up(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, names: set[bytes]) -> None:
        size = struct.unpack("!I", head := await reader.readexactly(4))[0]
        writer.write(head + await reader.readexactly(size - 4))  # the start-up packet has no type
        while True:
            kind, body = await _message(reader)
            if kind == b"P" and body[4:].split(b"\0")[1] == b"COMMIT":
                names.add(body[4:].split(b"\0")[0])
            if kind == b"B" and body[4:].split(b"\0")[1] in names:
                self._commits += 1
                if self._commits % self._every == 0:
                    self.cut["before"] += 1
                    raise _CutOff
            writer.write(kind + body)
            await writer.drain()

    async def _down(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while True:
            kind, body = await _message(reader)
            if kind == b"C" and body[4:] == b"COMMIT\0":
                self._answers += 1
                if self._answers % self._every == 0:
                    self.cut["after"] += 1
                    raise _CutOff
            writer.write(kind + body)
            await writer.drain()


class _CutOff(Exception):
    """The connection is to be cut."""


async def _message(reader: asyncio.StreamReader) -> tuple[bytes, bytes]:
    kind = await reader.readexactly(1)
    head = await reader.readexactly(4)
    return kind, head + await reader.readexactly(struct.unpack("!I", head)[0] - 4)
