"""What is special to looking into the embedded broker: older files, indices, and an event loop that goes on."""

from __future__ import annotations

import asyncio
import sqlite3
import threading
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest

from tidewire.errors import TransportClosed, TransportRefused
from tidewire.model import Act, Address, DeadChannel, GroupSpec, InboxChannel, Message, Topic, TopicSpec
from tidewire.transports.sqlite import SqliteTransport, open_sqlite_transport
from tidewire.transports.sqlite.schema import BROKER

FAR = 4_000_000_000_000_000
"""A time that does not come while a test runs."""


def message(number: int, *, to: Address | None = None, correlation: str = "", due: int | None = None) -> Message:
    """Return message *number*, to the topic "t" where nothing else is said."""
    headers = {"ce-correlationid": correlation} if correlation else {"ce-correlationid": f"c-{number}"}
    return Message(to or Topic("t"), f"id-{number}", "s", str(number), headers, b"x" * 100, due)


def run(path: Path, scenario: Callable[[SqliteTransport], Awaitable[None]]) -> None:
    """Run *scenario* on the broker at *path*, with the topic "t" and the group "g"."""

    async def main() -> None:
        async with open_sqlite_transport(path) as broker:
            await broker.provision([TopicSpec("t", lanes=4)], [GroupSpec("g", ["t"])])
            await scenario(broker)

    asyncio.run(main())


def fill(path: Path, rows_count: int) -> None:
    """Append messages from number 0 on to the log of a closed broker, without its syncs."""
    run(path, publish_first)
    connection = sqlite3.connect(path)
    connection.execute(
        "WITH RECURSIVE n (i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < ?) "
        "INSERT INTO log (topic, lane, at, id, source, key, headers, body) "
        "SELECT topic, i % 4, at + i, 'id-' || i, source, i, '{\"ce-correlationid\":\"c-' || i || '\"}', body "
        "FROM n, (SELECT * FROM log WHERE seq = 1)",
        (rows_count - 1,),
    )
    connection.commit()
    connection.close()


async def publish_first(broker: SqliteTransport) -> None:
    """Publish message 0."""
    await broker.publish([message(0)])


@pytest.fixture
def held_search(monkeypatch: pytest.MonkeyPatch) -> Iterator[threading.Event]:
    """A search for related events waits at its first statement until this is set, or for half a minute."""
    go_on, connect = threading.Event(), sqlite3.connect

    def hold(sql: str) -> None:
        if "instr(" in sql:
            go_on.wait(30)

    def holding(*arguments: Any, **settings: Any) -> sqlite3.Connection:
        connection = connect(*arguments, **settings)
        connection.set_trace_callback(hold)
        return connection

    monkeypatch.setattr(sqlite3, "connect", holding)
    yield go_on
    go_on.set()
    monkeypatch.undo()


@pytest.fixture
def statements(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[str]]:
    """What SQLite is asked from now on, on every connection that is opened."""
    heard: list[str] = []
    connect = sqlite3.connect

    def listening(*arguments: Any, **settings: Any) -> sqlite3.Connection:
        connection = connect(*arguments, **settings)
        connection.set_trace_callback(heard.append)
        return connection

    monkeypatch.setattr(sqlite3, "connect", listening)
    yield heard
    monkeypatch.undo()


