"""The outbox in PostgreSQL: who is woken by what, and how partitions change hands, on a real server."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import asynccontextmanager
from datetime import timedelta
from typing import Any

import asyncpg
import psycopg
import pytest
from outbox_readers import CURSORS, committed_by, read_by_claims, read_by_cursor, wrong_about
from sqlalchemy.ext.asyncio import AsyncSession, create_async_engine

from tidewire.kit.postgres.place import postgres_place
from tidewire.kit.postgres.wire import Answers, Statement
from tidewire.model import Message, Topic
from tidewire.protocols import Unit
from tidewire.stores.postgres import PostgresStore, open_postgres_store
from tidewire.stores.postgres.events import channel_of

LONG, HOUR = timedelta(seconds=20), timedelta(hours=1)
POLL = timedelta(milliseconds=200)


def message(name: str, key: str | None = "k", *, due: int | None = None) -> Message:
    return Message(Topic("t"), name, "s", key, {"ce-type": "t.tested"}, b"{}", due)


async def commit(store: PostgresStore, *messages: Message) -> None:
    unit = store.unit()
    await store.outbox.put(unit, messages)
    await (await unit.seal())


async def names(store: PostgresStore, owner: str) -> list[str]:
    return [row.message.id for row in await store.backlog.claim(owner, after=0, limit=1_000)]


@asynccontextmanager
async def two_stores(url: str, *, poll: timedelta = HOUR) -> AsyncGenerator[tuple[PostgresStore, PostgresStore]]:
    """Two connections to the same store, as two processes have them; nobody looks before *poll* is over."""
    async with (
        open_postgres_store(url, provision=True, poll=poll) as first,
        open_postgres_store(url, poll=poll) as second,
        asyncio.timeout(25),
    ):
        yield first, second


async def hears(store: PostgresStore) -> None:
    """Wait until *store* listens, and forget what it has heard."""
    while not store.outbox.wake.hears:
        await store.outbox.wait(timedelta(milliseconds=20))
    while await store.outbox.wait(timedelta(milliseconds=20)):
        continue


@pytest.mark.parametrize("where", ["here", "elsewhere"])
def test_a_commit_between_the_look_and_the_wait_is_heard(postgresql_url: str, where: str) -> None:
    """OX-16: who has found nothing and waits next, hears of what was committed in between, without looking."""

    async def scenario() -> None:
        async with two_stores(postgresql_url) as (store, other):
            assert await store.backlog.lease("a", HOUR)
            await hears(store)
            for number in range(5):
                assert [] == await names(store, "a")
                await commit(store if where == "here" else other, message(f"{number}"))
                assert await store.outbox.wait(LONG)
                (row,) = await store.backlog.claim("a", after=0, limit=9)
                assert await store.backlog.done("a", [row.row])

    asyncio.run(scenario())


def test_without_any_notification_rows_are_found_by_looking(postgresql_url: str) -> None:
    """OX-16: where every notification is lost, a row is found after a few looks' time: a listener that hears looks
    every fourth time only."""

    async def scenario() -> None:
        async with two_stores(postgresql_url, poll=POLL) as (store, _):
            assert await store.backlog.lease("a", HOUR)
            await hears(store)
            for number in range(3):
                with psycopg.connect(postgresql_url) as silent:  # a writer that notifies nobody
                    silent.execute(
                        "INSERT INTO tidewire_outbox (part, id, source, aggregatetype, type, headers, payload) "
                        f"VALUES ({number}, '{number}', 's', 't', 'x', '{{}}', '')".encode()
                    )
                began = time.monotonic()
                while not await names(store, "a"):
                    await store.outbox.wait(LONG)
                assert time.monotonic() - began < LONG.total_seconds() / 2
                rows = await store.backlog.claim("a", after=0, limit=9)
                assert await store.backlog.done("a", [row.row for row in rows])

    asyncio.run(scenario())


def test_a_listener_that_is_cut_off_hears_again(postgresql_url: str) -> None:
    """OB11: a connection that is cut is made anew, and what was committed meanwhile is heard of then."""

    async def scenario() -> None:
        async with two_stores(postgresql_url) as (store, other):
            assert await store.backlog.lease("a", HOUR)
            await hears(store)
            async with await psycopg.AsyncConnection.connect(postgresql_url, autocommit=True) as shell:
                await shell.execute(
                    "SELECT pg_terminate_backend(pid) FROM pg_stat_activity "
                    "WHERE query LIKE 'LISTEN%' AND datname = current_database()"
                )
            await commit(other, message("meanwhile"))
            assert await store.outbox.wait(LONG)
            assert ["meanwhile"] == await names(store, "a")

    asyncio.run(scenario())


def test_partitions_are_handed_over_at_once(postgresql_url: str) -> None:
    """ST-25: a relay that comes gets its share and one that goes leaves its own, long before any lease ends; what is on
    its way stays where it is until it has landed."""

    async def scenario() -> None:
        async with two_stores(postgresql_url) as (store, other):
            await commit(store, *[message(f"{number}", f"k{number}") for number in range(200)])
            assert await store.backlog.lease("a", HOUR)
            await hears(store)
            rows = await store.backlog.claim("a", after=0, limit=1_000)
            flying = frozenset(row.row for row in rows)
            assert not await other.backlog.lease("b", HOUR)
            assert await store.outbox.wait(LONG), "it hears of the other"
            await store.backlog.claim("a", after=0, limit=9, without=flying)
            assert not await other.backlog.lease("b", HOUR), "everything is on its way"
            assert await store.backlog.done("a", [row.row for row in rows])
            await store.backlog.claim("a", after=0, limit=9)
            assert await other.backlog.lease("b", HOUR)
            await commit(store, *[message(f"{number}", f"k{number}") for number in range(200)])
            mine, others = await names(store, "a"), await names(other, "b")
            assert (200, 200) == (len(mine) + len(others), len({*mine, *others}))
            assert min(len(mine), len(others)) > 50

            await hears(store)
            await other.backlog.lease("b", timedelta(0))
            assert await store.outbox.wait(LONG), "it hears that the other has gone"
            assert 200 == len(await names(store, "a"))

    asyncio.run(scenario())


def test_a_delayed_row_of_another_process_is_heard_of(postgresql_url: str) -> None:
    """OX-16: whoever waits learns when a row is due that somebody else has committed."""

    async def scenario() -> None:
        async with two_stores(postgresql_url) as (store, other):
            assert await store.backlog.lease("a", HOUR)
            await hears(store)
            assert [] == await names(store, "a")
            await commit(other, message("later", due=int(time.time() * 1e6) + 300_000))
            while not (found := await names(store, "a")):
                assert await store.outbox.wait(LONG)
            assert ["later"] == found

    asyncio.run(scenario())


def test_an_open_write_transaction_is_seen(postgresql_url: str) -> None:
    """OB4: the age of the oldest transaction that has written something is known; one that only reads does no harm."""

    async def scenario() -> None:
        async with open_postgres_store(postgresql_url, provision=True) as store:
            with psycopg.connect(postgresql_url) as reading, psycopg.connect(postgresql_url) as writing:
                reading.execute("SELECT count(*) FROM tidewire_outbox")
                assert await store.oldest_write() is None
                writing.execute("CREATE TABLE mine (a integer)")
                await asyncio.sleep(0.05)
                age = await store.oldest_write()
            assert age is not None
            assert timedelta(milliseconds=50) <= age < timedelta(seconds=20)

    asyncio.run(scenario())


@pytest.mark.parametrize("cursor", CURSORS)
def test_readers_with_a_cursor_are_judged(postgresql_url: str, cursor: str) -> None:
    """OB1, OB2, OB3: with writers that commit out of order and roll back, the two wrong cursors are caught missing rows
    by the checker that finds nothing wrong with the right one."""
    sent, seen = read_by_cursor(postgresql_url, cursor, writers=8, rows=1_500)
    lost, _ = wrong_about(sent, seen)
    assert (cursor == "xid and row") == (lost == 0)


def test_claims_miss_nothing(postgresql_url: str) -> None:
    """OX-1, OB1: with the same writers, every committed row is claimed, once, in the order of its key."""
    sent, seen = read_by_claims(postgresql_url, writers=8, rows=3_000)
    assert (0, 0) == wrong_about(sent, seen)
    assert len(seen) == len({name for _, name in seen}) == sum(map(len, sent.values()))
    assert committed_by(sent) > 1_000


def test_what_was_committed_here_is_kept_for_the_relay_as_long_as_it_reads_it(postgresql_url: str) -> None:
    """Rows of this process are handed on in memory; those of partitions that another relay reads now are forgotten."""

    async def scenario() -> None:
        async with two_stores(postgresql_url) as (store, other):
            assert await store.backlog.lease("a", HOUR)
            await commit(store, *[message(f"{number}", f"k{number}") for number in range(200)])
            assert 200 == len(store.outbox.window)
            assert not await other.backlog.lease("b", HOUR)
            while not await other.backlog.lease("b", HOUR):
                await store.backlog.lease("a", HOUR)
            kept = {number & 63 for number in store.outbox.window}
            assert kept <= store.outbox.wake.parts
            assert 0 < len(store.outbox.window) < 200
            rows = await store.backlog.claim("a", after=0, limit=1_000)
            assert {row.row for row in rows} == {*store.outbox.window}
            assert await store.backlog.done("a", [row.row for row in rows])
            assert {} == store.outbox.window

    asyncio.run(scenario())


def test_what_was_told_before_we_listened_is_known_as_our_own(postgresql_url: str) -> None:
    """A commit is told while nobody here listens yet, and heard once somebody does: it wakes others, and not us."""

    async def scenario() -> None:
        async with two_stores(postgresql_url) as (store, other):
            told, run = asyncio.Event(), store.access.run

            async def held_back(what: str, *statements: Statement) -> Answers:
                if what == "waking relays":
                    told.set()
                    await hears(store)
                    await hears(other)
                return await run(what, *statements)

            store.access.run = held_back  # type: ignore[method-assign]
            await commit(store, message("1"))
            await told.wait()
            assert await other.outbox.wait(LONG)
            assert not await store.outbox.wait(timedelta(milliseconds=300))

    asyncio.run(scenario())


@pytest.mark.parametrize("driver", ["asyncpg", "psycopg"])
def test_a_callers_commit_is_heard_of_and_not_told_within(postgresql_url: str, driver: str) -> None:
    """Relays here and elsewhere hear of it at once, and the caller's transaction holds no notification."""

    async def scenario() -> None:
        async with two_stores(postgresql_url) as (store, other), listening(postgresql_url) as heard:
            await hears(store)
            await hears(other)
            async with begun(postgresql_url, driver) as (tx, _):
                await store.outbox.put(adopted(store, tx), [message("1"), message("2")])
                assert not await store.outbox.wait(timedelta(milliseconds=100))
            assert await store.outbox.wait(LONG)
            assert await other.outbox.wait(LONG)
            assert not (await heard()).endswith(".")

    asyncio.run(scenario())


