"""A real PostgreSQL goes down, cuts, refuses and takes over amid the work: nothing is lost, nothing doubled."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import random
from collections.abc import Iterator
from typing import Any
from urllib.parse import quote

import psycopg
import pytest
from postgres_server import NoServer, PostgresServer, private_server
from postgres_world import CommitCutter, Handle, OrderPlaced, billing, prepare

from tidewire import Context
from tidewire.errors import StoreUnavailable
from tidewire.stores.postgres import PostgresStore


@pytest.fixture
def server() -> Iterator[PostgresServer]:
    """A server of the test's own, which it may kill."""
    with contextlib.ExitStack() as stack:
        try:
            yield stack.enter_context(private_server())
        except NoServer as error:
            pytest.skip(f"not proven: needs a PostgreSQL server: {error}")


def with_options(url: str, **settings: str) -> str:
    """Return *url* with settings of its sessions."""
    return f"{url}?options={quote(' '.join(f'-c {name}={value}' for name, value in settings.items()))}"


def execute(url: str, sql: str) -> None:
    """Run one statement as the superuser."""
    with psycopg.connect(url, autocommit=True) as connection:
        connection.execute(sql.encode())


def test_a_server_that_is_killed_under_load_loses_and_doubles_nothing(server: PostgresServer) -> None:
    """SIGKILL twice in the middle of a unit; the subscription waits and goes on, and no failure is counted."""
    calls, down = itertools.count(1), asyncio.Event()

    async def kill(order: OrderPlaced, context: Context[Any]) -> None:
        if next(calls) in (40, 240):
            await context.tx.execute("SELECT 1")  # the unit has begun
            await asyncio.to_thread(server.kill)
            down.set()

    async def scenario() -> None:
        await prepare(server.url)
        async with billing(server.url, 400, handle=kill) as (books, _):
            for _kill in range(2):
                await down.wait()
                down.clear()
                await asyncio.to_thread(server.start)
            await books.until_paid(400)
        books.balance(server.url, 400)
        assert 1 == max(books.attempts.values()), "an outage is nobody's failure"
        assert sum(books.calls.values()) >= 402, "cut off, and handled again"

    asyncio.run(scenario())


def test_connections_that_are_cut_lose_and_double_nothing(postgresql_url: str) -> None:
    """The server ends connections at random, those of units, of the store and of the relay."""
    chance, cuts = random.Random(7), 0

    async def take(order: OrderPlaced, context: Context[Any]) -> None:
        await context.tx.fetchval("SELECT 1")
        # The work outlasts ten cuts, however quick it is.
        while cuts <= int(order.order_id.removeprefix("o-")) // 30:  # noqa: ASYNC110 - a thread counts them
            await asyncio.sleep(0.005)

    async def scenario() -> None:
        nonlocal cuts
        await prepare(postgresql_url)
        async with billing(postgresql_url, 300, handle=take) as (books, _):
            finished = asyncio.ensure_future(books.until_paid(300))
            while not finished.done():
                cuts += await asyncio.to_thread(_cut_one, postgresql_url, chance)
                await asyncio.sleep(0.02)
            await finished
        books.balance(postgresql_url, 300)
        assert 1 == max(books.attempts.values())
        assert cuts >= 10

    asyncio.run(scenario())


def _cut_one(url: str, chance: random.Random) -> int:
    with psycopg.connect(url, autocommit=True) as connection:
        pids = connection.execute(
            "SELECT pid FROM pg_stat_activity WHERE application_name = 'tidewire' AND datname = current_database()"
        ).fetchall()
        if not pids:
            return 0
        connection.execute("SELECT pg_terminate_backend(%s)", chance.choice(pids))
        return 1


def test_a_connection_that_breaks_at_the_commit_loses_and_doubles_nothing(postgresql_url: str) -> None:
    """Before the server hears COMMIT, and before we hear that it did: the event comes again and meets its mark.

    Its handler would fail on a second run of an effect that happened: the mark is found before it runs.
    """

    async def scenario() -> None:
        await prepare(postgresql_url)
        execute(postgresql_url, "CREATE UNIQUE INDEX paid_once ON paid (order_id)")
        cutter = CommitCutter(postgresql_url, every=9)
        async with cutter.open() as url, billing(url, 150) as (books, _):
            await books.until_paid(150)
        books.balance(postgresql_url, 150)
        assert min(cutter.cut["before"], cutter.cut["after"]) >= 3, f"{cutter.cut}"
        assert 1 == max(books.attempts.values()), "nobody failed"

    asyncio.run(scenario())


def test_serialization_failures_are_nobodys_failure(postgresql_url: str) -> None:
    """Handlers that all change one row in serializable transactions conflict, run again, and are each counted once."""
    both, begun = asyncio.Barrier(2), 0

    async def take(order: OrderPlaced, context: Context[Any]) -> None:
        nonlocal begun
        begun += 1
        is_early = begun <= 2
        number = await context.tx.fetchval("SELECT number FROM stock WHERE name = 'book'")
        if is_early:
            await both.wait()  # two have read what each of them is about to change
        await context.tx.execute("UPDATE stock SET number = $1 WHERE name = 'book'", (number + 1,))

    async def scenario() -> None:
        await prepare(postgresql_url)
        url = with_options(postgresql_url, default_transaction_isolation="serializable")
        async with billing(url, 60, handle=take) as (books, _):
            await books.until_paid(60)
        books.balance(postgresql_url, 60)
        with psycopg.connect(postgresql_url) as connection:
            assert (60,) == connection.execute("SELECT number FROM stock").fetchone()
        assert 1 == max(books.attempts.values())
        assert sum(books.calls.values()) > 60, "they conflicted"

    asyncio.run(scenario())


