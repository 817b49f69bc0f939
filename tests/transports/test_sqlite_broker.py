"""What is special to the embedded broker: full disks, locks, other programs' files, and a writer that cannot go on."""

from __future__ import annotations

import asyncio
import shutil
import sqlite3
import subprocess
import sys
import threading
from collections.abc import Awaitable, Callable
from contextlib import closing
from datetime import timedelta
from pathlib import Path

import pytest

from tidewire.errors import TransportClosed, TransportRefused, TransportUnavailable
from tidewire.kit.mounts import file_system, is_network
from tidewire.kit.sqlite_errors import old_version
from tidewire.kit.sqllog.log import lane_of
from tidewire.kit.sqllog.writer import _JOBS_MAX
from tidewire.model import Delivery, GroupSpec, LaneEvent, Message, Subscription, Topic, TopicSpec
from tidewire.protocols import Receiver
from tidewire.transports.sqlite import SqliteTransport, open_sqlite_transport

TOPIC = TopicSpec("shop.order", lanes=2)


def message(number: int, *, key: str = "k") -> Message:
    return Message(Topic("shop.order"), f"id-{number}", "shop", key, {}, b"{}")


def member(name: str, *, prefetch: int = 256, grace: timedelta = timedelta(minutes=1)) -> Subscription:
    return Subscription("billing", ["shop.order"], name, prefetch=prefetch, lease=timedelta(minutes=5), grace=grace)


async def lane_events(receiver: Receiver, kind: str, count: int) -> list[str]:
    """Return the first *count* lanes of which *receiver* is told *kind*."""
    found: list[str] = []
    async with asyncio.timeout(20):
        while len(found) < count:
            for item in await receiver.receive(0, timedelta(seconds=5)):
                assert isinstance(item, LaneEvent)
                if item.kind == kind:
                    found.append(item.lane)
    return sorted(found)


def run(path: Path, test: Callable[[SqliteTransport], Awaitable[None]]) -> None:
    """Run *test* on a broker in *path* with one topic and one group."""

    async def scenario() -> None:
        async with open_sqlite_transport(path) as broker:
            await broker.provision([TOPIC], [GroupSpec("billing", ["shop.order"])])
            await test(broker)

    asyncio.run(scenario())


def test_a_writer_that_cannot_go_on_tells_everybody(tmp_path: Path) -> None:
    """What its own upkeep finds out ends it with a typed error: nobody waits for a thread that is dead."""
    path = tmp_path / "broker.db"

    async def test(broker: SqliteTransport) -> None:
        with closing(sqlite3.connect(path)) as other:
            other.execute("DROP TABLE topic")
        async with asyncio.timeout(30):
            while broker._shared.writer._broken is None:  # noqa: ASYNC110 - the thread knows no asyncio.Event
                await asyncio.sleep(0.02)
            for number in range(2):
                with pytest.raises(TransportRefused, match=r"broker\.db"):
                    await broker.publish([message(number)])

    run(path, test)


def test_who_is_at_work_when_the_writer_ends_hears_of_it(tmp_path: Path) -> None:
    """What goes wrong between the commit and the answer ends the writer: the callers of that commit do not wait on."""

    def tell(topics: set[int], subs: set[int]) -> None:
        raise RuntimeError("members cannot be told")

    async def test(broker: SqliteTransport) -> None:
        broker._shared.writer._tell = tell
        async with asyncio.timeout(10):
            ended = await asyncio.gather(
                *(broker.publish([message(number)]) for number in range(3)), return_exceptions=True
            )
        assert [TransportRefused] * 3 == [type(error) for error in ended]

    run(tmp_path / "broker.db", test)


def test_a_lock_of_another_program_is_waited_for(tmp_path: Path) -> None:
    """A shell with an open transaction delays writers; the event loop and what it holds go on, nothing is lost."""
    path = tmp_path / "broker.db"

    async def test(broker: SqliteTransport) -> None:
        with closing(sqlite3.connect(path, isolation_level=None)) as other:
            other.execute("BEGIN IMMEDIATE")
            publishing = asyncio.ensure_future(broker.publish([message(1)]))
            await asyncio.sleep(0.3)
            assert not publishing.done()
            other.execute("ROLLBACK")
            (receipt,) = await publishing
        assert receipt.ok

    run(path, test)


