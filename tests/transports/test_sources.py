"""The numbers of sources in the log are given by transactions, and those may be rolled back."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from contextlib import AbstractAsyncContextManager
from datetime import timedelta
from pathlib import Path

import pytest

from tidewire.kit.sqllog.home import Connection
from tidewire.model import Delivery, GroupSpec, Message, Receipt, Subscription, Topic, TopicSpec
from tidewire.transports.postgres import PostgresTransport, open_postgres_transport
from tidewire.transports.sqlite import SqliteTransport, open_sqlite_transport

Open = Callable[[], AbstractAsyncContextManager[SqliteTransport | PostgresTransport]]


@pytest.fixture(params=["sqlite", "postgresql"])
def opened(request: pytest.FixtureRequest, tmp_path: Path) -> Open:
    """A broker on each kind of database that has the log."""
    if request.param == "sqlite":
        return lambda: open_sqlite_transport(tmp_path / "broker.db")
    url = str(request.getfixturevalue("postgresql_url"))
    return lambda: open_postgres_transport(url)


def message(number: int, source: str) -> Message:
    return Message(Topic("shop.order"), f"id-{number}", source, "k", {}, b"{}")


class Broken(Exception):
    """What a job of the test's raises."""


def fail(connection: Connection) -> None:
    """Be the job for which the whole transaction is rolled back."""
    raise Broken


def test_a_source_numbered_in_vain_is_numbered_again(opened: Open) -> None:
    """A source that a rolled back transaction had numbered is not taken for known: each event keeps its own."""
    found: dict[str, str] = {}

    async def scenario() -> None:
        async with asyncio.timeout(60), opened() as broker:
            await broker.provision([TopicSpec("shop.order", lanes=1)], [GroupSpec("billing", ["shop.order"])])
            receipts = await broker.publish([message(0, "shop")])
            writer, go = broker._shared.writer, threading.Event()
            holding = asyncio.ensure_future(writer.submit(lambda connection: go.wait()))
            while not writer._at_work:  # noqa: ASYNC110 - what comes from now on waits for the next transaction
                await asyncio.sleep(0)
            calls = [asyncio.ensure_future(broker.publish([message(number, "till")])) for number in range(1, 4)]
            failing = asyncio.ensure_future(writer.submit(fail))
            while len(writer._queue) < 4:  # noqa: ASYNC110 - the queue knows no asyncio.Event
                await asyncio.sleep(0)
            go.set()
            assert await holding
            with pytest.raises(Broken):
                await failing
            receipts += [receipt for call in calls for receipt in await call]
            receipts += await broker.publish([message(number, "door") for number in range(4, 6)])
            receipts += await broker.publish([message(6, "till")])
            assert [Receipt(f"id-{number}", "stored") for number in range(7)] == receipts
            async with broker.subscribe(Subscription("billing", ["shop.order"], "a")) as receiver:
                while len(found) < len(receipts):
                    for one in await receiver.receive(100, timedelta(seconds=5)):
                        if isinstance(one, Delivery):
                            found[one.message.id] = one.message.source

    asyncio.run(scenario())
    assert {
        f"id-{number}": name for number, name in enumerate(["shop", *["till"] * 3, "door", "door", "till"])
    } == found
