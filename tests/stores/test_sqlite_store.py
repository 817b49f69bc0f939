"""What is special to the SQLite store: shared commits, late threads, death, full disks, other programs' files."""

from __future__ import annotations

import asyncio
import signal
import sqlite3
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from datetime import timedelta
from pathlib import Path
from typing import Any

import msgspec
import pytest

from tidewire import transaction
from tidewire.errors import (
    StoreRefused,
    StoreUnavailable,
    TransactionClosed,
    TransactionControl,
    TransactionLost,
)
from tidewire.model import Mark, Message, Pending, Topic
from tidewire.stores.sqlite import open_sqlite_store
from tidewire.transports.sqlite import open_sqlite_transport


async def table(store: Any) -> None:
    async with transaction(store) as tx:
        await tx.execute("CREATE TABLE seen (id TEXT PRIMARY KEY)")


def test_quick_units_share_one_commit(tmp_path: Path) -> None:
    """Group commit: units sealed in one step of the loop are durable together."""

    async def scenario() -> None:
        async with open_sqlite_store(tmp_path / "s.db") as store:
            await table(store)
            commits = []
            for number in range(10):
                unit = store.unit()
                await unit.tx.execute("INSERT INTO seen VALUES (?)", (str(number),))
                commits.append(await unit.seal())
            assert 1 == len(set(map(id, commits)))
            await commits[0]

    asyncio.run(scenario())


def test_a_lost_transaction_is_told_to_everybody_in_it(tmp_path: Path) -> None:
    """OR ROLLBACK is its own handler's failure; the others of the transaction run again."""

    async def scenario() -> None:
        async with open_sqlite_store(tmp_path / "s.db") as store:
            await table(store)
            innocent = store.unit()
            await innocent.tx.execute("INSERT INTO seen VALUES ('a')")
            durable = await innocent.seal()
            guilty = store.unit()
            with pytest.raises(sqlite3.IntegrityError):
                await guilty.tx.execute("INSERT OR ROLLBACK INTO seen VALUES ('a')")
            with pytest.raises(sqlite3.IntegrityError):
                await guilty.seal()
            with pytest.raises(TransactionLost):
                await durable
            async with transaction(store) as tx:
                assert [] == await tx.fetchall("SELECT * FROM seen")

    asyncio.run(scenario())


def test_a_rolled_back_event_never_leaves_in_place_of_a_later_one(tmp_path: Path) -> None:
    """OX-10: the row number of a rolled back event is used again; the relay that reads it gets the new event."""

    async def scenario() -> None:
        async with open_sqlite_store(tmp_path / "s.db") as store:
            events = [Message(Topic("shop.order"), text, "test", "k", {}, b"") for text in ("first", "second")]
            failed, sealed = store.unit(), store.unit()
            await store.outbox.put(failed, events[:1])
            await failed.rollback()
            assert await store.backlog.lease("relay", timedelta(seconds=60))  # behind the rollback, so it is committed
            await store.outbox.put(sealed, events[1:])
            durable = await sealed.seal()
            await asyncio.sleep(0)  # the commit begins, on its thread
            rows: Sequence[Pending] = ()
            deadline = time.monotonic() + 10
            while not rows and time.monotonic() < deadline:  # the relay may look as soon as the commit is there
                rows = await store.backlog.claim("relay", after=0, limit=10)
                time.sleep(0.001)  # noqa: ASYNC251 - the loop is kept from hearing of it
            assert ["second"] == [row.message.id for row in rows]
            await durable
            assert ["second"] == [row.message.id for row in await store.backlog.claim("relay", after=0, limit=10)]

    asyncio.run(scenario())


def test_a_constraint_violation_undoes_its_statement_only(tmp_path: Path) -> None:
    """A handler may catch it and go on."""

    async def scenario() -> None:
        async with open_sqlite_store(tmp_path / "s.db") as store:
            await table(store)
            async with transaction(store) as tx:
                await tx.execute("INSERT INTO seen VALUES ('a')")
                with pytest.raises(sqlite3.IntegrityError):
                    await tx.execute("INSERT INTO seen VALUES ('a')")
                await tx.execute("INSERT INTO seen VALUES ('b')")
            async with transaction(store) as tx:
                assert ["a", "b"] == [row["id"] for row in await tx.fetchall("SELECT id FROM seen ORDER BY id")]

    asyncio.run(scenario())