def test_a_lock_that_does_not_come_is_nobodys_failure(postgresql_url: str) -> None:
    """While somebody holds the row, events wait, uncounted; then they are handled."""

    async def take(order: OrderPlaced, context: Context[Any]) -> None:
        await context.tx.execute("UPDATE stock SET number = number + 1 WHERE name = 'book'")

    async def scenario() -> None:
        await prepare(postgresql_url)
        url = with_options(postgresql_url, lock_timeout="30ms")
        with psycopg.connect(postgresql_url) as holder:
            holder.execute("SELECT 1 FROM stock FOR UPDATE")
            async with billing(url, 20, handle=take) as (books, _):
                await books.until(lambda: sum(books.calls.values()) >= 40)
                assert not books.payments
                holder.rollback()
                await books.until_paid(20)
        books.balance(postgresql_url, 20)
        assert 1 == max(books.attempts.values())

    asyncio.run(scenario())


@pytest.mark.parametrize("setting", ["statement_timeout", "idle_in_transaction_session_timeout"])
def test_a_handler_that_is_too_slow_for_its_database_is_tried_again(postgresql_url: str, setting: str) -> None:
    """The server ends the statement or the connection: a failure of that handler, counted, and no other's."""

    async def dawdle(order: OrderPlaced, context: Context[Any]) -> None:
        if order.order_id in ("o-3", "o-7") and context.attempt == 1:
            await context.tx.execute("INSERT INTO paid VALUES ($1)", (order.order_id,))
            pid = await context.tx.fetchval("SELECT pg_backend_pid()")
            await context.tx.execute(f"SET LOCAL {setting} = '100ms'")
            if setting == "statement_timeout":
                await context.tx.execute("SELECT pg_sleep(60)")
            while await asyncio.to_thread(_lives, postgresql_url, pid):  # noqa: ASYNC110 - the server knows no Event
                await asyncio.sleep(0.02)

    async def scenario() -> None:
        await prepare(postgresql_url)
        async with billing(postgresql_url, 20, handle=dawdle) as (books, _):
            await books.until_paid(20)
        books.balance(postgresql_url, 20)
        assert {"o-3": 2, "o-7": 2} == {order: count for order, count in books.attempts.items() if count > 1}

    asyncio.run(scenario())


def _lives(url: str, pid: int) -> bool:
    """Whether the server still has a connection."""
    with psycopg.connect(url, autocommit=True) as connection:
        return connection.execute("SELECT 1 FROM pg_stat_activity WHERE pid = %s", (pid,)).fetchone() is not None


def after(calls: int, then: asyncio.Event) -> Handle:
    """Return what lets so many *calls* pass at once, and those behind them *then*."""
    left = calls

    async def gate(order: OrderPlaced, context: Context[Any]) -> None:
        nonlocal left
        left -= 1
        if left < 0:
            await then.wait()

    return gate


async def refusal(store: PostgresStore) -> str:
    """Write something, and return why that is not possible, or nothing."""
    unit = store.unit()
    try:
        await unit.tx.execute("INSERT INTO stock VALUES ($1, 0)", (str(random.random()),))
        await (await unit.seal())
    except StoreUnavailable as error:
        return error.message
    finally:
        await unit.rollback()
    return ""


def test_a_server_that_becomes_read_only_is_waited_for(
    server: PostgresServer, caplog: pytest.LogCaptureFixture
) -> None:
    """As a former primary does: writes fail, nothing is counted, and the text names the cause; then it goes on."""

    async def scenario() -> None:
        await prepare(server.url)
        read_only = asyncio.Event()
        async with billing(server.url, 200, handle=after(100, read_only)) as (books, store):
            await books.until_paid(100)
            execute(server.url, "ALTER SYSTEM SET default_transaction_read_only = on")
            execute(server.url, "SELECT pg_reload_conf()")
            async with asyncio.timeout(20):
                said = ""
                while not said:  # a session that is open reads the new setting a moment later
                    said = await refusal(store)
            assert "read-only" in said
            read_only.set()
            async with asyncio.timeout(20):
                while "tidewire.consumer.paused" not in caplog.messages:  # noqa: ASYNC110 - a record sets no event
                    await asyncio.sleep(0.01)
            with psycopg.connect(server.url, autocommit=True) as connection:
                connection.execute("SET default_transaction_read_only = off")
                connection.execute("ALTER SYSTEM RESET default_transaction_read_only")
                connection.execute("SELECT pg_reload_conf()")
            await books.until_paid(200)
        books.balance(server.url, 200)
        assert 1 == max(books.attempts.values())

    asyncio.run(scenario())


def test_a_standby_that_takes_over_is_found(server: PostgresServer) -> None:
    """Both hosts are in the URL, the primary dies, the standby is promoted: the work goes on there, once each."""

    async def scenario() -> None:
        await prepare(server.url)
        standby = server.copy_to(server.folder / "standby")
        try:
            await asyncio.to_thread(standby.start)
            execute(server.url, "ALTER SYSTEM SET synchronous_standby_names = '*'")
            execute(server.url, "SELECT pg_reload_conf()")
            with pytest.raises(StoreUnavailable, match="standby"):
                async with billing(standby.url, 1):
                    pass
            both = server.url.replace(f"127.0.0.1:{server.port}", f"127.0.0.1:{server.port},127.0.0.1:{standby.port}")
            killed = asyncio.Event()
            async with billing(both, 300, handle=after(100, killed)) as (books, _):
                await books.until_paid(100)
                await asyncio.to_thread(server.kill)
                killed.set()
                await asyncio.to_thread(standby.promote)
                await books.until_paid(300)
            books.balance(standby.url, 300)
            assert 1 == max(books.attempts.values())
        finally:
            standby.stop()

    asyncio.run(scenario())
