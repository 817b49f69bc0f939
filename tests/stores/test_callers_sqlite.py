"""Publishing into the caller's own transaction on the file of a SQLite store, through other libraries."""

from __future__ import annotations

import asyncio
import sqlite3
import subprocess
import sys
from collections.abc import Sequence
from contextlib import closing
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import create_engine, text
from sqlalchemy import event as listens
from sqlalchemy.ext.asyncio import AsyncSession, create_async_engine
from sqlalchemy.orm import Session
from sqlalchemy.pool import NullPool

from tidewire import ConfigurationError, Service, SyncPublisher, event, open_publisher, running
from tidewire.config import sync_publisher
from tidewire.protocols import Store
from tidewire.stores.sqlite import open_sqlite_store
from tidewire.transports.memory import open_memory_transport


@event("till.sale.made", key="till")
class SaleMade:
    till: str
    cents: int = 0


def made(tmp_path: Path) -> tuple[Path, SyncPublisher]:
    """Return a store's file with a table of the user's, and the publisher for it."""
    path = tmp_path / "till.db"

    async def create() -> None:
        async with open_sqlite_store(path):
            pass

    asyncio.run(create())
    with closing(sqlite3.connect(path, isolation_level=None)) as connection:
        connection.execute("CREATE TABLE sale (till TEXT)")
    return path, sync_publisher("till", store=f"sqlite:///{path}")


def waiting(path: Path) -> Sequence[str]:
    """Return the keys of the events that a relay finds in the outbox, in its order."""

    async def look() -> Sequence[str]:
        async with open_sqlite_store(path) as store:
            return await claimed(store)

    return asyncio.run(look())


async def claimed(store: Store) -> Sequence[str]:
    await store.backlog.lease("test", timedelta(seconds=30))
    rows = await store.backlog.claim("test", after=0, limit=10_000)
    return [str(row.message.key) for row in rows]


def test_the_event_is_there_if_and_only_if_the_caller_commits(tmp_path: Path) -> None:
    """A row of the user's and the event are one transaction of the user's own connection."""
    path, publisher = made(tmp_path)
    with closing(sqlite3.connect(path)) as connection:
        connection.execute("INSERT INTO sale VALUES ('a')")
        publisher.publish(SaleMade("a"), tx=connection)
        connection.rollback()
        publisher.publish(SaleMade("b"), tx=connection)  # it begins, like any statement that writes
        connection.execute("INSERT INTO sale VALUES ('b')")
        with closing(sqlite3.connect(path)) as outside:
            assert (0,) == outside.execute("SELECT count(*) FROM tidewire_outbox").fetchone()
        connection.commit()
        assert [("b",)] == connection.execute("SELECT till FROM sale").fetchall()
    assert ["b"] == waiting(path)


def test_many_events_keep_their_order_in_one_statement(tmp_path: Path) -> None:
    """`publish_all` is one INSERT, and the relay reads the rows as they were given."""
    path, publisher = made(tmp_path)
    keys = [f"till-{number}" for number in range(1_000)]
    with closing(sqlite3.connect(path)) as connection:
        statements: list[str] = []
        connection.set_trace_callback(statements.append)
        ids = publisher.publish_all([SaleMade(key) for key in keys], tx=connection)
        connection.commit()
    assert 1 == sum(statement.startswith("INSERT") for statement in statements)
    assert len(keys) == len(set(ids))
    assert keys == waiting(path)


def test_a_savepoint_takes_its_events_with_it(tmp_path: Path) -> None:
    """What is rolled back to a savepoint never leaves; what was before it does."""
    path, publisher = made(tmp_path)
    with closing(sqlite3.connect(path, isolation_level=None)) as connection:
        connection.execute("BEGIN IMMEDIATE")
        publisher.publish(SaleMade("kept"), tx=connection)
        connection.execute("SAVEPOINT inner_one")
        publisher.publish(SaleMade("undone"), tx=connection)
        connection.execute("ROLLBACK TO inner_one")
        publisher.publish(SaleMade("after"), tx=connection)
        connection.execute("COMMIT")
    assert ["kept", "after"] == waiting(path)