@pytest.mark.parametrize(
    "sql",
    ["BEGIN", "commit", "  ROLLBACK", "/* x */ SAVEPOINT a", "-- x\nRELEASE a", ";END", "\ufeffCOMMIT",
     "PRAGMA synchronous=OFF", "ATTACH 'x' AS y", "VACUUM"],
)  # fmt: skip
def test_handlers_do_not_control_transactions(tmp_path: Path, sql: str) -> None:
    """The unit begins, commits and rolls back."""

    async def scenario() -> None:
        async with open_sqlite_store(tmp_path / "s.db") as store:
            unit = store.unit()
            with pytest.raises(TransactionControl):
                await unit.tx.execute(sql)
            await unit.rollback()

    asyncio.run(scenario())


def test_a_late_thread_writes_nothing(tmp_path: Path) -> None:
    """ST-19: after its unit has ended, a statement raises, whoever has the turn now."""

    async def scenario() -> None:
        async with open_sqlite_store(tmp_path / "s.db") as store:
            await table(store)
            unit = store.unit()
            await unit.begin()
            late = unit.sync_tx
            late.execute("INSERT INTO seen VALUES ('early')")
            await unit.rollback()
            other = store.unit()
            await other.tx.execute("INSERT INTO seen VALUES ('other')")
            errors: list[BaseException] = []

            def write() -> None:
                try:
                    late.execute("INSERT INTO seen VALUES ('late')")
                except TransactionClosed as error:
                    errors.append(error)

            thread = threading.Thread(target=write)
            thread.start()
            thread.join()
            assert 1 == len(errors)
            await (await other.seal())
            async with transaction(store) as tx:
                assert ["other"] == [row[0] for row in await tx.fetchall("SELECT id FROM seen")]

    asyncio.run(scenario())


def test_two_first_statements_at_once_share_one_turn(tmp_path: Path) -> None:
    """`asyncio.gather` inside a handler must not stand in line behind itself."""

    async def scenario() -> None:
        async with asyncio.timeout(30), open_sqlite_store(tmp_path / "s.db") as store:
            await table(store)
            async with transaction(store) as tx:
                unit = store.adopt_tx(tx)
                assert unit is not None
            fresh = store.unit()
            await asyncio.gather(*(fresh.tx.execute("INSERT INTO seen VALUES (?)", (str(n),)) for n in range(4)))
            await (await fresh.seal())

    asyncio.run(scenario())


CHILD = """
import asyncio, sys
from tidewire import transaction
from tidewire.chance import UUID7Ids
from tidewire.model import Mark, Message, Pending, Topic
from tidewire.stores.sqlite import open_sqlite_store

async def main():
    ids = UUID7Ids()
    async with open_sqlite_store(sys.argv[1]) as store:
        async with transaction(store) as tx:
            await tx.execute("CREATE TABLE IF NOT EXISTS seen (id TEXT)")
        while True:
            batch = []
            for _ in range(7):
                name, unit = ids.event_id(), store.unit()
                await unit.tx.execute("INSERT INTO seen VALUES (?)", (name,))
                await store.inbox.mark(unit, Mark("g", "h", 0, "s", name), b"d")
                await store.outbox.put(unit, [Message(Topic("t"), name, "s", None, {}, b"")])
                batch.append((name, await unit.seal()))
            for name, durable in batch:
                await durable
                print(name, flush=True)

asyncio.run(main())
"""


def test_kill_9_leaves_all_of_a_unit_or_nothing(tmp_path: Path) -> None:
    """ST-23: everything that was said to be durable is there; row, mark and event of a unit are never apart."""
    path = tmp_path / "s.db"
    said: set[str] = set()
    for life in range(4):
        child = subprocess.Popen([sys.executable, "-c", CHILD, str(path)], stdout=subprocess.PIPE, text=True)
        assert child.stdout is not None
        for _ in range(30 + 17 * life):
            said.add(child.stdout.readline().strip())
        child.send_signal(signal.SIGKILL)
        said |= {line for line in child.stdout.read().split("\n") if len(line) == 36}
        child.stdout.close()
        child.wait()
    connection = sqlite3.connect(path)
    seen = {row[0] for row in connection.execute("SELECT id FROM seen")}
    sent = {row[0] for row in connection.execute("SELECT id FROM tidewire_outbox")}
    marked = {row[0].hex() for row in connection.execute("SELECT event_id FROM tidewire_mark")}
    assert said <= seen
    assert seen == sent
    assert {name.replace("-", "") for name in seen} == marked
    assert [("ok",)] == connection.execute("PRAGMA integrity_check").fetchall()
    connection.close()


