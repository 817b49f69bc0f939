"""`tidewire bridge`, by real processes that are killed on the way, between every two brokers that can be had here."""

from __future__ import annotations

import asyncio
import json
import signal
import sqlite3
import subprocess
import sys
from collections.abc import Awaitable, Callable
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any, TypeVar

import pytest

from tidewire import Context, Service, event, open_publisher, running
from tidewire.cli import exits
from tidewire.config import open_store, open_transport
from tidewire.model import Message, Topic
from tidewire.runtime.serve import Options
from tidewire.stores.sqlite import SqliteTx

T = TypeVar("T")
TOPIC = "bridged.order"
KEYS = 20


@event("bridged.order.placed", key="order_id")
class OrderPlaced:
    """One of many of its key."""

    order_id: str
    number: int


@pytest.fixture(params=["sqlite", "postgresql", "kafka"])
def other(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """The URL of a broker of each kind, to copy to or from."""
    fixture = {"postgresql": "postgresql_url", "kafka": "kafka_url"}.get(request.param)
    return f"sqlite:///{tmp_path}/other.db" if fixture is None else str(request.getfixturevalue(fixture))


@pytest.fixture
def here(tmp_path: Path) -> str:
    """The URL of an embedded broker."""
    return f"sqlite:///{tmp_path}/here.db"


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


async def publish(url: str, numbers: range) -> None:
    """Publish one order for each number, in order."""
    async with (
        open_transport(url) as transport,
        open_publisher("till", transport=transport, options=Options(lanes=4)) as publisher,
    ):
        for first in range(numbers.start, numbers.stop, 100):
            part = range(first, min(first + 100, numbers.stop))
            await publisher.publish_all([OrderPlaced(f"k-{number % KEYS}", number) for number in part])


async def stored(url: str, topic: str = TOPIC) -> list[Message]:
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


async def handle(url: str, store: str, *, until_rows: int) -> list[int]:
    """Run a service on the broker at *url* until its table has so many rows; return their numbers, as they came."""
    service, enough = Service("billing"), asyncio.Event()

    @service.on(OrderPlaced)
    async def charge(order: OrderPlaced, context: Context[SqliteTx]) -> None:
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


def test_nothing_is_lost_and_nothing_happens_twice_though_it_is_killed(here: str, other: str, tmp_path: Path) -> None:
    """``kill -9`` while producers publish: the next run goes on; each key keeps its order, each effect is one."""
    store = f"sqlite:///{tmp_path}/billing.db"
    asyncio.run(publish(here, range(300)))
    asyncio.run(handle(here, store, until_rows=150))

    async def meanwhile() -> None:
        await asyncio.gather(publish(here, range(300, 1_500)), until(lambda: has(other, 400)))

    with subprocess.Popen(command(here, other, "--topic", TOPIC, "--provision", "--follow")) as following:
        try:
            asyncio.run(meanwhile())
        finally:
            following.kill()
    said = bridged(here, other, "--topic", TOPIC)
    assert {"topics": [TOPIC], "stopped": False} == {name: said[name] for name in ("topics", "stopped")}
    before, after = asyncio.run(stored(here)), asyncio.run(stored(other))
    assert in_order(before) == in_order(after)
    assert 1_500 <= len(after) <= 2_000
    assert {(one.id, one.source, one.body) for one in before} == {(one.id, one.source, one.body) for one in after}
    numbers = asyncio.run(handle(other, store, until_rows=1_500))
    assert list(range(1_500)) == sorted(numbers)
    for key in range(KEYS):
        assert list(range(key, 1_500, KEYS)) == [number for number in numbers if number % KEYS == key]


async def has(url: str, count: int) -> bool:
    """Whether the topic is there and has so many messages."""
    async with open_transport(url) as transport:
        inspector: Any = transport
        return sum(info.messages or 0 for info in await inspector.topics() if info.name == TOPIC) >= count


def test_the_way_back_is_the_same_command(here: str, other: str) -> None:
    """From a server to the embedded broker; a second run has nothing to do, and says so."""
    asyncio.run(publish(other, range(200)))
    before = asyncio.run(stored(other))
    said = bridged(other, here, "--topic", TOPIC, "--provision")
    assert len(before) == said["stored"] + said["known"]
    assert in_order(before) == in_order(asyncio.run(stored(here)))
    assert (0, 0) == tuple(bridged(other, here, "--topic", TOPIC)[name] for name in ("stored", "known"))


def test_a_signal_ends_what_follows(here: str, tmp_path: Path) -> None:
    """SIGTERM is no failure: it says what was copied, and the next one goes on behind it."""
    there = f"sqlite:///{tmp_path}/there.db"
    asyncio.run(publish(here, range(50)))
    words = command(here, there, "--topic", TOPIC, "--provision", "--follow", "--json")
    with subprocess.Popen(words, stdout=subprocess.PIPE, text=True) as following:
        asyncio.run(until(lambda: has(there, 50)))
        following.send_signal(signal.SIGTERM)
        said = json.loads(following.communicate(timeout=30)[0])
    assert (0, 50, True) == (following.returncode, said["stored"], said["stopped"])


def test_what_is_missing_is_named(here: str, tmp_path: Path) -> None:
    """A topic on neither side, or on one alone, is named with the fix; nothing is made or copied."""
    there = f"sqlite:///{tmp_path}/there.db"
    asyncio.run(publish(here, range(1)))
    assert "no topic bridged.else" in bridged(here, there, "--topic", "bridged.else", code=exits.USAGE)["said"]
    assert "--provision" in bridged(here, there, "--topic", TOPIC, code=exits.USAGE)["said"]
    assert "one broker" in bridged(here, here, "--topic", TOPIC, code=exits.USAGE)["said"]