def test_a_connection_that_hardly_rests_is_told_of(postgresql_url: str) -> None:
    """The next transaction of a connection may have begun before anybody looked: its next event tells of the last."""

    async def scenario() -> None:
        async with two_stores(postgresql_url) as (store, _):
            await hears(store)
            async with begun(postgresql_url, "asyncpg") as (tx, again):
                await store.outbox.put(adopted(store, tx), [message("1")])
                await asyncio.sleep(0.1)  # it has been looked at, and was open
                await again()
                await store.outbox.put(adopted(store, tx), [message("2", "other")])
                assert await store.outbox.wait(LONG)
                await hears(store)
            assert await store.outbox.wait(LONG)

    asyncio.run(scenario())


def test_a_session_whose_first_statement_is_the_publish_is_heard_of(postgresql_url: str) -> None:
    """SQLAlchemy begins with asyncpg's first statement: who looked before it would see no transaction, and tell too
    early."""

    async def scenario() -> None:
        engine = create_async_engine(postgresql_url.replace("postgresql://", "postgresql+asyncpg://"))
        async with two_stores(postgresql_url) as (store, _), AsyncSession(engine) as session:
            await hears(store)
            await store.outbox.put(adopted(store, session), [message("1")])
            assert not await store.outbox.wait(timedelta(milliseconds=100))
            await session.commit()
            assert await store.outbox.wait(LONG)
        await engine.dispose()

    asyncio.run(scenario())


def adopted(store: PostgresStore, tx: object) -> Unit:
    unit = store.adopt_tx(tx)
    assert unit is not None
    return unit


@asynccontextmanager
async def begun(url: str, driver: str) -> AsyncGenerator[tuple[object, Callable[[], Awaitable[object]]]]:
    """A connection in a transaction, which is committed at the end, and what commits and begins the next at once."""
    if driver == "psycopg":
        async with await psycopg.AsyncConnection[Any].connect(url) as connection:
            yield connection, connection.commit
        return
    plain = await asyncpg.connect(url)
    try:
        await plain.execute("BEGIN")
        yield plain, lambda: plain.execute("COMMIT AND CHAIN")
        await plain.execute("COMMIT")
        await asyncio.sleep(0.1)  # it is looked at, and not only closed
    finally:
        await plain.close()


@asynccontextmanager
async def listening(url: str) -> AsyncGenerator[Callable[[], Awaitable[str]]]:
    """What is told to relays, as any connection can hear it."""
    async with await psycopg.AsyncConnection[Any].connect(url, autocommit=True) as connection:
        await connection.execute(f"LISTEN {channel_of(postgres_place(url))}".encode())

        async def heard() -> str:
            return (await anext(connection.notifies())).payload

        yield heard
