"""What is special to the PostgreSQL broker: commits that nobody answers, servers that die, fail over or stand still."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Awaitable, Callable, Iterator, Sequence
from contextlib import AsyncExitStack
from datetime import timedelta
from pathlib import Path
from urllib.parse import urlsplit

import msgspec
import psycopg
import pytest
from postgres_broker_site import LIMITS, PostgresSite, broker_on
from postgres_proxy import CommitProxy, Cut, commit_proxy
from postgres_server import NoServer, PostgresServer, private_server

from tidewire.errors import TransportError, TransportRefused, TransportUnavailable
from tidewire.kit.postgres.place import postgres_place
from tidewire.kit.sqllog import receiver as log_receiver
from tidewire.kit.sqllog.home import Connection
from tidewire.model import DeadChannel, Delivery, GroupSpec, Message, Move, Subscription, Topic, TopicSpec
from tidewire.protocols import Receiver
from tidewire.transports.postgres import PostgresTransport, open_postgres_transport
from tidewire.transports.postgres.home import PostgresHome
from tidewire.transports.postgres.schema import turn_key

TOPIC, GROUP = TopicSpec("shop.order", lanes=4), GroupSpec("billing", ["shop.order"])
DEAD = DeadChannel("shop.order", "billing")
SECOND = timedelta(seconds=1)


@pytest.fixture(scope="module")
def own_server() -> Iterator[PostgresServer]:
    """A server of these tests' own: they kill it, stop it and start it again."""
    try:
        with private_server() as server:
            yield server
    except NoServer as error:
        pytest.skip(f"not proven: needs a PostgreSQL server: {error}")


@pytest.fixture
def place(own_server: PostgresServer) -> Iterator[PostgresSite]:
    """A broker of the test's own."""
    with broker_on(own_server) as site:
        yield site


def message(number: int) -> Message:
    return Message(Topic("shop.order"), f"id-{number}", "shop", f"k{number % 7}", {}, str(number).encode())


def run(place: PostgresSite, test: Callable[[PostgresTransport], Awaitable[None]], *, url: str = "") -> None:
    """Run *test* on a broker with one topic and one group."""

    async def scenario() -> None:
        async with asyncio.timeout(60), open_postgres_transport(url or place.url, limits=LIMITS) as broker:
            await broker.provision([TOPIC], [GROUP])
            await test(broker)

    asyncio.run(scenario())


def member(name: str = "a") -> Subscription:
    return Subscription("billing", ["shop.order"], name, lease=timedelta(seconds=10), grace=SECOND)


async def forward(receiver: Receiver, number: int, settled: list[str]) -> None:
    """Make a dead letter of each of *number* messages, through whatever is unavailable; note their ids as settled."""
    found: list[Delivery] = []
    while len(set(settled)) < number:
        try:
            if not found:
                found = [one for one in await receiver.receive(20, SECOND) if isinstance(one, Delivery)]
            moves = [Move(one, [msgspec.structs.replace(one.message, to=DEAD)]) for one in found]
            settlements = await receiver.settle(move=moves)
            settled += [one.delivery.message.id for one in settlements if one.status == "settled"]
            found = []
        except TransportUnavailable:
            await asyncio.sleep(0.02)


async def publish_all(broker: PostgresTransport, messages: Sequence[Message]) -> None:
    """Publish one by one, each until it is stored, as a relay does."""
    for one in messages:
        while True:
            try:
                if (await broker.publish([one]))[0].ok:
                    break
            except TransportUnavailable:
                pass
            await asyncio.sleep(0.02)


async def stored(broker: PostgresTransport) -> int:
    return (await broker.topics())[0].messages or 0


async def letters(broker: PostgresTransport) -> list[str]:
    return [one.message.id for one in await broker.browse(DEAD, limit=10_000)]


def by_key(ids: Sequence[str]) -> dict[int, list[int]]:
    numbers = [int(one.removeprefix("id-")) for one in ids]
    return {key: [number for number in numbers if number % 7 == key] for key in range(7)}


