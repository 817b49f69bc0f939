"""What the PostgreSQL store promises besides the suite: handles, errors and what they mean, tables, connections."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from typing import Any

import psycopg
import pytest

from tidewire import transaction
from tidewire.errors import (
    AlreadyMarked,
    StoreUnavailable,
    TransactionClosed,
    TransactionControl,
    TransactionLost,
)
from tidewire.kit.postgres.text import array_of, given, kept
from tidewire.model import Guard, Mark
from tidewire.stores.postgres import PostgresStore, open_postgres_store
from tidewire.stores.postgres.control import check_statement


@asynccontextmanager
async def opened(url: str, **parameters: str) -> AsyncGenerator[PostgresStore]:
    """A store with its tables and a table ``seen`` of the user's."""
    query = "&".join(f"{name}={value}" for name, value in parameters.items())
    async with open_postgres_store(f"{url}?{query}" if query else url, provision=True) as store:
        async with transaction(store) as tx:
            await tx.execute("CREATE TABLE IF NOT EXISTS seen (id text PRIMARY KEY, number bigint)")
        yield store


async def seen(store: PostgresStore) -> list[str]:
    """Return what is committed."""
    async with transaction(store) as tx:
        return [row["id"] for row in await tx.fetchall("SELECT id FROM seen ORDER BY id")]


def test_values_and_rows_are_pythons(postgresql_url: str) -> None:
    """Parameters of every usual type come back equal, by index and by name."""

    async def scenario() -> None:
        async with opened(postgresql_url) as store, transaction(store) as tx:
            assert 1 == await tx.execute("INSERT INTO seen VALUES ($1, $2)", ("a", 2**40))
            assert 3 == await tx.executemany("INSERT INTO seen VALUES ($1, $2)", [(name, 1) for name in "bcd"])
            row = await tx.fetchone("SELECT id, number, $1::bytea AS raw, $2::text[] AS list FROM seen WHERE id = $3",
                                    (b"\x00\xff", ["x", None], "a"))  # fmt: skip
            assert row is not None
            assert ("a", 2**40, b"\x00\xff", ["x", None]) == tuple(row)
            assert (2**40, b"\x00\xff") == (row["number"], row["raw"])
            assert {"id", "number", "raw", "list"} == set(row.keys())
            with pytest.raises(KeyError):
                row["other"]
            assert 4 == await tx.fetchval("SELECT count(*) FROM seen")
            assert await tx.fetchone("SELECT 1 WHERE false") is None
            assert -1 == await tx.execute("SET LOCAL work_mem = '8MB'")

    asyncio.run(scenario())


@pytest.mark.parametrize(
    "sql",
    ["BEGIN", "commit", "  ROLLBACK", "/* x */ SAVEPOINT a", "-- x\nRELEASE a", ";END", "\ufeffCOMMIT", "ABORT",
     "/* a /* b */ c */ COMMIT", "START TRANSACTION", "PREPARE TRANSACTION 'x'", "SET search_path = x", "RESET ALL",
     "SET SESSION CHARACTERISTICS AS TRANSACTION READ ONLY", "LISTEN x", "DISCARD ALL", "COPY seen FROM STDIN"],
)  # fmt: skip
def test_handlers_do_not_control_transactions(sql: str) -> None:
    """The unit begins, commits and rolls back; comments hide nothing, and nothing outlives the unit."""
    with pytest.raises(TransactionControl):
        check_statement(sql)


def test_other_statements_are_let_through() -> None:
    """What ends with the unit is the handler's business."""
    for sql in (
        "SET LOCAL lock_timeout = '1s'",
        "SET TRANSACTION ISOLATION LEVEL SERIALIZABLE",
        "SELECT 'COMMIT'",
        "/* COMMIT */ SELECT 1",
        "INSERT INTO commits VALUES (1)",
        "WITH a AS (SELECT 1) SELECT * FROM a",
    ):
        check_statement(sql)


def test_two_statements_in_one_are_refused(postgresql_url: str) -> None:
    """So that no COMMIT hides behind another statement; nothing of the unit stays."""

    async def scenario() -> None:
        async with opened(postgresql_url) as store:
            unit = store.unit()
            with pytest.raises(psycopg.errors.SyntaxError):
                await unit.tx.execute("INSERT INTO seen VALUES ('a'); COMMIT")
            await unit.rollback()
            assert [] == await seen(store)

    asyncio.run(scenario())