def test_a_file_of_the_first_version_is_brought_up_to_date(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A broker of version 1 keeps all it has, and gains the audit and the indices on opening."""
    path = tmp_path / "b.db"
    places: list[tuple[Address, int | None]] = [
        (Topic("t"), None),
        (Topic("t"), FAR),
        (InboxChannel("t", "g"), FAR),
        (DeadChannel("t", "g"), None),
    ]
    sent = [message(number, to=to, due=due) for number, (to, due) in enumerate(places)]

    async def store_all(broker: SqliteTransport) -> None:
        assert ["stored"] * 4 == [receipt.status for receipt in await broker.publish(sent)]

    async def look(broker: SqliteTransport) -> None:
        for one in sent:
            (found,) = await broker.find(one.id)
            assert msgspec.structs.replace(one, not_before=None) == found.message
        await broker.note(Act(id="1", at=0, who="anna", verb="redrive"))
        assert ["anna"] == [act.who for _, act in await broker.acts()]

    with monkeypatch.context() as older:
        first = BROKER._replace(migrations=BROKER.migrations[:1])
        older.setattr("tidewire.transports.sqlite.transport.BROKER", first)
        run(path, store_all)
    assert 1 == asked(path, "PRAGMA user_version")
    run(path, look)
    assert 2 == len(BROKER.migrations) == asked(path, "PRAGMA user_version")
    assert 3 == asked(path, "SELECT count(*) FROM sqlite_schema WHERE name IN ('delayed_id', 'inbox_id', 'dead_id')")


def asked(path: Path, sql: str) -> Any:
    """Return the one value that *sql* asks the closed file for."""
    connection = sqlite3.connect(path)
    (value,) = connection.execute(sql).fetchone()
    connection.close()
    return value


def test_an_act_in_the_file_is_never_changed_or_removed(tmp_path: Path) -> None:
    """The file itself keeps the audit: who opens it with another tool is refused as well."""
    path = tmp_path / "b.db"

    async def note(broker: SqliteTransport) -> None:
        await broker.note(Act(id="1", at=0, who="anna", verb="redrive"))

    run(path, note)
    connection = sqlite3.connect(path)
    for sql in ("UPDATE act SET text = '{}'", "DELETE FROM act"):
        with pytest.raises(sqlite3.IntegrityError, match="an act is never"):
            connection.execute(sql)
    connection.close()


def test_a_search_by_id_reads_no_table_from_end_to_end(tmp_path: Path, statements: list[str]) -> None:
    """Each place where an event may lie, among 100,000 here, is one look into an index; topics and groups are few."""
    path = tmp_path / "b.db"
    fill(path, 100_000)
    plans: list[str] = []

    async def search(broker: SqliteTransport) -> None:
        await broker.find("id-1")
        statements.clear()
        (found,) = await broker.find("id-54321")
        assert "54321" == found.message.key
        asked = [sql for sql in statements if sql.startswith("SELECT")]
        assert 4 <= len(asked)
        connection = sqlite3.connect(path)
        for sql in asked:
            plans.extend(row[-1] for row in connection.execute(f"EXPLAIN QUERY PLAN {sql}"))
        connection.close()

    run(path, search)
    used = " ".join(plans)
    assert {"log_once", "delayed_id", "inbox_id", "dead_id"} == {name for name in used.split() if name in _INDICES}
    scanned = {plan.split()[1] for plan in plans if plan.startswith("SCAN")}
    assert scanned <= {"topic", "member_of"}, f"read from end to end: {plans}"


_INDICES = {"log_once", "log_topic", "delayed_id", "delayed_due", "inbox_id", "inbox_due", "dead_id", "dead_sub"}


def test_publishing_goes_on_during_a_search(tmp_path: Path, held_search: threading.Event) -> None:
    """Related events among 100,000 are looked for beside the event loop, and no publish waits for the end of it."""
    path = tmp_path / "b.db"
    fill(path, 100_000)

    async def scenario(broker: SqliteTransport) -> None:
        await broker.publish([message(number, correlation="c-5") for number in (100_000, 100_001)])
        async with asyncio.TaskGroup() as tasks:
            search = tasks.create_task(broker.related("c-5"))
            for number in range(20):
                await broker.publish([message(200_000 + number)])
            assert not search.done()
            held_search.set()
        assert ["id-5", "id-100000", "id-100001"] == [found.message.id for found in search.result()]

    run(path, scenario)


def test_a_search_is_over_when_its_end_is_reached_whatever_is_published(tmp_path: Path) -> None:
    """What is published after a search has begun is not waited for: it ends beside any number of publishers."""

    async def scenario(broker: SqliteTransport) -> None:
        await broker.publish([message(number, correlation="c") for number in range(3)])
        async with asyncio.TaskGroup() as tasks, asyncio.timeout(60):
            search = tasks.create_task(broker.related("c"))
            number = 3
            while not search.done():
                await broker.publish([message(number + more, correlation="c") for more in range(50)])
                number += 50
        assert ["id-0", "id-1", "id-2"] == [found.message.id for found in search.result()][:3]

    run(tmp_path / "b.db", scenario)


def test_related_passes_over_what_retention_has_removed(tmp_path: Path) -> None:
    """Gaps in the log, however large, neither end a search nor lengthen it."""
    path = tmp_path / "b.db"
    run(path, publish_first)
    connection = sqlite3.connect(path)
    connection.execute("UPDATE sqlite_sequence SET seq = 9000000000000000 WHERE name = 'log'")
    connection.commit()
    connection.close()

    async def scenario(broker: SqliteTransport) -> None:
        await broker.publish([message(1, correlation="c-0")])
        async with asyncio.timeout(30):
            assert ["id-0", "id-1"] == [found.message.id for found in await broker.related("c-0")]

    run(path, scenario)


def test_a_correlation_id_is_matched_as_a_whole(tmp_path: Path) -> None:
    """Neither a part of an id, nor the text of it in another header, nor an id with quotes in it, confuses a search."""

    async def scenario(broker: SqliteTransport) -> None:
        odd = 'a"\\é'
        texts = ["c-1", "c-11", odd]
        sent = [message(number, correlation=text) for number, text in enumerate(texts)]
        sent.append(msgspec.structs.replace(message(3), headers={"note": '"ce-correlationid":"c-1"'}))
        sent.append(msgspec.structs.replace(message(4), headers={"x-ce-correlationid": "c-1"}))
        await broker.publish(sent)
        assert ["id-0"] == [found.message.id for found in await broker.related("c-1")]
        assert ["id-2"] == [found.message.id for found in await broker.related(odd)]

    run(tmp_path / "b.db", scenario)


def test_closing_ends_a_search(tmp_path: Path) -> None:
    """A broker that is closed in the middle of a search says so, and leaves neither a thread nor a file open."""
    path = tmp_path / "b.db"
    fill(path, 100_000)
    before = threading.active_count()

    async def scenario() -> None:
        async with asyncio.TaskGroup() as tasks:
            async with open_sqlite_transport(path) as broker:
                await broker.topics()
                search = tasks.create_task(closed_during(broker))
                await asyncio.sleep(0)
            await search
        with pytest.raises(TransportClosed):
            await broker.find("id-1")

    async def search_on(broker: SqliteTransport) -> None:
        while True:  # until closed
            await broker.related("c-99999")

    async def closed_during(broker: SqliteTransport) -> None:
        with pytest.raises(TransportClosed):
            await search_on(broker)

    asyncio.run(scenario())
    assert before == threading.active_count()


def test_a_cancelled_search_leaves_the_broker_usable(tmp_path: Path) -> None:
    """Whoever does not want to wait any longer has the next search answered right, and no search goes on behind it."""
    path = tmp_path / "b.db"
    fill(path, 100_000)

    async def scenario(broker: SqliteTransport) -> None:
        for _ in range(5):
            with pytest.raises(TimeoutError):
                async with asyncio.timeout(0.001):
                    await broker.related("c-99999")
            (found,) = await broker.find("id-7")
            assert "7" == found.message.key
        assert ["id-99999"] == [found.message.id for found in await broker.related("c-99999")]

    run(path, scenario)


def test_a_delayed_message_has_a_place_that_no_cursor_takes(tmp_path: Path) -> None:
    """The place of a message that has not joined its topic yet is refused as a place to go on from."""

    async def scenario(broker: SqliteTransport) -> None:
        await broker.publish([message(1, due=FAR)])
        (found,) = await broker.find("id-1")
        assert isinstance(found.position, str)
        with pytest.raises(TransportRefused):
            await broker.seek("t", "g", to=found.position)
        with pytest.raises(TransportRefused):
            await broker.browse(Topic("t"), after=found.position)

    run(tmp_path / "b.db", scenario)


@pytest.mark.parametrize("given", ["t", None])
def test_what_is_no_address_is_refused(tmp_path: Path, given: Any) -> None:
    """The name of a topic is no address: who gives one is told what is."""

    async def scenario(broker: SqliteTransport) -> None:
        with pytest.raises(TransportRefused, match="is no address") as refused:
            await broker.browse(given)
        assert "Topic(name)" in refused.value.hint

    run(tmp_path / "b.db", scenario)