def test_a_full_disk_stores_nothing_and_mends_itself(tmp_path: Path) -> None:
    """SQ6: typed, nothing torn, and it goes on when there is room."""

    async def scenario() -> None:
        async with open_sqlite_store(tmp_path / "s.db") as store:
            await table(store)
            connection = store._turns.connection
            (pages,) = connection.execute("PRAGMA page_count").fetchone()
            connection.execute(f"PRAGMA max_page_count={pages + 2}")
            with pytest.raises(StoreUnavailable):
                async with transaction(store) as tx:
                    await tx.execute("INSERT INTO seen VALUES (?)", ("x" * 100_000,))
            connection.execute("PRAGMA max_page_count=100000")
            async with transaction(store) as tx:
                assert 0 == await tx.fetchval("SELECT count(*) FROM seen")
                await tx.execute("INSERT INTO seen VALUES (?)", ("x" * 100_000,))

    asyncio.run(scenario())


def test_two_processes_share_a_file(tmp_path: Path) -> None:
    """Workers of one service write one store; nobody's unit is lost."""
    path = tmp_path / "s.db"
    script = CHILD.replace("while True:", "for _ in range(20):")
    children = [subprocess.Popen([sys.executable, "-c", script, str(path)], stdout=subprocess.PIPE) for _ in range(2)]
    said = [child.communicate(timeout=60)[0].split() for child in children]
    assert [0, 0] == [child.returncode for child in children]
    connection = sqlite3.connect(path)
    assert sum(map(len, said)) == connection.execute("SELECT count(*) FROM seen").fetchone()[0] == 280
    connection.close()


def test_a_path_with_two_slashes_in_front_is_a_path(tmp_path: Path) -> None:
    """`sqlite:////` before an absolute path makes one of these; SQLite must not take its first folder for a host."""

    async def scenario() -> None:
        async with open_sqlite_store(f"/{tmp_path}/s.db") as store:
            await table(store)
        assert (tmp_path / "s.db").exists()

    asyncio.run(scenario())


def test_the_brokers_file_is_no_store(tmp_path: Path) -> None:
    """Store and broker never share a file."""

    async def scenario() -> None:
        async with open_sqlite_transport(tmp_path / "b.db"):
            pass
        with pytest.raises(StoreRefused, match="belongs to another program"):
            async with open_sqlite_store(tmp_path / "b.db"):
                pass

    asyncio.run(scenario())


def test_a_newer_schema_is_refused(tmp_path: Path) -> None:
    """An old program does not touch a new file."""

    async def scenario() -> None:
        async with open_sqlite_store(tmp_path / "s.db"):
            pass
        connection = sqlite3.connect(tmp_path / "s.db")
        connection.execute("PRAGMA user_version=99")
        connection.close()
        with pytest.raises(StoreRefused, match="schema version 99"):
            async with open_sqlite_store(tmp_path / "s.db"):
                pass

    asyncio.run(scenario())


def test_a_unit_of_another_store_is_refused(tmp_path: Path) -> None:
    """Effect and mark in two databases are no exactly-once effect."""

    async def scenario() -> None:
        async with open_sqlite_store(tmp_path / "a.db") as one, open_sqlite_store(tmp_path / "b.db") as other:
            unit = other.unit()
            with pytest.raises(TypeError, match="not a unit of this store"):
                await one.inbox.mark(unit, Mark("g", "h", 0, "s", "1"), b"d")
            with pytest.raises(TypeError, match="not a unit of this store"):
                await one.outbox.put(unit, [Message(Topic("t"), "1", "s", None, {}, b"")])

    asyncio.run(scenario())


def test_a_lock_of_another_program_does_not_stop_the_loop(tmp_path: Path) -> None:
    """A shell with an open transaction holds up writers, never the event loop; then it goes on."""

    async def scenario() -> None:
        async with open_sqlite_store(tmp_path / "s.db") as store:
            await table(store)
            shell = sqlite3.connect(tmp_path / "s.db", isolation_level=None)
            shell.execute("BEGIN IMMEDIATE")
            unit = store.unit()
            writing = asyncio.create_task(unit.tx.execute("INSERT INTO seen VALUES ('a')"))
            loop = asyncio.get_running_loop()
            longest, last = 0.0, loop.time()
            for _ in range(30):
                await asyncio.sleep(0.01)
                longest, last = max(longest, loop.time() - last), loop.time()
            assert not writing.done()
            shell.execute("COMMIT")
            shell.close()
            await writing
            await (await unit.seal())
            assert longest < 3.0  # the lock would have been waited for on the loop, for seconds

    asyncio.run(scenario())