def test_a_delay_and_an_id_travel_with_the_row(tmp_path: Path) -> None:
    """A delayed event is not due yet, an event with a caller's id has that id."""
    path, publisher = made(tmp_path)
    with closing(sqlite3.connect(path)) as connection:
        publisher.publish(SaleMade("later"), tx=connection, delay=timedelta(hours=1))
        assert "mine" == publisher.publish(SaleMade("now"), tx=connection, id="mine")
        connection.commit()
        assert [("later",)] == connection.execute("SELECT aggregateid FROM tidewire_outbox_delayed").fetchall()
    assert ["now"] == waiting(path)


def test_another_database_is_refused_and_left_alone(tmp_path: Path) -> None:
    """Event and data in two files cannot be one transaction: the words name both files, and nothing is begun."""
    path, publisher = made(tmp_path)
    for other in (tmp_path / "other.db", ":memory:"):
        with closing(sqlite3.connect(other)) as connection:
            with pytest.raises(ConfigurationError, match=r"till\.db") as caught:
                publisher.publish(SaleMade("a"), tx=connection)
            assert ("in memory" if other == ":memory:" else "other.db") in caught.value.message
            assert not connection.in_transaction
    assert [] == waiting(path)


def test_a_link_to_the_file_is_the_same_database(tmp_path: Path) -> None:
    """What counts is the file, not how its path is written."""
    path, publisher = made(tmp_path)
    with closing(sqlite3.connect(path.parent / "." / path.name)) as connection:
        publisher.publish(SaleMade("a"), tx=connection)
        connection.commit()
    assert ["a"] == waiting(path)


@pytest.mark.parametrize(
    ("bad", "words"),
    [
        (SaleMade("nul\0"), "character NUL"),
        (SaleMade("\ud800"), "surrogates not allowed"),
        ("no event", "is not an event"),
    ],
)
def test_what_cannot_travel_raises_before_the_transaction_is_touched(tmp_path: Path, bad: object, words: str) -> None:
    """NUL text, text that is no text, an object that is no event: the caller's transaction is as it was."""
    path, publisher = made(tmp_path)
    with closing(sqlite3.connect(path)) as connection:
        statements: list[str] = []
        connection.set_trace_callback(statements.append)
        with pytest.raises((ConfigurationError, ValueError), match=words):
            publisher.publish(bad, tx=connection)
        assert [] == statements
        assert not connection.in_transaction


def test_a_file_that_was_never_a_store_says_so(tmp_path: Path) -> None:
    """A missing outbox is told with what makes it."""
    path = tmp_path / "plain.db"
    publisher = sync_publisher("till", store=f"sqlite:///{path}")
    with closing(sqlite3.connect(path)) as connection, pytest.raises(ConfigurationError, match="no outbox yet"):
        publisher.publish(SaleMade("a"), tx=connection)


def test_handles_that_are_awaited_and_those_that_are_not_are_told_apart(tmp_path: Path) -> None:
    """Each publisher names the other one to whoever comes with the wrong kind of handle."""
    path, publisher = made(tmp_path)
    with pytest.raises(ConfigurationError, match=r"object is not a transaction"):
        publisher.publish(SaleMade("a"), tx=object())

    async def scenario() -> None:
        engine = create_async_engine(f"sqlite+aiosqlite:///{path}", poolclass=NullPool)
        async with (
            open_memory_transport() as broker,
            open_sqlite_store(path) as store,
            open_publisher("till", transport=broker, store=store) as awaited,
            AsyncSession(engine) as session,
        ):
            with pytest.raises(ConfigurationError, match="AsyncSession is awaited"):
                publisher.publish(SaleMade("a"), tx=session)
            with closing(sqlite3.connect(path)) as connection, pytest.raises(ConfigurationError) as caught:
                await awaited.publish(SaleMade("a"), tx=connection)
            assert "sync_publisher" in caught.value.hint
        await engine.dispose()

    asyncio.run(scenario())


# --- SQLAlchemy -----------------------------------------------------------------------------------------------


