"""Publishing into the caller's own transaction on the database of a PostgreSQL store, through other libraries."""

from __future__ import annotations

import asyncio
import subprocess
import sys
from collections.abc import Sequence
from datetime import timedelta
from typing import Any

import asyncpg
import psycopg
import pytest
from psycopg.rows import dict_row
from sqlalchemy import create_engine, text
from sqlalchemy import event as listens
from sqlalchemy.ext.asyncio import AsyncSession, create_async_engine
from sqlalchemy.orm import Session

from tidewire import ConfigurationError, Options, Service, event, open_publisher, running
from tidewire.config import open_store, sync_publisher
from tidewire.transports.memory import open_memory_transport


@event("shop.deal.done", key="deal")
class DealDone:
    deal: str


@pytest.fixture
def deals(postgresql_url: str) -> str:
    """The URL of a store, in a database with a table of the user's."""

    async def make() -> None:
        async with open_store(postgresql_url, provision=True):
            pass

    asyncio.run(make())
    with psycopg.connect(postgresql_url, autocommit=True) as connection:
        connection.execute("CREATE TABLE deal (name text)")
    return postgresql_url


def with_driver(url: str, driver: str) -> str:
    return url.replace("postgresql://", f"postgresql+{driver}://")


def left(url: str) -> Sequence[tuple[Any, ...]]:
    """Return the keys in the outbox, and the user's rows."""
    with psycopg.connect(url) as connection:
        events = connection.execute('SELECT aggregateid FROM tidewire_outbox ORDER BY "row"').fetchall()
        rows = connection.execute("SELECT name FROM deal").fetchall()
    return [key for (key,) in events], [name for (name,) in rows]


# --- synchronous ----------------------------------------------------------------------------------------------


def test_psycopg_commits_rows_and_events_together(deals: str) -> None:
    """A rolled back transaction leaves no event, a savepoint takes its own with it, a commit keeps the rest."""
    publisher = sync_publisher("shop", store=deals)
    with psycopg.connect(deals, row_factory=dict_row, cursor_factory=psycopg.ClientCursor) as connection:
        publisher.publish(DealDone("undone"), tx=connection)
        connection.rollback()
        connection.execute("INSERT INTO deal VALUES ('a')")
        publisher.publish_all([DealDone("a"), DealDone("ü, %s and $1")], tx=connection)
        with connection.transaction() as inner:
            publisher.publish(DealDone("inner"), tx=connection)
            raise psycopg.Rollback(inner)
        publisher.publish(DealDone("later"), tx=connection, delay=timedelta(hours=1))
    assert (["a", "ü, %s and $1"], ["a"]) == left(deals)


def test_a_session_of_sqlalchemy_is_the_transaction(deals: str) -> None:
    """`Session` and `Connection` over psycopg."""
    publisher = sync_publisher("shop", store=deals)
    engine = create_engine(with_driver(deals, "psycopg"))
    with Session(engine) as session:
        publisher.publish(DealDone("undone"), tx=session)
        session.rollback()
        session.execute(text("INSERT INTO deal VALUES ('a')"))
        publisher.publish_all([DealDone(f"{number}") for number in range(3)], tx=session)
        publisher.publish(DealDone("one"), tx=session.connection())
        session.commit()
    engine.dispose()
    assert (["0", "1", "2", "one"], ["a"]) == left(deals)


def test_all_rows_are_one_statement(deals: str) -> None:
    """Three events cost the round trip of one, once it is known where a connection leads."""
    publisher = sync_publisher("shop", store=deals)
    engine = create_engine(with_driver(deals, "psycopg"))
    said: list[str] = []

    @listens.listens_for(engine, "before_cursor_execute")
    def note(connection: Any, cursor: Any, statement: str, *rest: object) -> None:
        said.append(statement.partition(" ")[0])

    for _ in range(2):
        with Session(engine) as session, session.begin():
            publisher.publish_all([DealDone("a"), DealDone("b"), DealDone("c")], tx=session)
    engine.dispose()
    assert ["SELECT", "SELECT", "INSERT", "INSERT"] == said
    assert (["a", "b", "c"] * 2, []) == left(deals)


def test_bad_input_leaves_the_transaction_as_it_was(deals: str) -> None:
    """NUL in a header, text that is no text, another kind of handle: not a statement has been said."""
    publisher = sync_publisher("shop", store=deals)
    with psycopg.connect(deals) as connection:
        for bad, headers in ((DealDone("a"), {"note": "\0"}), (DealDone("\ud800"), None)):
            with pytest.raises((ConfigurationError, ValueError)):
                publisher.publish(bad, tx=connection, headers=headers)
            assert psycopg.pq.TransactionStatus.IDLE == connection.info.transaction_status
        connection.execute("INSERT INTO deal VALUES ('a')")
        with pytest.raises(ConfigurationError, match="is not an event"):
            publisher.publish("no event", tx=connection)
        publisher.publish(DealDone("a"), tx=connection)
    assert (["a"], ["a"]) == left(deals)


def test_a_database_without_the_tables_is_refused_and_goes_on(deals: str, postgresql_server: str) -> None:
    """Elsewhere the words name the fix, and what the caller has written there can still be committed."""
    publisher = sync_publisher("shop", store=deals)
    with psycopg.connect(postgresql_server) as connection:
        connection.execute("CREATE TEMP TABLE own AS SELECT 1 AS one")
        with pytest.raises(ConfigurationError, match="without the tables") as caught:
            publisher.publish(DealDone("a"), tx=connection)
        assert "tidewire store upgrade" in caught.value.hint
        assert (1,) == connection.execute("SELECT one FROM own").fetchone()


