"""What is special to looking into the embedded broker: older files, indices, and an event loop that goes on."""

from __future__ import annotations

import asyncio
import sqlite3
import time
from pathlib import Path

from tidewire.model import Act, GroupSpec, Message, Topic, TopicSpec
from tidewire.transports.sqlite import open_sqlite_transport
from tidewire.transports.sqlite.schema import BROKER


def message(number: int, correlation: str = "") -> Message:
    headers = {"ce-correlationid": correlation} if correlation else {}
    return Message(Topic("t"), f"id-{number}", "s", str(number), headers, b"x" * 100)


def test_a_file_of_the_first_version_gets_its_ledger(tmp_path: Path) -> None:
    """A broker written before there was an audit opens, keeps what it has, and has one."""
    path = tmp_path / "b.db"

    async def first() -> None:
        async with open_sqlite_transport(path) as broker:
            await broker.provision([TopicSpec("t", lanes=1)], [GroupSpec("g", ["t"])])
            await broker.publish([message(1)])

    asyncio.run(first())
    connection = sqlite3.connect(path)
    connection.execute("DROP TABLE act")
    connection.execute("PRAGMA user_version=1")
    connection.close()

    async def second() -> None:
        async with open_sqlite_transport(path) as broker:
            await broker.note(Act(id="1", at=0, who="anna", verb="redrive"))
            assert ["anna"] == [act.who for _, act in await broker.acts()]
            assert 1 == len(await broker.find("id-1"))

    asyncio.run(second())
    connection = sqlite3.connect(path)
    assert len(BROKER.migrations) == connection.execute("PRAGMA user_version").fetchone()[0]
    connection.close()


def test_a_search_by_id_reads_no_log(tmp_path: Path) -> None:
    """Find is one look into an index per topic, whatever the number of events."""
    path = tmp_path / "b.db"

    async def scenario() -> None:
        async with open_sqlite_transport(path) as broker:
            await broker.provision([TopicSpec("t", lanes=4)], [GroupSpec("g", ["t"])])
            for start in range(0, 20_000, 4_000):
                await broker.publish([message(number) for number in range(start, start + 4_000)])
            (found,) = await broker.find("id-12345")
            assert "12345" == found.message.key

    asyncio.run(scenario())
    connection = sqlite3.connect(path)
    plan = connection.execute(
        "EXPLAIN QUERY PLAN SELECT m.seq FROM log m JOIN source s ON s.id = m.source "
        "WHERE m.topic = 1 AND m.id = 'id-1' AND m.id != ''"
    ).fetchall()
    connection.close()
    assert any("log_once" in row[-1] and "SEARCH" in row[-1] for row in plan), plan


def test_a_long_search_does_not_stop_the_loop(tmp_path: Path) -> None:
    """Related events are looked for on a thread: publishing goes on meanwhile."""

    async def scenario() -> None:
        async with open_sqlite_transport(tmp_path / "b.db") as broker:
            await broker.provision([TopicSpec("t", lanes=4)], [GroupSpec("g", ["t"])])
            for start in range(0, 40_000, 4_000):
                await broker.publish([message(number) for number in range(start, start + 4_000)])
            await broker.publish([message(100_000, "cause"), message(100_001, "cause")])
            search = asyncio.create_task(broker.related("cause"))
            published = 0
            started = time.perf_counter()
            while not search.done():
                await broker.publish([message(200_000 + published)])
                published += 1
            assert ["id-100000", "id-100001"] == [found.message.id for found in await search]
            assert published >= 1
            assert time.perf_counter() - started < 10

    asyncio.run(scenario())
