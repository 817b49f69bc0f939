"""Handles of other libraries, each against its real library and a real database."""

from __future__ import annotations

import asyncio
import sqlite3
from collections.abc import Callable, Generator, Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import asyncpg
import psycopg
import pytest
import sqlalchemy
from psycopg.rows import dict_row
from sqlalchemy.ext.asyncio import AsyncSession, async_scoped_session, async_sessionmaker, create_async_engine
from sqlalchemy.orm import Session, scoped_session, sessionmaker
from sqlalchemy.pool import NullPool

from tidewire.errors import ConfigurationError
from tidewire.kit.handles import async_handle, sync_handle

WRITE = "INSERT INTO noted (one, two) VALUES ($2, $1), ($3, '100 %')"
READ = "SELECT two, one FROM noted WHERE one >= $1 ORDER BY one"
VALUES = ("zwei", 1, 2)
FOUND = [("zwei", 1), ("100 %", 2)]
TABLE = "CREATE TABLE noted (one INTEGER, two TEXT)"


@pytest.fixture
def sqlite_url(tmp_path: Path) -> str:
    with closing(sqlite3.connect(tmp_path / "noted.db", isolation_level=None)) as connection:
        connection.execute(TABLE)
        connection.execute("PRAGMA journal_mode=WAL").fetchall()
    return f"sqlite:///{tmp_path / 'noted.db'}"


@pytest.fixture
def noted_url(postgresql_url: str) -> str:
    with psycopg.connect(postgresql_url, autocommit=True) as connection:
        connection.execute(TABLE)
    return postgresql_url


def alchemy_url(url: str, *, driver: str) -> str:
    return url.replace("postgresql://", f"postgresql+{driver}://").replace("sqlite://", f"sqlite+{driver}://")


@contextmanager
def engine_at(url: str, **options: Any) -> Generator[sqlalchemy.Engine]:
    engine = sqlalchemy.create_engine(url, poolclass=NullPool, **options)
    try:
        yield engine
    finally:
        engine.dispose()


# --- synchronous ----------------------------------------------------------------------------------------------


@contextmanager
def sqlite_plain(url: str) -> Iterator[Any]:
    with closing(sqlite3.connect(url.removeprefix("sqlite:///"))) as connection:
        connection.row_factory = sqlite3.Row
        yield connection


@contextmanager
def sqlite_begun_by_hand(url: str) -> Iterator[Any]:
    with closing(sqlite3.connect(url.removeprefix("sqlite:///"), isolation_level=None)) as connection:
        connection.execute("BEGIN IMMEDIATE")
        yield connection


@contextmanager
def session(url: str) -> Iterator[Any]:
    with engine_at(url) as engine, Session(engine) as made:
        yield made


@contextmanager
def session_per_thread(url: str) -> Iterator[Any]:
    with engine_at(url) as engine:
        made = scoped_session(sessionmaker(engine))
        yield made
        made.remove()


@contextmanager
def alchemy_connection(url: str) -> Iterator[Any]:
    with engine_at(url) as engine, engine.connect() as made:
        yield made


@contextmanager
def over_psycopg(url: str) -> Iterator[Any]:
    with session(alchemy_url(url, driver="psycopg")) as made:
        yield made


@contextmanager
def psycopg_plain(url: str) -> Iterator[Any]:
    with psycopg.connect(url, row_factory=dict_row, cursor_factory=psycopg.ClientCursor) as made:
        yield made


SYNC_SQLITE = [sqlite_plain, sqlite_begun_by_hand, session, session_per_thread, alchemy_connection]
SYNC_POSTGRESQL = [psycopg_plain, over_psycopg]