# --- connections are cut ----------------------------------------------------------------------------------------


def behind(place: PostgresSite, proxy: CommitProxy) -> str:
    parts = urlsplit(place.url)
    return parts._replace(netloc=parts.netloc.replace(f":{place.server.port}", f":{proxy.port}")).geturl()


@pytest.mark.parametrize("cut", ["before", "after"])
def test_a_commit_whose_answer_is_lost_is_looked_up(place: PostgresSite, cut: Cut) -> None:
    """Cut before the commit arrived it is run again, cut after it is known to stand: stored, and once, either way."""

    async def scenario() -> None:
        async with (
            commit_proxy(place.server.port) as proxy,
            open_postgres_transport(behind(place, proxy), limits=LIMITS) as broker,
        ):
            await broker.provision([TOPIC], [GROUP])
            proxy.cut = cut
            (receipt,) = await broker.publish([message(1)])
            assert (1, "stored") == (proxy.cuts, receipt.status)
            async with broker.subscribe(member()) as receiver:
                (one,) = await _take(receiver, 1)
                proxy.cut = cut
                letter = msgspec.structs.replace(one.message, to=DEAD)
                (settlement,) = await receiver.settle(move=[Move(one, [letter])])
                assert (2, "settled") == (proxy.cuts, settlement.status)
            assert ["id-1"] == await letters(broker)
            assert 1 == (await broker.topics())[0].messages

    asyncio.run(scenario())


def test_what_nobody_can_tell_is_unknown(place: PostgresSite) -> None:
    """A commit whose server stays away is unknown; lanes with settles in doubt are read anew, and nothing is lost."""

    async def scenario() -> None:
        async with (
            commit_proxy(place.server.port) as proxy,
            open_postgres_transport(behind(place, proxy), limits=LIMITS) as broker,
        ):
            await broker.provision([TOPIC], [GROUP])
            await broker.publish([message(0)])
            async with broker.subscribe(member()) as receiver:
                (one,) = await _take(receiver, 1)
                proxy.cut, proxy.down = "after", True
                publishing, settling = await asyncio.gather(
                    broker.publish([message(1)]), receiver.settle(ack=[one]), return_exceptions=True
                )
                assert isinstance(settling, TransportUnavailable)
                assert not isinstance(publishing, BaseException)
                assert ["unknown"] == [receipt.status for receipt in publishing]
                proxy.down = False
                await publish_all(broker, [message(1)])
                found = await _take(receiver, 1)
                while "id-1" not in [one.message.id for one in found]:
                    found = await _take(receiver, 1)
            assert 2 == (await broker.topics())[0].messages

    asyncio.run(scenario())


def test_moves_happen_once_while_connections_are_cut(place: PostgresSite) -> None:
    """Connections end all the time: every message is moved, once, and each key keeps its order."""

    async def test(broker: PostgresTransport) -> None:
        messages = [message(number) for number in range(80)]
        published, settled, cuts = 0, list[str](), 0

        async def cut() -> None:
            nonlocal cuts
            while True:
                before = published, len(settled)
                await place.cut()
                cuts += 1
                while (published, len(settled)) == before:  # noqa: ASYNC110 - who gets nowhere is left alone
                    await asyncio.sleep(0.01)

        async def publish() -> None:
            nonlocal published
            for start in range(0, 80, 10):
                await publish_all(broker, messages[start : start + 10])
                published, so_far = published + 10, cuts
                while cuts == so_far:  # noqa: ASYNC110 - until the next cut
                    await asyncio.sleep(0.01)

        async with broker.subscribe(member()) as receiver, asyncio.TaskGroup() as tasks:
            cutting = tasks.create_task(cut())
            publishing = tasks.create_task(publish())
            await forward(receiver, 80, settled)
            await publishing
            cutting.cancel()
        found = await letters(broker)
        assert 80 == len(found)
        assert by_key([one.id for one in messages]) == by_key(found)

    run(place, test)