def test_a_file_of_another_program_is_refused_and_not_changed(tmp_path: Path) -> None:
    """Whatever it is: a database of somebody else's, a text, a folder, a link."""
    database, text, link = tmp_path / "theirs.db", tmp_path / "notes.txt", tmp_path / "link.db"
    with closing(sqlite3.connect(database)) as theirs:
        theirs.execute("CREATE TABLE topic (id)")
    text.write_bytes(b"dear diary\n" * 100)
    link.symlink_to(text)
    before = database.read_bytes(), text.read_bytes()
    for path in (database, text, link, tmp_path):
        with pytest.raises(TransportRefused, match=path.name):
            run(path, _nothing)
    assert before == (database.read_bytes(), text.read_bytes())


def test_a_newer_schema_is_refused_and_not_changed(tmp_path: Path) -> None:
    """An old program does not touch the file of a newer one."""
    path = tmp_path / "broker.db"
    run(path, _nothing)
    with closing(sqlite3.connect(path)) as later:
        later.execute("PRAGMA user_version=99")
    before = path.read_bytes()
    with pytest.raises(TransportRefused, match="schema version 99"):
        run(path, _nothing)
    assert before == path.read_bytes()


def test_a_damaged_file_is_refused(tmp_path: Path) -> None:
    """ST-13: cut short, or with a page of noise: it does not serve, and says what reads the rest."""
    path = tmp_path / "broker.db"
    run(path, _nothing)
    whole = path.read_bytes()
    for damaged in (whole[: len(whole) // 2], whole[:8_192] + b"\xa5" * 4_096 + whole[12_288:]):
        path.write_bytes(damaged)
        with pytest.raises(TransportRefused, match="damaged") as refused:
            run(path, _nothing)
        assert "recover" in refused.value.hint


async def _nothing(broker: SqliteTransport) -> None:
    return None


MOUNTS = [
    "overlay / overlay rw 0 0",
    "server:/users /users nfs4 rw 0 0",
    "/dev/sda1 /users/me/local\\040disk ext4 rw 0 0",
    "host /mnt/c 9p rw 0 0",
]


@pytest.mark.parametrize(
    ("path", "network"),
    [
        ("/srv/data", False),
        ("/users/me", True),
        ("/users/me/local disk/x", False),
        ("/mnt/c/x", True),
        ("/mnt/cd", False),
    ],
)
def test_a_network_file_system_is_known_by_its_mount(path: str, network: bool) -> None:
    """ST-16: the nearest mount point decides; such a place is refused, for its locks are not to be trusted."""
    assert network == is_network(file_system(Path(path), MOUNTS))


@pytest.mark.parametrize(
    ("version", "warned"),
    [("3.40.1", True), ("3.44.5", True), ("3.44.6", False), ("3.50.7", False), ("3.51.2", True), ("3.51.3", False)],
)
def test_an_old_sqlite_is_warned_about_by_name(version: str, warned: bool) -> None:
    """ST-4: versions with the WAL-reset bug are told, with the version that has it fixed; none is refused."""
    assert warned == ("3.51.3 or newer" in old_version(tuple(map(int, version.split(".")))))


IN_NAMESPACE = ["unshare", "--user", "--map-root-user", "--mount", "sh", "-ec"]
FULL_DISK = """
import asyncio, errno, os, sqlite3, sys
from datetime import timedelta
from tidewire.errors import TransportUnavailable
from msgspec.structs import astuple
from tidewire.model import DeadChannel, Delivery, GroupSpec, Message, Move, Subscription, Topic, TopicSpec
from tidewire.transports.sqlite import open_sqlite_transport

DIRECTORY = sys.argv[1]

def fill():
    descriptor = os.open(f"{DIRECTORY}/ballast", os.O_CREAT | os.O_WRONLY)
    try:
        while True:
            os.write(descriptor, bytes(4096))
    except OSError as error:
        assert error.errno == errno.ENOSPC
    finally:
        os.close(descriptor)

def message(number, size):
    return Message(Topic("t"), f"id-{number}", "s", "k", {}, bytes(size))

async def publish_until_full(broker, number):
    for size in (1 << 14, 0):  # large ones first, then whatever still finds a place
        while True:
            try:
                (receipt,) = await broker.publish([message(number, size)])
            except TransportUnavailable as error:
                assert "full" in error.message or "input/output" in error.message, error.message
                fill()
                break
            assert receipt.ok
            number += 1
    return number

async def main():
    for number in range(2):
        with open(f"{DIRECTORY}/spare-{number}", "wb") as spare:
            spare.write(bytes(4 << 20))
    async with open_sqlite_transport(f"{DIRECTORY}/broker.db") as broker:
        await broker.provision([TopicSpec("t", lanes=1)], [GroupSpec("g", ["t"])])
        async with broker.subscribe(Subscription("g", ["t"], "m", "key", prefetch=10_000)) as receiver:
            stored = acked = 0
            for round in range(2):  # the reserve is there for the second time as well
                stored = await publish_until_full(broker, stored)
                found = []
                async with asyncio.timeout(20):
                    while len(found) + acked < stored:
                        items = await receiver.receive(10_000, timedelta(seconds=1))
                        found += [item for item in items if isinstance(item, Delivery)]
                letters = [Move(one, [Message(DeadChannel("t", "g"), *astuple(one.message)[1:])]) for one in found[:20]]
                settled = await receiver.settle(ack=found[20:], move=letters)
                assert {"settled"} == {one.status for one in settled}
                acked += len(found)
                reserve = os.stat(f"{DIRECTORY}/broker.db-reserve").st_size
                print("reserve", reserve, "acked", acked == stored)
                os.unlink(f"{DIRECTORY}/ballast")
                os.unlink(f"{DIRECTORY}/spare-{round}")
                async with asyncio.timeout(20):
                    while os.stat(f"{DIRECTORY}/broker.db-reserve").st_size == 0:
                        await asyncio.sleep(0.05)
    rows = sqlite3.connect(f"{DIRECTORY}/broker.db").execute("SELECT count(*) FROM log").fetchone()[0]
    print("kept", rows == stored)

asyncio.run(main())
"""


def test_on_a_full_disk_publishes_are_refused_and_acks_are_not(tmp_path: Path) -> None:
    """ST-10, ST-11: settles are written from a reserve, which is laid in again when there is room."""
    if (
        shutil.which("unshare") is None
        or subprocess.run([*IN_NAMESPACE, "true"], check=False, capture_output=True).returncode
    ):
        pytest.skip("not proven: a small file system needs unshare(1) with user namespaces")
    disk = tmp_path / "disk"
    disk.mkdir()
    script = 'mount -t tmpfs -o size=16m tmpfs "$1"; exec "$2" -c "$3" "$1"'
    command = [*IN_NAMESPACE, script, "sh", str(disk), sys.executable, FULL_DISK]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    expected = ["reserve 0 acked True", "reserve 0 acked True", "kept True"]
    assert expected == done.stdout.splitlines(), done.stderr


LIMITED = """
import asyncio, resource, sys
from tidewire.errors import TransportUnavailable
from tidewire.model import Message, Topic, TopicSpec
from tidewire.transports.sqlite import open_sqlite_transport

async def main():
    async with open_sqlite_transport(sys.argv[1]) as broker:
        await broker.provision([TopicSpec("t", lanes=1)], [])
        resource.setrlimit(resource.RLIMIT_FSIZE, (6 << 20, 6 << 20))
        for number in range(1000):
            try:
                (receipt,) = await broker.publish([Message(Topic("t"), "", "s", None, {}, bytes(1 << 15))])
            except TransportUnavailable:
                return print(number)

asyncio.run(main())
"""


def test_what_is_reported_as_stored_is_what_is_stored_when_files_may_not_grow(tmp_path: Path) -> None:
    """ST-30: a checkpoint that fails does not turn a commit into a failure, which would be published twice."""
    path = tmp_path / "broker.db"
    done = subprocess.run(
        [sys.executable, "-c", LIMITED, str(path)], capture_output=True, text=True, timeout=60, check=False
    )
    stored = int(done.stdout or -1)
    assert 100 < stored < 1000, done.stderr
    with closing(sqlite3.connect(path)) as connection:
        assert (stored,) == connection.execute("SELECT count(*) FROM log").fetchone()


def test_a_locked_up_file_is_unavailable_and_not_a_hang(tmp_path: Path) -> None:
    """A file that another program keeps locked for long is an outage with a name, and the broker goes on after it."""
    path = tmp_path / "broker.db"

    async def test(broker: SqliteTransport) -> None:
        with closing(sqlite3.connect(path, isolation_level=None)) as other:
            other.execute("BEGIN EXCLUSIVE")
            with pytest.raises(TransportUnavailable, match="locked by another program"):
                await broker.publish([message(1)])
            other.execute("ROLLBACK")
        (receipt,) = await broker.publish([message(1)])
        assert receipt.ok

    run(path, test)


def test_a_lonely_ack_waits_a_little_for_company(tmp_path: Path) -> None:
    """An ack and the publish that follows it share one transaction; alone it is durable some milliseconds later."""

    async def test(broker: SqliteTransport) -> None:
        writer = broker._shared.writer
        jobs: list[list[int]] = []

        def job(number: int) -> Callable[[sqlite3.Connection], None]:
            return lambda connection: jobs.append([number, connection.total_changes])

        async with asyncio.timeout(10):
            await writer.submit(job(0), patient=True)
            patient = asyncio.create_task(writer.submit(job(1), patient=True))
            await asyncio.sleep(0)
            await writer.submit(lambda connection: jobs.append([2, connection.total_changes]))
            assert patient.done() or await patient is None
        assert [0, 1, 2] == [number for number, _ in jobs]
        assert jobs[1][1] == jobs[2][1]

    run(tmp_path / "broker.db", test)


def test_the_log_is_copied_in_a_lull(tmp_path: Path) -> None:
    """What has grown long while messages came is copied into the file when none come, not when the next one does."""
    path = tmp_path / "broker.db"

    async def test(broker: SqliteTransport) -> None:
        before = path.stat().st_size
        for start in range(0, 1_000, 100):
            await broker.publish([message(number) for number in range(start, start + 100)])
        async with asyncio.timeout(30):
            while path.stat().st_size == before:  # noqa: ASYNC110 - the thread that copies knows no asyncio.Event
                await asyncio.sleep(0.01)

    run(path, test)


def test_a_batch_is_stored_whole_whatever_its_length(tmp_path: Path) -> None:
    """Rows go in by the dozen, and what a batch repeats is known in it, next to it and in dozens of others."""

    async def test(broker: SqliteTransport) -> None:
        for size in (1, 31, 32, 33, 100):
            batch = [message(1_000 * size + number) for number in range(size)]
            receipts = await broker.publish([*batch, *batch[:1]])
            assert [(one.id, "stored") for one in batch] == [(one.id, one.status) for one in receipts[:size]]
            assert ["duplicate"] * size == [one.status for one in await broker.publish(batch)]
        assert 1 + 31 + 32 + 33 + 100 == (await broker.topics())[0].messages

    run(tmp_path / "broker.db", test)


def test_jobs_that_come_while_others_wait_for_company_do_no_harm(tmp_path: Path) -> None:
    """Acks and publishes in any mixture, as fast as they can be asked for: each is done, and once."""
    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)  # the threads alternate within every loop over what they share

    async def test(broker: SqliteTransport) -> None:
        writer = broker._shared.writer
        done: list[int] = []

        async def ask(number: int) -> None:
            await writer.submit(lambda _: done.append(number), patient=number % 5_000 != 0)

        async with asyncio.timeout(60), asyncio.TaskGroup() as tasks:
            for number in range(20_000):
                tasks.create_task(ask(number))
        assert list(range(20_000)) == sorted(done)

    try:
        run(tmp_path / "broker.db", test)
    finally:
        sys.setswitchinterval(interval)


def test_a_lane_that_cannot_be_given_back_now_is_given_back_later(tmp_path: Path) -> None:
    """A file that is locked while a drained lane is given back costs a wait: the next member gets the lane after it."""
    path = tmp_path / "broker.db"

    async def test(broker: SqliteTransport) -> None:
        async with broker.subscribe(member("a")) as a:
            await lane_events(a, "assigned", 2)
            async with broker.subscribe(member("b")) as b:
                (lane,) = await lane_events(a, "revoking", 1)
                with closing(sqlite3.connect(path, isolation_level=None)) as other:
                    other.execute("BEGIN IMMEDIATE")
                    with pytest.raises(TransportUnavailable, match="locked by another program"):
                        await a.steer(drained=[lane])
                    other.execute("ROLLBACK")
                await a.steer(drained=[lane])
                assert [lane] == await lane_events(b, "assigned", 1)

    run(path, test)


def test_who_could_not_join_is_no_member(tmp_path: Path) -> None:
    """A join that fails half-way leaves nobody behind who would keep a share of the lanes for ever."""
    path = tmp_path / "broker.db"

    async def test(broker: SqliteTransport) -> None:
        with closing(sqlite3.connect(path, isolation_level=None)) as other:
            other.execute("CREATE TRIGGER no BEFORE UPDATE OF epoch ON cursor BEGIN SELECT RAISE(ABORT, 'no'); END")
            with pytest.raises(TransportRefused, match="was refused a statement"):
                async with broker.subscribe(member("a")):
                    pass
            other.execute("DROP TRIGGER no")
            assert [] == other.execute("SELECT name FROM member").fetchall()
        async with broker.subscribe(member("b")) as b:
            assert ["shop.order/0", "shop.order/1"] == await lane_events(b, "assigned", 2)

    run(path, test)


def test_a_lane_taken_from_a_slow_member_is_lost_before_its_room_is_filled(tmp_path: Path) -> None:
    """What is overdue is said to be lost first: a member never has more in hand than its prefetch."""
    path = tmp_path / "broker.db"
    ours, theirs = (next(key for key in "abcdefgh" if lane_of(key, "", 2) == lane) for lane in (0, 1))

    async def test(broker: SqliteTransport) -> None:
        async with broker.subscribe(member("a", prefetch=1, grace=timedelta(0))) as a:
            await lane_events(a, "assigned", 2)
            await broker.publish([message(1, key=theirs)])
            assert 1 == len(await a.receive(10, timedelta(seconds=5)))
            await broker.publish([message(2, key=ours)])
            async with broker.subscribe(member("b")):
                await lane_events(a, "revoking", 1)
                with closing(sqlite3.connect(path, isolation_level=None)) as other:
                    other.execute("BEGIN IMMEDIATE")  # giving back takes as long as this
                    first, second = await a.receive(10, timedelta(seconds=10))
                    other.execute("ROLLBACK")
                assert isinstance(first, LaneEvent)
                assert ("lost", "shop.order/1") == (first.kind, first.lane)
                assert isinstance(second, Delivery)
                assert "shop.order/0" == second.lane

    run(path, test)


def test_who_waits_for_room_when_the_broker_is_closed_is_told_so(tmp_path: Path) -> None:
    """A close works off what is queued; what is not queued yet is refused and does not wait for a dead thread."""

    async def test(broker: SqliteTransport) -> None:
        writer = broker._shared.writer
        begun, go_on = threading.Event(), threading.Event()

        def hold(_: sqlite3.Connection) -> None:
            begun.set()
            go_on.wait()

        async with asyncio.timeout(20):
            held = asyncio.create_task(writer.submit(hold))
            await asyncio.to_thread(begun.wait)
            queued = [asyncio.create_task(writer.submit(lambda _: None)) for _ in range(_JOBS_MAX)]
            late = asyncio.create_task(writer.submit(lambda _: None))
            await asyncio.sleep(0)
            go_on.set()
            writer.close()  # blocks: who waits for room does not get to see any
            with pytest.raises(TransportClosed, match="is closed"):
                await late
            assert [None] * (_JOBS_MAX + 1) == await asyncio.gather(held, *queued)

    run(tmp_path / "broker.db", test)