def sync_round(opened: Callable[[str], Any], url: str) -> None:
    """Write in the caller's transaction, read it there, roll back; write again and commit; look from outside."""
    for kept in (False, True):
        with opened(url) as tx:
            handle = sync_handle(tx)
            assert handle is not None
            sql = handle.begun()
            assert [] == list(sql.rows(WRITE, VALUES))
            assert FOUND == list(sql.rows(READ, (1,)))
            (tx.commit if kept else tx.rollback)()
        with opened(url) as tx:
            handle = sync_handle(tx)
            assert handle is not None
            assert (FOUND if kept else []) == list(handle.begun().rows(READ, (1,)))


@pytest.mark.parametrize("opened", SYNC_SQLITE)
def test_a_synchronous_handle_of_sqlite_is_written_into(opened: Callable[[str], Any], sqlite_url: str) -> None:
    """Our statement is one more of the caller's transaction: it is there if that commits, else not."""
    sync_round(opened, sqlite_url)


@pytest.mark.parametrize("opened", SYNC_POSTGRESQL)
def test_a_synchronous_handle_of_postgresql_is_written_into(opened: Callable[[str], Any], noted_url: str) -> None:
    """The same on PostgreSQL, whatever kinds of cursors and rows the caller's connection makes."""
    sync_round(opened, noted_url)


# --- asynchronous ---------------------------------------------------------------------------------------------

Body = Callable[[Any], Any]


async def in_asyncpg(url: str, body: Body) -> None:
    connection = await asyncpg.connect(url)
    transaction = connection.transaction()
    await transaction.start()
    try:
        await (transaction.commit if await body(connection) else transaction.rollback)()
    finally:
        await connection.close()


async def in_asyncpg_pool(url: str, body: Body) -> None:
    async with asyncpg.create_pool(url, min_size=0) as pool, pool.acquire() as connection:
        transaction = connection.transaction()
        await transaction.start()
        await (transaction.commit if await body(connection) else transaction.rollback)()


async def in_psycopg(url: str, body: Body) -> None:
    async with await psycopg.AsyncConnection.connect(url, row_factory=dict_row) as connection:
        await (connection.commit if await body(connection) else connection.rollback)()


async def in_session(url: str, body: Body) -> None:
    engine = create_async_engine(url, poolclass=NullPool)
    async with AsyncSession(engine) as made:
        await (made.commit if await body(made) else made.rollback)()
    await engine.dispose()


async def in_session_per_task(url: str, body: Body) -> None:
    engine = create_async_engine(url, poolclass=NullPool)
    made = async_scoped_session(async_sessionmaker(engine), asyncio.current_task)
    await (made.commit if await body(made) else made.rollback)()
    await made.remove()
    await engine.dispose()


async def in_alchemy_connection(url: str, body: Body) -> None:
    engine = create_async_engine(url, poolclass=NullPool)
    async with engine.connect() as made:
        await (made.commit if await body(made) else made.rollback)()
    await engine.dispose()


async def async_round(within: Callable[[str, Body], Any], url: str) -> None:
    """As `sync_round`."""

    async def write(tx: Any) -> None:
        handle = async_handle(tx)
        assert handle is not None
        sql = await handle.begun()
        assert [] == list(await sql.rows(WRITE, VALUES))
        assert FOUND == list(await sql.rows(READ, (1,)))

    async def read(tx: Any) -> None:
        handle = async_handle(tx)
        assert handle is not None
        found.extend(await (await handle.begun()).rows(READ, (1,)))

    async def write_and_keep(tx: Any) -> bool:
        await write(tx)
        return True

    for body, expected in ((write, []), (write_and_keep, FOUND)):
        found: list[Any] = []
        await within(url, body)
        await within(url, read)
        assert expected == found


@pytest.mark.parametrize("within", [in_session, in_session_per_task, in_alchemy_connection])
def test_an_awaited_handle_of_sqlite_is_written_into(within: Callable[[str, Body], Any], sqlite_url: str) -> None:
    """SQLAlchemy over aiosqlite: our statement is one more of the caller's transaction."""
    asyncio.run(async_round(within, alchemy_url(sqlite_url, driver="aiosqlite")))