def test_a_swallowed_error_cannot_be_committed(postgresql_url: str) -> None:
    """PostgreSQL would answer COMMIT with ROLLBACK: the seal raises what was swallowed."""

    async def scenario() -> None:
        async with opened(postgresql_url) as store:
            unit = store.unit()
            await unit.tx.execute("INSERT INTO seen VALUES ('a')")
            with pytest.raises(psycopg.errors.UniqueViolation):
                await unit.tx.execute("INSERT INTO seen VALUES ('a')")
            with pytest.raises(psycopg.errors.UniqueViolation):
                await unit.seal()
            assert [] == await seen(store)

    asyncio.run(scenario())


def test_a_savepoint_undoes_a_part(postgresql_url: str) -> None:
    """Also after an error, also inside another; what is around it stays."""

    async def scenario() -> None:
        async with opened(postgresql_url) as store:
            async with transaction(store) as tx:
                await tx.execute("INSERT INTO seen VALUES ('a')")

                async def fails() -> None:
                    async with tx.savepoint():
                        await tx.execute("INSERT INTO seen VALUES ('b')")
                        await tx.execute("INSERT INTO seen VALUES ('a')")

                with pytest.raises(psycopg.errors.UniqueViolation):
                    await fails()
                async with tx.savepoint():
                    await tx.execute("INSERT INTO seen VALUES ('c')")
                    with pytest.raises(psycopg.errors.UniqueViolation):
                        await fails()
            assert ["a", "c"] == await seen(store)

    asyncio.run(scenario())


def test_what_cannot_be_a_text_is_refused_before_anything_is_sent(postgresql_url: str) -> None:
    """NUL in a parameter is the statement's own error, and the unit goes on."""

    async def scenario() -> None:
        async with opened(postgresql_url) as store:
            async with transaction(store) as tx:
                with pytest.raises(psycopg.DataError, match="NUL"):
                    await tx.execute("INSERT INTO seen VALUES ($1)", ("a\0b",))
                await tx.execute("INSERT INTO seen VALUES ('c')")
            assert ["c"] == await seen(store)

    asyncio.run(scenario())


def test_no_two_texts_are_kept_alike() -> None:
    """NUL has a form of its own, and so has the character that it is written with."""
    texts = ["", "a", "\0", "\0\0", "\uf8ff", "\uf8ff0", "\uf8ff1", "\0\uf8ff", "\uf8ff\0", "\uf8ff10"]
    assert texts == [given(kept(text)) for text in texts]
    assert len(texts) == len({kept(text) for text in texts})
    assert not any("\0" in kept(text) for text in texts)


def test_arrays_are_written_as_the_server_reads_them(postgresql_url: str) -> None:
    """Whatever stands in the elements of a list, PostgreSQL reads the same list."""
    texts = ["", "a", "NULL", '"', "\\", "a,b{c}", " x ", "'", "\n", "\u20ac", None]
    raw = [b"", b"\x00\xff", b"\\x", None]
    with psycopg.connect(postgresql_url) as connection:
        found = connection.execute(
            "SELECT %s::text[], %s::bytea[], %s::bigint[]", (array_of(texts), array_of(raw), array_of([1, -(2**40)]))
        ).fetchone()
    assert (texts, raw, [1, -(2**40)]) == found


def test_a_def_handler_writes_from_its_thread(postgresql_url: str) -> None:
    """The same handle without `await`; after the end of its unit a thread writes nothing."""

    async def scenario() -> None:
        async with opened(postgresql_url) as store:
            unit = store.unit()
            await unit.begin()
            late: list[type[BaseException]] = []

            def work() -> None:
                with pytest.raises(psycopg.errors.UniqueViolation), unit.sync_tx.savepoint():
                    unit.sync_tx.executemany("INSERT INTO seen VALUES ($1)", [("a",), ("a",)])
                unit.sync_tx.execute("INSERT INTO seen VALUES ('b')")
                assert 1 == unit.sync_tx.fetchval("SELECT count(*) FROM seen")

            await asyncio.to_thread(work)
            await (await unit.seal())

            def too_late() -> None:
                try:
                    unit.sync_tx.execute("INSERT INTO seen VALUES ('c')")
                except TransactionClosed as error:
                    late.append(type(error))

            await asyncio.to_thread(too_late)
            assert [TransactionClosed] == late
            assert ["b"] == await seen(store)

    asyncio.run(scenario())