def test_a_log_of_large_rows_is_copied_too(tmp_path: Path) -> None:
    """The log file stays bounded whatever the size of the rows."""

    async def scenario() -> None:
        async with open_sqlite_store(tmp_path / "s.db") as store:
            await table(store)
            for number in range(100):
                async with transaction(store) as tx:
                    await tx.execute("INSERT INTO seen VALUES (?)", (f"{number}" + "x" * 300_000,))
            assert (tmp_path / "s.db-wal").stat().st_size < 12 << 20

    asyncio.run(scenario())


def test_events_of_many_units_keep_their_order_in_one_commit(tmp_path: Path) -> None:
    """What commits together is written together: in the order of the units, numbered as the relay will read it."""

    async def scenario() -> None:
        async with open_sqlite_store(tmp_path / "s.db") as store:
            sent: list[str] = []
            for _ in range(3):
                durables = []
                for number in range(50):
                    unit, name = store.unit(), f"{len(sent)}"
                    await store.outbox.put(unit, [Message(Topic("t"), name, "s", None, {}, b"")])
                    if number % 7 == 3:
                        await unit.rollback()
                    else:
                        durables.append(await unit.seal())
                        sent.append(name)
                for durable in durables:
                    await durable
            await store.backlog.lease("relay", timedelta(seconds=30))
            here = await store.backlog.claim("relay", after=0, limit=1_000)
            assert sent == [row.message.id for row in here]
            store.outbox.window.clear()
            assert here == await store.backlog.claim("relay", after=0, limit=1_000)

    asyncio.run(scenario())


def test_what_cannot_be_a_row_is_refused_at_once(tmp_path: Path) -> None:
    """Not at the commit, where it would take others with it."""

    async def scenario() -> None:
        async with open_sqlite_store(tmp_path / "s.db") as store:
            good = Message(Topic("t"), "1", "s", "k", {"a": "b"}, b"")
            unit = store.unit()
            for bad, error in (
                (msgspec.structs.replace(good, key="\ud800"), UnicodeEncodeError),
                (msgspec.structs.replace(good, headers={"a": "\ud800"}), UnicodeEncodeError),
                (msgspec.structs.replace(good, not_before=1 << 63), OverflowError),
            ):
                with pytest.raises(error):
                    await store.outbox.put(unit, [bad])
            await store.outbox.put(unit, [good])
            await (await unit.seal())
            assert (1, 0) == tuple(await store.outbox.count())

    asyncio.run(scenario())


def test_marks_are_looked_up_by_the_dozen(tmp_path: Path) -> None:
    """Whatever the number of marks, each gets its own digest, in the order that was asked."""

    async def scenario() -> None:
        async with open_sqlite_store(tmp_path / "s.db") as store:
            unit = store.unit()
            for number in range(0, 100, 2):
                mark = Mark("g", f"h{number % 3}", 0, "s", str(number))
                await store.inbox.mark(unit, mark, str(number).encode())
            await (await unit.seal())
            for size in (0, 1, 2, 31, 32, 33, 65, 100):
                asked = [Mark("g", f"h{number % 3}", 0, "s", str(number)) for number in reversed(range(size))]
                expected = [str(number).encode() if number % 2 == 0 else None for number in reversed(range(size))]
                assert expected == list(await store.inbox.known(asked))

    asyncio.run(scenario())


def test_statements_may_count_their_parameters_as_postgresql_does(tmp_path: Path) -> None:
    """``$1`` is a parameter, in any order and more than once; in a quoted text or a comment it is text."""

    async def scenario() -> None:
        async with open_sqlite_store(tmp_path / "store.db") as store, transaction(store) as tx:
            sql = 'SELECT $2 AS second, $1 || $2 AS both, \'$1\' AS quoted, "$2" /* $1 */ FROM (SELECT 7 AS "$2") -- $3'
            row = await tx.fetchone(sql, ("a", "b"))
            assert row is not None
            assert ("b", "ab", "$1", 7) == tuple(row)
            assert "x" == await tx.fetchval("SELECT $name", {"name": "x"})

    asyncio.run(scenario())