DJANGO = """
import sys
from urllib.parse import urlsplit
import django
from django.conf import settings

url = urlsplit(sys.argv[1])
where = {"HOST": url.hostname, "PORT": url.port, "USER": url.username, "PASSWORD": url.password, "NAME": url.path[1:]}
settings.configure(DATABASES={"default": {"ENGINE": "django.db.backends.postgresql", **where}})
django.setup()

from django.db import connection, transaction
from tidewire import ConfigurationError, event
from tidewire.config import sync_publisher


@event("shop.deal.done", key="deal")
class DealDone:
    deal: str


publisher = sync_publisher("shop", store=sys.argv[1])
try:
    publisher.publish(DealDone("no transaction"), tx=connection)
except ConfigurationError as error:
    print("refused:", error.hint)
with transaction.atomic():
    with connection.cursor() as cursor:
        cursor.execute("INSERT INTO deal VALUES (%s)", ["a"])
    publisher.publish_all([DealDone("a"), DealDone("100 %s")], tx=connection)
    try:
        with transaction.atomic():
            publisher.publish(DealDone("inner"), tx=connection)
            raise KeyError
    except KeyError:
        pass
"""


def test_django_commits_rows_and_events_together(deals: str) -> None:
    """Inside `transaction.atomic`; a block within it takes its own events with it."""
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", DJANGO, deals], capture_output=True, text=True, timeout=60, check=False
    )
    assert ("", "refused: publish inside `with transaction.atomic():`\n") == (done.stderr, done.stdout)
    assert (["a", "100 %s"], ["a"]) == left(deals)


# --- asynchronous ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("driver", ["asyncpg", "psycopg"])
def test_what_an_awaited_session_commits_reaches_the_broker(deals: str, driver: str) -> None:
    """`Publisher.publish(tx=session)`, in an application that has a broker and relays by itself."""
    heard: list[str] = []
    last = asyncio.Event()
    books = Service("books")

    @books.on(DealDone, on_dead_letter="continue")
    async def note(deal: DealDone) -> None:
        heard.append(deal.deal)
        if deal.deal == "last":
            last.set()

    async def scenario() -> None:
        engine = create_async_engine(with_driver(deals, driver))
        async with (
            open_memory_transport() as broker,
            running(books, transport=broker),
            open_store(deals, poll=timedelta(milliseconds=5)) as store,
            open_publisher("shop", transport=broker, store=store) as publisher,
        ):
            async with AsyncSession(engine) as session:
                await publisher.publish(DealDone("undone"), tx=session)
                await session.rollback()
            async with AsyncSession(engine) as session, session.begin():
                await session.execute(text("INSERT INTO deal VALUES ('a')"))
                await publisher.publish_all([DealDone("a"), DealDone("last")], tx=session)
            await asyncio.wait_for(last.wait(), 10)
        await engine.dispose()
        assert {"a", "last"} == {*heard}

    asyncio.run(scenario())


def test_the_drivers_own_connections_are_transactions_too(deals: str) -> None:
    """A connection of an asyncpg pool, and an `AsyncConnection` of psycopg."""

    async def scenario() -> None:
        async with (
            open_memory_transport() as broker,
            open_store(deals) as store,
            open_publisher("shop", transport=broker, store=store, options=Options(relay=False)) as publisher,
            asyncpg.create_pool(deals, min_size=0) as pool,
        ):
            async with pool.acquire() as connection:
                with pytest.raises(ConfigurationError, match="not in a transaction"):
                    await publisher.publish(DealDone("no transaction"), tx=connection)
                async with connection.transaction():
                    await connection.execute("INSERT INTO deal VALUES ('a')")
                    await publisher.publish_all([DealDone("a"), DealDone("b")], tx=connection)
                    inner = connection.transaction()
                    await inner.start()
                    await publisher.publish(DealDone("inner"), tx=connection)
                    await inner.rollback()
            async with await psycopg.AsyncConnection.connect(deals, row_factory=dict_row) as plain:
                await publisher.publish(DealDone("undone"), tx=plain)
                await plain.rollback()
                await publisher.publish(DealDone("c"), tx=plain)

    asyncio.run(scenario())
    assert (["a", "b", "c"], ["a"]) == left(deals)


def test_another_store_is_told_apart_by_its_id(deals: str, postgresql_server: str) -> None:
    """A database with the same tables, but of another store: the transaction there goes on."""
    place = f"{postgresql_server}?schema=another_store"

    async def scenario() -> None:
        async with (
            open_memory_transport() as broker,
            open_store(place, provision=True) as store,
            open_publisher("shop", transport=broker, store=store, options=Options(relay=False)) as publisher,
            await psycopg.AsyncConnection.connect(deals) as connection,
        ):
            await connection.execute("CREATE SCHEMA another_store")
            await connection.execute("CREATE TABLE another_store.tidewire_store AS SELECT gen_random_uuid() AS id")
            with pytest.raises(ConfigurationError, match="another database"):
                await publisher.publish(DealDone("a"), tx=connection)
            await connection.execute("SELECT 1")

    try:
        asyncio.run(scenario())
    finally:
        with psycopg.connect(postgresql_server, autocommit=True) as connection:
            connection.execute("DROP SCHEMA IF EXISTS another_store CASCADE")