def test_a_session_of_sqlalchemy_commits_rows_and_events_together(tmp_path: Path) -> None:
    """`Session`, with a savepoint in it, as SQLAlchemy's docs say to begin on SQLite."""
    path, publisher = made(tmp_path)
    engine = create_engine(f"sqlite:///{path}", poolclass=NullPool)

    @listens.listens_for(engine, "connect")
    def no_begin_of_the_driver(connection: Any, record: Any) -> None:
        connection.isolation_level = None

    @listens.listens_for(engine, "begin")
    def begin(connection: Any) -> None:
        connection.exec_driver_sql("BEGIN IMMEDIATE")

    with Session(engine) as session:
        publisher.publish(SaleMade("undone"), tx=session)
        session.rollback()
    with Session(engine) as session, session.begin():
        session.execute(text("INSERT INTO sale VALUES ('a')"))
        publisher.publish(SaleMade("a"), tx=session)
        inner = session.begin_nested()
        publisher.publish(SaleMade("inner"), tx=session)
        inner.rollback()
        publisher.publish(SaleMade("b"), tx=session.connection())
    assert ["a", "b"] == waiting(path)


def test_an_awaited_session_publishes_through_the_running_publisher(tmp_path: Path) -> None:
    """`Publisher.publish(tx=session)`: what is committed reaches the broker, what is rolled back does not."""
    path, _ = made(tmp_path)
    heard: list[str] = []
    last = asyncio.Event()
    books = Service("books")

    @books.on(SaleMade, on_dead_letter="continue")
    async def note(sale: SaleMade) -> None:
        heard.append(sale.till)
        if sale.till == "last":
            last.set()

    async def scenario() -> None:
        engine = create_async_engine(f"sqlite+aiosqlite:///{path}", poolclass=NullPool)
        async with (
            open_memory_transport() as broker,
            running(books, transport=broker),
            open_sqlite_store(path, poll=timedelta(milliseconds=5)) as store,
            open_publisher("till", transport=broker, store=store) as publisher,
            AsyncSession(engine) as session,
        ):
            await publisher.publish(SaleMade("undone"), tx=session)
            await session.rollback()
            async with session.begin():
                await session.execute(text("INSERT INTO sale VALUES ('a')"))
                await publisher.publish_all([SaleMade("a"), SaleMade("last")], tx=session)
                assert (0, 0) == await store.outbox.count()
            await asyncio.wait_for(last.wait(), 10)
        await engine.dispose()
        assert {"a", "last"} == {*heard}

    asyncio.run(scenario())


# --- Django ---------------------------------------------------------------------------------------------------

DJANGO = """
import sys
from pathlib import Path
import django
from django.conf import settings

path, other = sys.argv[1:]
database = {"ENGINE": "django.db.backends.sqlite3"}
settings.configure(DATABASES={"default": {**database, "NAME": path}, "other": {**database, "NAME": other}})
django.setup()

from django.db import connection, connections, transaction
from tidewire import ConfigurationError, event
from tidewire.config import sync_publisher


@event("till.sale.made", key="till")
class SaleMade:
    till: str


publisher = sync_publisher("till", store=f"sqlite:///{path}")
try:
    publisher.publish(SaleMade("no transaction"), tx=connection)
except ConfigurationError as error:
    print("refused:", error.hint)
try:
    with transaction.atomic():
        publisher.publish(SaleMade("rolled back"), tx=connection)
        raise KeyError
except KeyError:
    pass
try:
    with transaction.atomic(using="other"):
        publisher.publish(SaleMade("elsewhere"), tx=connections["other"])
except ConfigurationError as error:
    print("refused:", error.hint)
with transaction.atomic():
    with connection.cursor() as cursor:
        cursor.execute("INSERT INTO sale VALUES (%s)", ["a"])
    publisher.publish_all([SaleMade("a"), SaleMade("100 %s")], tx=connection)
    try:
        with transaction.atomic():
            publisher.publish(SaleMade("inner"), tx=connections["default"])
            raise KeyError
    except KeyError:
        pass
    publisher.publish(SaleMade("b"), tx=connection)
"""


def test_django_commits_rows_and_events_together(tmp_path: Path) -> None:
    """Inside `transaction.atomic`, blocks within blocks included; outside of it, and elsewhere, it is refused."""
    path, _ = made(tmp_path)
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", DJANGO, str(path), str(tmp_path / "other.db")],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert "" == done.stderr
    words = ["refused: publish inside `with transaction.atomic():`", "refused: event and data commit together"]
    assert words == [line.partition(" in one database")[0] for line in done.stdout.splitlines()]
    assert ["a", "100 %s", "b"] == waiting(path)