def test_a_member_hears_of_commits_after_its_connection_was_cut(place: PostgresSite) -> None:
    """Listening begins anew with the connection: another process's message comes without polling."""

    async def test(broker: PostgresTransport) -> None:
        with pytest.MonkeyPatch.context() as slow:
            slow.setattr(log_receiver, "_POLL", 60.0)
            async with (
                open_postgres_transport(place.url, limits=LIMITS) as other,
                broker.subscribe(member()) as receiver,
                asyncio.timeout(50),
            ):
                for number in range(2):
                    while [one for one in await receiver.receive(10, timedelta(seconds=0.3)) if number == 0]:
                        pass
                    await publish_all(other, [message(number)])
                    assert [f"id-{number}"] == [one.message.id for one in await _take(receiver, 1)]
                    await place.cut()
                    await asyncio.sleep(1.5)  # the listener looks every second whether it is connected

    run(place, test)


# --- the server dies, fails over, stands still ---------------------------------------------------------------------


def test_a_server_that_is_killed_under_load_loses_and_doubles_nothing(place: PostgresSite) -> None:
    """Killed twice with `kill -9` amid publishes and moves: members keep their lanes, each message is moved once."""

    async def test(broker: PostgresTransport) -> None:
        messages, seen = [message(number) for number in range(300)], list[str]()
        async with broker.subscribe(member()) as receiver, asyncio.TaskGroup() as tasks:
            forwarding = tasks.create_task(forward(receiver, 300, seen))
            for third in range(3):
                publishing = tasks.create_task(publish_all(broker, messages[100 * third : 100 * third + 100]))
                while third < 2 and await stored(broker) < 100 * third + 50:
                    pass
                if third < 2:
                    await place.restart()
                await publishing
            await forwarding
        found = await letters(broker)
        assert {one.id for one in messages} == set(seen)
        assert by_key([one.id for one in messages]) == by_key(found)

    run(place, test)


def test_after_a_failover_the_server_that_writes_is_found(tmp_path: Path, place: PostgresSite) -> None:
    """A standby is refused as read-only, by name; once it is promoted and the first is dead, work goes on there."""
    standby = place.server.copy_to(Path(f"{place.server.folder}-standby"))
    standby.start()
    try:
        parts = urlsplit(place.url)
        alone = parts._replace(netloc=parts.netloc.replace(f":{place.server.port}", f":{standby.port}")).geturl()
        both = parts._replace(netloc=f"{parts.netloc},127.0.0.1:{standby.port}").geturl()

        async def test(broker: PostgresTransport) -> None:
            await broker.publish([message(1)])
            with pytest.raises(TransportUnavailable, match="read-only"):
                async with open_postgres_transport(alone, limits=LIMITS):
                    pass
            await asyncio.to_thread(_caught_up, place.server, standby)
            place.server.kill()
            standby.promote()
            await publish_all(broker, [message(2)])
            async with broker.subscribe(member()) as receiver:
                assert {"id-1", "id-2"} == {one.message.id for one in await _take(receiver, 2)}

        run(place, test, url=both)
    finally:
        standby.remove()
        place.server.start()


def test_a_server_that_turns_read_only_is_unavailable_until_it_writes(place: PostgresSite) -> None:
    """It is said in words what is wrong, nothing is lost, and it goes on by itself."""
    database = urlsplit(place.url).path.strip("/")

    def read_only(is_so: str) -> None:
        with psycopg.connect(place.server.url, autocommit=True) as connection:
            connection.execute(f"ALTER DATABASE {database} SET default_transaction_read_only = {is_so}".encode())

    async def test(broker: PostgresTransport) -> None:
        read_only("on")
        await place.cut()
        try:
            with pytest.raises(TransportUnavailable, match="read-only"):
                await broker.publish([message(1)])
        finally:
            with psycopg.connect(place.server.url, autocommit=True) as connection:
                connection.execute("SET default_transaction_read_only = off")
                connection.execute(f"ALTER DATABASE {database} RESET default_transaction_read_only".encode())
        await publish_all(broker, [message(1)])

    run(place, test)