def test_statements_at_once_share_one_transaction(postgresql_url: str) -> None:
    """`asyncio.gather` inside a handler takes one connection and loses nothing."""

    async def scenario() -> None:
        async with opened(postgresql_url) as store:
            async with transaction(store) as tx:
                await asyncio.gather(*(tx.execute("INSERT INTO seen VALUES ($1)", (str(n),)) for n in range(9)))
            assert 9 == len(await seen(store))

    asyncio.run(scenario())


def test_units_wait_for_a_connection_and_each_gets_one(postgresql_url: str) -> None:
    """The pool is bounded, `saturated` says so, who is cancelled while it waits takes nothing away."""

    async def scenario() -> None:
        async with opened(postgresql_url, connections="2") as store:
            holders = [store.unit(), store.unit()]
            for holder in holders:
                await holder.begin()
            assert store.saturated()

            async def write(number: int) -> None:
                async with transaction(store) as tx:
                    await tx.execute("INSERT INTO seen VALUES ($1)", (str(number),))

            async with asyncio.TaskGroup() as tasks:
                writing = [tasks.create_task(write(number)) for number in range(20)]
                await asyncio.sleep(0.01)
                for number in (0, 7, 19):
                    writing[number].cancel()
                for holder in holders:
                    await holder.rollback()
            assert 17 == len(await seen(store))
            assert not store.saturated()

    asyncio.run(scenario())


def test_a_conflict_runs_again_uncounted(postgresql_url: str) -> None:
    """Serialization failures, deadlocks and locks that do not come are `TransactionLost`: nobody's failure."""

    async def scenario() -> None:
        async with opened(postgresql_url) as store:
            async with transaction(store) as tx:
                await tx.executemany("INSERT INTO seen VALUES ($1, 0)", [("a",), ("b",)])
            first, second = store.unit(), store.unit()
            for unit in (first, second):
                await unit.tx.execute("SET TRANSACTION ISOLATION LEVEL SERIALIZABLE")
                await unit.tx.fetchval("SELECT sum(number) FROM seen")
            await first.tx.execute("UPDATE seen SET number = 1 WHERE id = 'a'")
            await second.tx.execute("UPDATE seen SET number = 1 WHERE id = 'b'")
            await (await first.seal())
            with pytest.raises(TransactionLost, match="40001"):
                await second.seal()

            first, second = store.unit(), store.unit()
            await first.tx.execute("UPDATE seen SET number = 2 WHERE id = 'a'")
            await second.tx.execute("UPDATE seen SET number = 2 WHERE id = 'b'")
            crossing = asyncio.gather(
                first.tx.execute("UPDATE seen SET number = 3 WHERE id = 'b'"),
                second.tx.execute("UPDATE seen SET number = 3 WHERE id = 'a'"),
                return_exceptions=True,
            )
            assert [1, "TransactionLost"] == sorted(
                [one if isinstance(one, int) else type(one).__name__ for one in await crossing], key=str
            )
            await first.rollback()
            await second.rollback()

            holder, waiter = store.unit(), store.unit()
            await holder.tx.execute("UPDATE seen SET number = 4 WHERE id = 'a'")
            await waiter.tx.execute("SET LOCAL lock_timeout = '50ms'")
            with pytest.raises(TransactionLost, match="55P03"):
                await waiter.tx.execute("UPDATE seen SET number = 5 WHERE id = 'a'")
            with pytest.raises(TransactionLost):
                await waiter.seal()
            await holder.rollback()

    asyncio.run(scenario())


def test_a_cancelled_statement_is_cut_off(postgresql_url: str) -> None:
    """A handler that times out in a long query rolls back soon, and its connection is used again."""

    async def scenario() -> None:
        async with opened(postgresql_url, connections="1") as store:
            unit = store.unit()
            await unit.tx.execute("INSERT INTO seen VALUES ('a')")
            pid = await unit.tx.fetchval("SELECT pg_backend_pid()")
            with pytest.raises(TimeoutError):
                async with asyncio.timeout(0.05):
                    await unit.tx.execute("SELECT pg_sleep(60)")
            async with asyncio.timeout(5):
                await unit.rollback()
            assert [] == await seen(store)
            async with transaction(store) as tx:
                assert pid == await tx.fetchval("SELECT pg_backend_pid()")

    asyncio.run(scenario())