@pytest.mark.parametrize("within", [in_asyncpg, in_asyncpg_pool, in_psycopg])
def test_an_awaited_connection_of_postgresql_is_written_into(
    within: Callable[[str, Body], Any], noted_url: str
) -> None:
    """The drivers' own connections, from a pool or not."""
    asyncio.run(async_round(within, noted_url))


@pytest.mark.parametrize("driver", ["asyncpg", "psycopg"])
@pytest.mark.parametrize("within", [in_session, in_session_per_task, in_alchemy_connection])
def test_sqlalchemy_over_any_driver_is_written_into(
    within: Callable[[str, Body], Any], driver: str, noted_url: str
) -> None:
    """The placeholders are the driver's, whichever is under the session."""
    asyncio.run(async_round(within, alchemy_url(noted_url, driver=driver)))


# --- what is in no transaction --------------------------------------------------------------------------------


def test_a_connection_that_commits_each_statement_is_refused(sqlite_url: str, noted_url: str) -> None:
    """Without a transaction the event would leave whatever becomes of the data; the fix is in the words."""
    path = sqlite_url.removeprefix("sqlite:///")
    with closing(sqlite3.connect(path, isolation_level=None)) as connection:
        refused(connection, fix="BEGIN IMMEDIATE")
    with psycopg.connect(noted_url, autocommit=True) as plain:
        refused(plain, fix="with connection.transaction():")
        handle = sync_handle(plain)
        assert handle is not None
        with plain.transaction():
            handle.begun()
    for url in (sqlite_url, alchemy_url(noted_url, driver="psycopg")):
        with engine_at(url, isolation_level="AUTOCOMMIT") as engine:
            with engine.connect() as alchemy:
                refused(alchemy, fix="without it")
            with Session(engine) as made:
                refused(made, fix="without it")
        with engine_at(url) as engine:
            with engine.connect().execution_options(isolation_level="AUTOCOMMIT") as alchemy:
                refused(alchemy, fix="without it")
            with Session(engine, autobegin=False) as strict:
                refused(strict, fix="with session.begin():")


def refused(tx: Any, *, fix: str) -> None:
    handle = sync_handle(tx)
    assert handle is not None
    with pytest.raises(ConfigurationError, match="not in a transaction") as caught:
        handle.begun()
    assert fix in caught.value.hint


def test_an_awaited_connection_that_commits_each_statement_is_refused(noted_url: str) -> None:
    """The same for asyncpg, for psycopg's autocommit, and for SQLAlchemy over both."""

    async def refused(tx: Any, *, fix: str) -> None:
        handle = async_handle(tx)
        assert handle is not None
        with pytest.raises(ConfigurationError, match="not in a transaction") as caught:
            await handle.begun()
        assert fix in caught.value.hint

    async def scenario() -> None:
        raw = await asyncpg.connect(noted_url)
        await refused(raw, fix="async with connection.transaction():")
        await raw.close()
        async with await psycopg.AsyncConnection.connect(noted_url, autocommit=True) as plain:
            await refused(plain, fix="async with connection.transaction():")
        for driver in ("asyncpg", "psycopg"):
            url = alchemy_url(noted_url, driver=driver)
            engine = create_async_engine(url, isolation_level="AUTOCOMMIT", poolclass=NullPool)
            async with AsyncSession(engine) as made:
                await refused(made, fix="without it")
            async with AsyncSession(engine, autobegin=False) as strict:
                await refused(strict, fix="async with session.begin():")
            await engine.dispose()

    asyncio.run(scenario())


def test_what_is_no_handle_is_not_taken_for_one() -> None:
    """Neither a plain value nor a handle of the other kind: what is awaited and what is not are never mixed up."""
    with closing(sqlite3.connect(":memory:")) as connection:
        assert sync_handle(connection) is not None
        assert async_handle(connection) is None
    assert sync_handle(object()) is None
    assert async_handle(object()) is None
