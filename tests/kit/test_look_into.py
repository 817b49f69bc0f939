"""Looking into a file of a broker or a store changes nothing, whoever has it open."""

from __future__ import annotations

import asyncio
import os
import shutil
import sqlite3
from contextlib import closing
from pathlib import Path

import pytest

from tidewire import Service, event, running, transaction
from tidewire.errors import StoreRefused, StoreUnavailable, TransportRefused, TransportUnavailable
from tidewire.kit.sqlite_file import look_into
from tidewire.model import GroupSpec, TopicSpec
from tidewire.runtime.serve import Options
from tidewire.stores.sqlite import open_sqlite_store
from tidewire.stores.sqlite.look import SqliteStoreLook
from tidewire.transports.sqlite import open_sqlite_transport
from tidewire.transports.sqlite.look import SqliteBrokerLook
from tidewire.transports.sqlite.schema import BROKER


@event("shop.order.placed", key="order_id")
class OrderPlaced:
    """Travels."""

    order_id: str


def everything(folder: Path) -> dict[str, tuple[int, int, bytes]]:
    """Return each file of *folder* with its mode, time of change and bytes."""
    return {path.name: (path.stat().st_mode, path.stat().st_mtime_ns, path.read_bytes()) for path in folder.iterdir()}


async def make_broker(path: Path) -> None:
    """Make a broker with one topic and a group on it."""
    async with open_sqlite_transport(path) as broker:
        await broker.provision([TopicSpec("shop.order", lanes=2)], [GroupSpec("billing", ["shop.order"])])


async def look_at(path: Path) -> list[str]:
    """Return what a look says of a topic that is as it is there, one with other lanes, and one that is not."""
    look = SqliteBrokerLook(path)
    assert ["shop.order"] == [topic.name for topic in await look.topics()]
    assert [TopicSpec("shop.order", lanes=2)] == [*await look.specs(["shop.order", "shop.stock"])]
    assert [] == [*await look.specs(["shop.stock"])]
    wanted = [TopicSpec("shop.order", lanes=2), TopicSpec("shop.order", lanes=4), TopicSpec("shop.stock")]
    return [change.kind for change in await look.compare(wanted, [GroupSpec("billing", ["shop.order"])])]


EXPECTED = ["unchanged", "conflict", "create", "unchanged"]


def test_a_look_at_a_file_at_rest_leaves_no_trace(tmp_path: Path) -> None:
    """No lock file, no log, no new time stamp."""
    asyncio.run(make_broker(tmp_path / "made.db"))
    alone = tmp_path / "alone"
    alone.mkdir()
    with closing(sqlite3.connect(tmp_path / "made.db")) as connection:
        connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    shutil.copyfile(tmp_path / "made.db", alone / "broker.db")
    before = everything(alone)
    assert EXPECTED == asyncio.run(look_at(alone / "broker.db"))
    assert (["broker.db"], before) == (list(before), everything(alone))


def test_a_look_at_a_broker_in_use_sees_what_is_committed(tmp_path: Path) -> None:
    """The owner has the file open, and what it has stored is in the log only."""

    async def scenario() -> list[str]:
        async with open_sqlite_transport(tmp_path / "broker.db") as broker:
            await broker.provision([TopicSpec("shop.order", lanes=2)], [GroupSpec("billing", ["shop.order"])])
            names = sorted(os.listdir(tmp_path))
            found = await look_at(tmp_path / "broker.db")
            assert names == sorted(os.listdir(tmp_path))
            return found

    assert EXPECTED == asyncio.run(scenario())


def test_what_is_read_while_the_file_changes_is_read_again(tmp_path: Path) -> None:
    """A file at rest that somebody opens during the look is looked at anew."""
    asyncio.run(make_broker(tmp_path / "broker.db"))
    with closing(sqlite3.connect(tmp_path / "broker.db")) as connection:
        connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    for name in ("broker.db-wal", "broker.db-shm"):
        (tmp_path / name).unlink(missing_ok=True)
    looks: list[int] = []

    def read(connection: sqlite3.Connection) -> int:
        if not looks:
            os.utime(tmp_path / "broker.db", ns=(1, 1))
        looks.append(connection.execute("SELECT count(*) FROM topic").fetchone()[0])
        return looks[-1]

    assert 1 == look_into(tmp_path / "broker.db", BROKER, read=read)
    assert [1, 1] == looks


def test_what_is_missing_or_foreign_is_told_apart(tmp_path: Path) -> None:
    """Time may bring a missing file; a foreign one is a person's affair. Neither is touched."""

    async def scenario() -> None:
        with pytest.raises(TransportUnavailable, match="there is no broker"):
            await SqliteBrokerLook(tmp_path / "no" / "broker.db").topics()
        with pytest.raises(StoreUnavailable, match="there is no store"):
            await SqliteStoreLook(tmp_path / "store.db").outbox()
        assert frozenset() == await SqliteStoreLook(tmp_path / "store.db").marked("billing")
        await make_broker(tmp_path / "broker.db")
        with pytest.raises(StoreRefused, match="another program"):
            await SqliteStoreLook(tmp_path / "broker.db").outbox()
        (tmp_path / "text.db").write_text("not a database")
        with pytest.raises(TransportRefused, match="not an SQLite database"):
            await SqliteBrokerLook(tmp_path / "text.db").topics()

    asyncio.run(scenario())


def test_a_look_at_a_store_finds_marks_and_the_outbox(tmp_path: Path) -> None:
    """Handlers by their marks, rows that wait, and whether a live process relays."""
    service = Service("billing")
    handled = asyncio.Event()

    @service.on(OrderPlaced, name="charge")
    async def charge(order: OrderPlaced) -> None:
        handled.set()

    async def scenario() -> None:
        look = SqliteStoreLook(tmp_path / "store.db")
        async with (
            open_sqlite_transport(tmp_path / "broker.db") as broker,
            open_sqlite_store(tmp_path / "store.db") as store,
        ):
            async with running(service, transport=broker, store=store) as app:
                await app.publisher.publish(OrderPlaced("1"))
                await handled.wait()
                for _ in range(1_000):
                    if (await look.outbox()).relayed:
                        break
                    await asyncio.sleep(0.01)
                assert (await look.outbox()).relayed
            options = Options(relay=False)
            async with running(service, transport=broker, store=store, options=options) as app:
                async with transaction(store) as tx:
                    await app.publisher.publish(OrderPlaced("2"), tx=tx)
                outbox = await look.outbox()
                assert (1, 0, 0, False) == (outbox.ready, outbox.delayed, outbox.stuck, outbox.relayed)
            assert (frozenset({"charge"}), frozenset()) == (await look.marked("billing"), await look.marked("stock"))

    asyncio.run(scenario())