def test_who_stands_still_in_the_write_turn_is_thrown_out(place: PostgresSite) -> None:
    """The server ends a transaction that does nothing: others write on, and the slow job is run again, once."""

    async def test(broker: PostgresTransport) -> None:
        begun, runs = threading.Event(), list[int]()

        def slow(connection: Connection) -> None:
            runs.append(len(runs))
            connection.execute("INSERT INTO act (text) VALUES (?)", ("slow",))
            begun.set()
            if len(runs) == 1:
                time.sleep(2.5 * LIMITS.idle)

        standing = asyncio.ensure_future(broker._shared.writer.submit(slow))
        await asyncio.to_thread(begun.wait)
        async with open_postgres_transport(place.url, limits=LIMITS) as other:
            assert ["stored"] == [one.status for one in await other.publish([message(1)])]
        await standing
        rows = await broker._shared.home.read("SELECT count(*) FROM act")
        assert ([0, 1], 1) == (runs, rows[0][0])

    run(place, test)


def test_a_write_turn_that_does_not_come_is_unavailable(place: PostgresSite) -> None:
    """Who holds the lock from outside holds up writers, who are told so in time; nothing they asked for happens."""

    async def test(broker: PostgresTransport) -> None:
        with psycopg.connect(place.server.url) as other:
            other.execute("SELECT pg_advisory_xact_lock(%s)", (turn_key(postgres_place(place.url)),))
            with pytest.raises(TransportUnavailable, match="another process has been writing"):
                await broker.publish([message(1)])
            other.rollback()
        assert ["stored"] == [one.status for one in await broker.publish([message(1)])]

    run(place, test)


# --- rows are numbered in the order of their commits ---------------------------------------------------------------


async def _missed(place: PostgresSite, *, turn: bool) -> int:
    """Let eight writers publish and roll back at random times; return how many rows a reader by number has missed."""
    async with AsyncExitStack() as stack:
        brokers = [await stack.enter_async_context(open_postgres_transport(place.url, limits=LIMITS)) for _ in range(8)]
        await brokers[0].provision([TOPIC], [GROUP])
        seen: set[int] = set()
        done = asyncio.Event()

        async def read() -> None:
            last, rounds = 0, 0
            while rounds < 2:
                rounds += done.is_set()
                rows = await brokers[0]._shared.home.read("SELECT seq FROM log WHERE seq > ? ORDER BY seq", (last,))
                seen.update(row[0] for row in rows)
                last = rows[-1][0] if rows else last

        def job(number: int) -> Callable[[Connection], None]:
            def write(connection: Connection) -> None:
                connection.execute(
                    "INSERT INTO log (topic, lane, at, id, source, headers, body) VALUES (1, 0, 0, ?, 1, '{}', '')",
                    (f"id-{number}",),
                )
                time.sleep(0.001 * (number % 3))
                if number % 5 == 0:
                    raise TransportRefused("rolled back")

            return write

        async def write(broker: PostgresTransport, start: int) -> None:
            home = broker._shared.home
            assert isinstance(home, PostgresHome)
            if not turn:
                home._begin = "BEGIN; SELECT 0"
            for number in range(start, start + 60):
                try:
                    await broker._shared.writer.submit(job(number))
                except TransportError:
                    assert number % 5 == 0

        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(read())
            async with asyncio.TaskGroup() as writers:
                for number, broker in enumerate(brokers):
                    writers.create_task(write(broker, 1_000 * number))
            done.set()
        rows = await brokers[0]._shared.home.read("SELECT seq FROM log")
        assert 8 * 48 == len(rows)
        return len({row[0] for row in rows} - seen)