def test_a_cancelled_statement_is_not_committed_unseen(postgresql_url: str) -> None:
    """Whoever catches the time-out of a statement cannot commit it; a savepoint undoes it, and only that."""

    async def give_up(tx: Any, sql: str) -> None:
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(0.05):
                await tx.execute(sql)

    async def scenario() -> None:
        async with opened(postgresql_url) as store:
            for sql in ("SELECT pg_sleep(0.1)", "SELECT 1 / (SELECT 0 FROM pg_sleep(0.1))", "SELECT pg_sleep(60)"):
                unit = store.unit()
                await unit.tx.execute("INSERT INTO seen VALUES ('a')")
                await give_up(unit.tx, sql)
                with pytest.raises(psycopg.errors.QueryCanceled):
                    await unit.seal()
            assert [] == await seen(store)
            async with transaction(store) as tx:
                await tx.execute("INSERT INTO seen VALUES ('b')")
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(0.05), tx.savepoint():
                        await tx.execute("INSERT INTO seen SELECT 'c' FROM pg_sleep(60)")
            assert ["b"] == await seen(store)

    asyncio.run(scenario())


def test_a_zombie_cannot_commit_between_check_and_commit(postgresql_url: str) -> None:
    """A takeover waits for a unit that holds the lane's row; one that was first fences the unit."""

    async def scenario() -> None:
        async with opened(postgresql_url) as store:
            await store.lanes.adopt("g", "t/0", 1)
            unit = store.unit(Guard("g", "t/0", 1))
            await unit.tx.execute("INSERT INTO seen VALUES ('a')")
            (held,) = await unit.rows("SELECT epoch FROM tidewire_lane WHERE grp = 'g' FOR SHARE")
            taking = asyncio.ensure_future(store.lanes.adopt("g", "t/0", 2))
            await asyncio.sleep(0.1)
            assert (1, False) == (held[0], taking.done())
            await (await unit.seal())
            assert 2 == await taking
            assert ["a"] == await seen(store)

    asyncio.run(scenario())


def test_a_deferred_constraint_is_the_users_own_error(postgresql_url: str) -> None:
    """It shows at the COMMIT, is not taken for a mark, and nothing of the unit stays."""

    async def scenario() -> None:
        async with opened(postgresql_url) as store:
            async with transaction(store) as tx:
                await tx.execute("CREATE TABLE once (id text UNIQUE DEFERRABLE INITIALLY DEFERRED)")
            unit = store.unit()
            await unit.tx.executemany("INSERT INTO once VALUES ($1)", [("a",), ("a",)])
            await store.inbox.mark(unit, Mark("g", "h", 0, "s", "1"), b"d")
            with pytest.raises(psycopg.errors.UniqueViolation):
                await unit.seal()
            assert [None] == list(await store.inbox.known([Mark("g", "h", 0, "s", "1")]))

    asyncio.run(scenario())


def test_a_mark_that_waits_is_found_at_the_next_statement(postgresql_url: str) -> None:
    """A mark that was noted early goes ahead of the next statement, which then says so."""

    async def scenario() -> None:
        async with opened(postgresql_url) as store:
            mark = Mark("g", "h", 0, "s", "1")
            first, second = store.unit(), store.unit()
            await store.inbox.mark(first, mark, b"d")
            await (await first.seal())
            await store.inbox.mark(second, mark, b"d")
            with pytest.raises(AlreadyMarked):
                await second.tx.execute("INSERT INTO seen VALUES ('a')")
            await second.rollback()
            assert [] == await seen(store)

    asyncio.run(scenario())


def test_a_connection_that_ends_with_an_answer_is_the_servers_fault(postgresql_url: str) -> None:
    """The answer and the end of the connection arrive together: the database is unavailable, nobody has committed."""

    async def scenario() -> None:
        async with opened(postgresql_url) as store:
            unit = store.unit()
            pid = await unit.tx.fetchval("SELECT pg_backend_pid()")
            answering = asyncio.ensure_future(unit.tx.execute("INSERT INTO seen VALUES ('a', 1)"))
            await asyncio.sleep(0)  # it has been sent
            with psycopg.connect(postgresql_url, autocommit=True) as other:  # the event loop stands still meanwhile
                while not other.execute(
                    "SELECT state LIKE 'idle in%%' FROM pg_stat_activity WHERE pid = %s", (pid,)
                ).fetchone()[0]:
                    pass
                other.execute("SELECT pg_terminate_backend(%s, 5000)", (pid,))

            async def sealed() -> None:
                await answering
                await unit.seal()

            with pytest.raises(StoreUnavailable):
                await sealed()
            assert [] == await seen(store)

    asyncio.run(scenario())
