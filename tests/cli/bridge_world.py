"""What the tests of `tidewire bridge` share: its command line, producers, a service, and what lies where."""

from __future__ import annotations

import asyncio
import json
import sqlite3
import subprocess
import sys
from collections.abc import Awaitable, Callable
from contextlib import AsyncExitStack
from typing import Any, Protocol

from tidewire import Context, Service, event, open_publisher, running
from tidewire.cli import exits
from tidewire.config import open_store, open_transport
from tidewire.model import Message, Topic
from tidewire.runtime.serve import Options
from tidewire.stores.sqlite import SqliteTx

KEYS = 20


class Order(Protocol):
    """What the events here have in common."""

    @property
    def order_id(self) -> str: ...

    @property
    def number(self) -> int: ...


@event("bridged.order.placed", key="order_id")
class OrderPlaced:
    """One of many of its key."""

    order_id: str
    number: int


@event("moved.order.placed", key="order_id")
class OrderMoved:
    """The same, in a topic of its own."""

    order_id: str
    number: int


@event("returned.order.placed", key="order_id")
class OrderReturned:
    """The same, in another one."""

    order_id: str
    number: int


def command(*arguments: str) -> list[str]:
    """Return the words of a bridge's command line."""
    return [sys.executable, "-m", "tidewire.cli", "bridge", *arguments]


def bridged(*arguments: str, code: int = exits.OK) -> dict[str, Any]:
    """Run a bridge to its end and return what it says."""
    done = subprocess.run(
        command(*arguments, "--json"), capture_output=True, text=True, timeout=150, check=False
    )  # fmt: skip
    assert code == done.returncode, done.stderr
    return dict(json.loads(done.stdout)) if code == exits.OK else {"said": done.stderr}


async def publish(url: str, numbers: range, kind: Callable[[str, int], object] = OrderPlaced) -> None:
    """Publish one order for each number, in order."""
    async with (
        open_transport(url) as transport,
        open_publisher("till", transport=transport, options=Options(lanes=4)) as publisher,
    ):
        for first in range(numbers.start, numbers.stop, 100):
            part = range(first, min(first + 100, numbers.stop))
            await publisher.publish_all([kind(f"k-{number % KEYS}", number) for number in part])


async def stored(url: str, topic: str) -> list[Message]:
    """Return what lies in the topic at *url*, oldest first."""
    found: list[Message] = []
    after: int | str | None = None
    async with open_transport(url) as transport:
        inspector: Any = transport
        while page := await inspector.browse(Topic(topic), after=after, limit=1_000):
            found += [one.message for one in page]
            after = page[-1].position
    return found


async def until(true: Callable[[], Awaitable[bool]], seconds: float = 60.0) -> None:
    """Wait until *true* holds."""
    async with asyncio.timeout(seconds):
        while not await true():  # noqa: ASYNC110 - what another process does has no signal here
            await asyncio.sleep(0.05)


def in_order(messages: list[Message]) -> dict[str | None, list[str]]:
    """Return the ids of each key as they first occur."""
    found: dict[str | None, dict[str, None]] = {}
    for one in messages:
        found.setdefault(one.key, {})[one.id] = None
    return {key: list(ids) for key, ids in found.items()}


async def handle(url: str, store: str, *, until_rows: int, kind: type[Order] = OrderPlaced) -> list[int]:
    """Run a service on the broker at *url* until its table has so many rows; return their numbers, as they came."""
    service, enough = Service("billing"), asyncio.Event()

    @service.on(kind)
    async def charge(order: Order, context: Context[SqliteTx]) -> None:
        await context.tx.execute("CREATE TABLE IF NOT EXISTS charges (number INTEGER)")
        await context.tx.execute("INSERT INTO charges VALUES (?)", (order.number,))
        if await context.tx.fetchval("SELECT count(*) FROM charges") >= until_rows:
            enough.set()

    async with AsyncExitStack() as stack:
        transport = await stack.enter_async_context(open_transport(url))
        opened = await stack.enter_async_context(open_store(store))
        async with running(service, transport=transport, store=opened, options=Options(lanes=4)):
            async with asyncio.timeout(60):
                await enough.wait()
    return rows(store)


def rows(store: str) -> list[int]:
    """Return what the service has written."""
    with sqlite3.connect(store.removeprefix("sqlite:///")) as connection:
        return [number for (number,) in connection.execute("SELECT number FROM charges ORDER BY rowid")]


async def has(url: str, count: int, topic: str) -> bool:
    """Whether the topic is there and has so many messages."""
    async with open_transport(url) as transport:
        inspector: Any = transport
        return sum(info.messages or 0 for info in await inspector.topics() if info.name == topic) >= count
