"""A fresh runtime on the files that a power loss left: it must work off all that is there, and nothing twice."""

from __future__ import annotations

import asyncio
import sqlite3
from collections.abc import Callable
from pathlib import Path
from typing import Any

from disk_service import OPTIONS, OrderPlaced, billing

from tidewire import Service, running
from tidewire.clock import SystemClock
from tidewire.errors import TidewireError
from tidewire.model import Topic
from tidewire.stores.sqlite import open_sqlite_store
from tidewire.transports.memory import open_memory_transport
from tidewire.transports.sqlite import open_sqlite_transport

_WAITS = (
    "SELECT l.id FROM log l JOIN member_of m ON m.topic = l.topic AND m.grp = 'billing' "
    "JOIN topic t ON t.id = l.topic AND t.name = 'shop.order' "
    "JOIN cursor c ON c.sub = m.id AND c.lane = l.lane WHERE l.seq > c.pos AND NOT EXISTS (SELECT 1 FROM above a "
    "WHERE a.sub = m.id AND a.lane = l.lane AND a.seq = l.seq AND (a.settled OR a.due > ?1)) "
    "UNION SELECT i.id FROM inbox i JOIN member_of m ON m.id = i.sub WHERE m.grp = 'billing' AND i.due < ?1"
)


async def drains(files: dict[str, Path]) -> str:
    """Run a service on *files*; return what is wrong, or nothing."""
    broker, store = files.get("broker.db"), files.get("store.db")
    try:
        if broker is not None and store is not None:
            return await _both(broker, store)
        if broker is not None:
            return await _broker(broker)
        return "" if store is None else await _store(store)
    except TimeoutError:
        return "something waits for ever"
    except TidewireError as error:
        return f"{type(error).__name__}: {error}"


async def _broker(path: Path) -> str:
    """Every message that waits is handed to its group."""
    service = Service("billing")

    @service.on(OrderPlaced, on_dead_letter="continue")
    async def take(order: OrderPlaced) -> None:
        raise AssertionError("the bodies of these scripts are no orders")

    async with open_sqlite_transport(path) as transport:
        waiting = _read(path, _WAITS, (SystemClock().now_us(),))
        async with running(service, transport=transport, options=OPTIONS):
            await _until_settled(transport)
        dead = {row[0] for row in _read(path, "SELECT id FROM dead")}
        missing = [row[0] for row in waiting if row[0] not in dead]
    return f"never handed out: {missing[:5]}" if missing else ""


async def _store(path: Path) -> str:
    """Every row that may leave reaches a broker, once."""
    async with open_memory_transport() as transport, open_sqlite_store(path) as store:
        rows = [row[0] for row in _read(path, "SELECT id FROM tidewire_outbox ORDER BY row")]
        async with running(Service("mail"), transport=transport, store=store, options=OPTIONS):
            await _until(lambda: not _read(path, "SELECT 1 FROM tidewire_outbox LIMIT 1"))
        topics = [topic.name for topic in await transport.topics()]
        found = [one.message.id for name in topics for one in await transport.browse(Topic(name), limit=1_000)]
    left = [row[0] for row in _read(path, "SELECT id FROM tidewire_outbox_refused")]
    missing = sorted(set(rows) - set(found) - set(left))
    twice = sorted({one for one in found if found.count(one) > 1})
    return f"never published: {missing[:5]}" if missing else f"published twice: {twice[:5]}" if twice else ""


async def _both(broker: Path, store: Path) -> str:
    """The service itself goes on: each order has one effect in the end, and one event follows from it."""
    async with open_sqlite_transport(broker) as transport, open_sqlite_store(store) as opened:
        unit = opened.unit()
        await unit.tx.execute("CREATE TABLE IF NOT EXISTS effect (name TEXT)")
        await (await unit.seal())
        async with running(billing(), transport=transport, store=opened, options=OPTIONS):
            await _until_settled(transport)
            await _until(lambda: not _read(store, "SELECT 1 FROM tidewire_outbox LIMIT 1"))
    orders = {row[0] for row in _read(broker, "SELECT id FROM log WHERE id LIKE 'o%' AND id NOT LIKE 'old%'")}
    effects = [row[0] for row in _read(store, "SELECT name FROM effect")]
    follow = "SELECT CAST(body AS TEXT) FROM log l JOIN topic t ON t.id = l.topic WHERE t.name = 'shop.payment'"
    payments = [row[0] for row in _read(broker, follow)]
    if sorted(orders) != sorted(effects):
        return f"orders {len(orders)}, effects {len(effects)}: {sorted(orders ^ set(effects))[:5]}"
    if len(payments) != len(set(payments)) or len(payments) != len(effects):
        return f"{len(effects)} effects, {len(payments)} payments"
    return ""


async def _until_settled(transport: Any) -> None:
    async with asyncio.timeout(20):
        stats = await transport.stats("shop.order", "billing")
        while stats.ready or stats.in_flight:
            await asyncio.sleep(0.005)
            stats = await transport.stats("shop.order", "billing")


async def _until(true: Callable[[], bool]) -> None:
    async with asyncio.timeout(20):
        while not true():  # noqa: ASYNC110 - another connection is looked through
            await asyncio.sleep(0.005)


def _read(path: Path, sql: str, parameters: tuple[Any, ...] = ()) -> list[Any]:
    connection = sqlite3.connect(path)
    try:
        return connection.execute(sql, parameters).fetchall()
    finally:
        connection.close()