def test_a_reader_by_number_misses_no_commit(place: PostgresSite) -> None:
    """Eight writers with rollbacks in between: what a cursor has passed has no gap that is filled later."""
    assert 0 == asyncio.run(_missed(place, turn=True))


def test_without_the_write_turn_a_reader_by_number_misses_commits(place: PostgresSite) -> None:
    """The same without the lock, to see that the test above can fail."""
    assert 0 < asyncio.run(_missed(place, turn=False))


# --- tables -----------------------------------------------------------------------------------------------------


def test_tables_of_a_newer_tidewire_are_refused(place: PostgresSite) -> None:
    """An old program does not touch what a newer one has made."""
    run(place, _nothing)
    with psycopg.connect(place.server.url, autocommit=True) as connection:
        connection.execute(f"INSERT INTO {place.schema}.tidewire_broker_schema (version) VALUES (99)".encode())
    with pytest.raises(TransportRefused, match="version 99"):
        run(place, _nothing)


def test_who_only_looks_makes_no_tables(place: PostgresSite) -> None:
    """Without leave to create, a database without our tables is refused and stays as it is."""

    async def look() -> None:
        async with open_postgres_transport(place.url, create=False, limits=LIMITS):
            pass

    with pytest.raises(TransportRefused, match="no tables yet"):
        asyncio.run(look())
    with psycopg.connect(place.server.url) as connection:
        found = connection.execute("SELECT 1 FROM pg_namespace WHERE nspname = %s", (place.schema,)).fetchone()
    assert found is None


def test_many_that_start_at_once_make_the_tables_once(place: PostgresSite) -> None:
    """Whoever comes second waits, and finds them."""

    async def all_at_once() -> None:
        async with AsyncExitStack() as stack:
            opening = [stack.enter_async_context(open_postgres_transport(place.url, limits=LIMITS)) for _ in range(6)]
            assert 6 == len(await asyncio.gather(*opening))

    asyncio.run(all_at_once())


def test_writers_that_died_are_forgotten(place: PostgresSite) -> None:
    """The row of a process that was killed goes after a day; those of the living stay."""

    async def test(broker: PostgresTransport) -> None:
        home = broker._shared.home
        assert isinstance(home, PostgresHome)

        def write(connection: Connection) -> None:
            connection.execute("INSERT INTO writer (name, turn, at) VALUES ('dead', 1, 1)")

        await broker._shared.writer.submit(write)
        home._clean_at = 0
        async with asyncio.timeout(10):
            while {home.address} != {row[0] for row in await home.read("SELECT name FROM writer")}:  # noqa: ASYNC110
                await asyncio.sleep(0.05)

    run(place, test)


def test_an_act_cannot_be_changed(place: PostgresSite) -> None:
    """The database itself refuses to change or remove what operators did."""
    run(place, _nothing)
    with psycopg.connect(place.server.url, autocommit=True) as connection:
        for sql in ("UPDATE {} SET text = 'no'", "DELETE FROM {}", "TRUNCATE {}"):
            with pytest.raises(psycopg.Error, match="never changed or removed"):
                connection.execute(sql.format(f"{place.schema}.tidewire_broker_act").encode())


async def _nothing(broker: PostgresTransport) -> None:
    return None


async def _take(receiver: Receiver, number: int) -> list[Delivery]:
    found: list[Delivery] = []
    while len(found) < number:
        try:
            found += [one for one in await receiver.receive(10, SECOND) if isinstance(one, Delivery)]
        except TransportUnavailable:
            await asyncio.sleep(0.05)
    return found


def _caught_up(primary: PostgresServer, standby: PostgresServer) -> None:
    with psycopg.connect(primary.url) as ahead, psycopg.connect(standby.url, autocommit=True) as behind_it:
        row = ahead.execute("SELECT pg_current_wal_lsn()::text").fetchone()
        assert row is not None
        while behind_it.execute("SELECT pg_last_wal_replay_lsn() >= %s::pg_lsn", row).fetchone() != (True,):
            time.sleep(0.02)
