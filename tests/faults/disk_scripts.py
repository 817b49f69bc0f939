"""The write paths of the embedded broker and of the SQLite store, as processes to be recorded: ``NAME DIRECTORY``.

A script prints `ACK sql` once something is durable (the SQL must be true in every later state of the disk) and
`ALWAYS sql` for what must be true in every state, before the first write that could break it. The files are
attached as ``broker`` and ``store``.
"""

from __future__ import annotations

import asyncio
import os
import sqlite3
import sys
from collections.abc import Awaitable, Callable, Sequence
from datetime import timedelta
from pathlib import Path
from typing import Any

from disk_plants import PLANTS

from tidewire.model import (
    Act,
    DeadChannel,
    Delivery,
    Failure,
    GroupSpec,
    Guard,
    Held,
    InboxChannel,
    Mark,
    Message,
    Move,
    Release,
    Subscription,
    Topic,
    TopicSpec,
)
from tidewire.stores.sqlite import open_sqlite_store
from tidewire.stores.sqlite.schema import STORE
from tidewire.transports.sqlite import open_sqlite_transport
from tidewire.transports.sqlite.schema import BROKER

TOPIC, GROUP = "shop.order", "billing"
TOPICS = [TopicSpec(TOPIC, lanes=2)]
GROUPS = [GroupSpec(GROUP, [TOPIC]), GroupSpec("audit", [TOPIC])]
WAIT = timedelta(seconds=5)
LEASE = timedelta(seconds=3)


def say(kind: str, sql: str) -> None:
    """Print a promise in one system call."""
    os.write(1, f"{kind} {sql}\n".encode())


def ack(sql: str) -> None:
    """From now on *sql* is true."""
    say("ACK", sql)


def always(sql: str) -> None:
    """*sql* is true in every state."""
    say("ALWAYS", sql)


def stored(*ids: str) -> str:
    """SQL: these messages are in the log."""
    names = ", ".join(f"'{one}'" for one in ids)
    return f"SELECT count(*) = {len(ids)} FROM broker.log WHERE id IN ({names})"


def together(table: str, ids: Sequence[str]) -> str:
    """SQL: all of these are there, or none."""
    names = ", ".join(f"'{one}'" for one in ids)
    return f"SELECT count(*) IN (0, {len(ids)}) FROM {table} WHERE id IN ({names})"


def unsettled(event_id: str, group: str = GROUP) -> str:
    """SQL expression: this message of the log is not settled for the group."""
    return (
        "EXISTS (SELECT 1 FROM broker.log l JOIN broker.member_of m ON m.topic = l.topic "
        "JOIN broker.cursor c ON c.sub = m.id AND c.lane = l.lane "
        f"WHERE l.id = '{event_id}' AND m.grp = '{group}' AND l.seq > c.pos AND NOT EXISTS (SELECT 1 FROM "
        "broker.above a WHERE a.sub = m.id AND a.lane = l.lane AND a.seq = l.seq AND a.settled))"
    )


def message(
    event_id: str, *, key: str | None = None, body: bytes = b"{}", to: Any = None, due: int | None = None
) -> Message:
    """Return a message of the shop."""
    headers = {"ce-id": event_id, "ce-source": "test", "ce-type": "shop.order.placed"}
    return Message(to or Topic(TOPIC), event_id, "test", key, headers, body, due)


def subscription(member: str, *, group: str = GROUP, ordering: Any = "key") -> Subscription:
    """Return a member's place."""
    return Subscription(group, [TOPIC], member, ordering=ordering, lease=LEASE, grace=timedelta(seconds=1))


async def deliveries(receiver: Any, count: int) -> list[Delivery]:
    """Receive exactly *count* deliveries."""
    found: list[Delivery] = []
    while len(found) < count:
        found += [one for one in await receiver.receive(count - len(found), WAIT) if isinstance(one, Delivery)]
    return found


# --- the embedded broker ------------------------------------------------------------------------------------------


async def create(directory: Path) -> None:
    """A broker and a store come into being in a directory that is not there, twice, and are used at once."""
    place = directory / "fresh"
    for life in range(2):
        async with open_sqlite_transport(place / "broker.db") as broker, open_sqlite_store(place / "store.db") as store:
            await broker.provision(TOPICS, GROUPS)
            ack("SELECT count(*) >= 2 FROM broker.member_of")
            await broker.publish([message(f"first-{life}")])
            ack(stored(f"first-{life}"))
            await put_row(store, f"row-{life}")
            ack(f"SELECT count(*) = 1 FROM store.tidewire_outbox WHERE id = 'row-{life}'")


async def publish(directory: Path) -> None:
    """One message, batches, keys, delays, duplicates, and many callers at once."""
    async with open_sqlite_transport(directory / "broker.db") as broker:
        await broker.provision(TOPICS, GROUPS)
        for number in range(6):
            await broker.publish([message(f"one-{number}", key=f"k{number % 2}")])
            ack(stored(f"one-{number}"))
        for batch in range(4):
            ids = [f"batch-{batch}-{number}" for number in range(5)]
            always(together("broker.log", ids))
            await broker.publish([message(one, key=f"k{batch}", body=b"x" * 3_000) for one in ids])
            ack(stored(*ids))
        await broker.publish([message("one-1", key="k1"), message("late", due=4 * 10**15)])
        ack("SELECT count(*) = 1 FROM broker.delayed WHERE id = 'late'")

        async def caller(number: int) -> None:
            for turn in range(3):
                await broker.publish([message(f"many-{number}-{turn}")])
                ack(stored(f"many-{number}-{turn}"))

        await asyncio.gather(*(caller(number) for number in range(8)))


async def settle(directory: Path) -> None:
    """Acks in and out of order, releases that count and wait, moves to the inbox channel and to the dead channel."""
    async with open_sqlite_transport(directory / "broker.db") as broker:
        await broker.provision(TOPICS, GROUPS)
        ids = [f"m{number}" for number in range(16)]
        await broker.publish([message(one) for one in ids])
        ack(stored(*ids))
        async with broker.subscribe(subscription("a", ordering="none")) as receiver:
            found = {one.message.id: one for one in await deliveries(receiver, 16)}
            for one in ("m3", "m0", "m2", "m1"):
                await receiver.settle(ack=[found[one]])
                ack(f"SELECT NOT {unsettled(one)}")
            await receiver.settle(release=[Release(found["m4"], timedelta(hours=1)), Release(found["m5"])])
            ack("SELECT count(*) >= 1 FROM broker.above WHERE attempt = 2")
            for number, to in enumerate(
                (InboxChannel(TOPIC, GROUP), DeadChannel(TOPIC, GROUP), DeadChannel(TOPIC, GROUP))
            ):
                one, table = f"m{6 + number}", "inbox" if number == 0 else "dead"
                always(f"SELECT {unsettled(one)} + (SELECT count(*) FROM broker.{table} WHERE id = '{one}') = 1")
                moved = message(one, to=to, due=4 * 10**15 if number == 0 else None)
                await receiver.settle(move=[Move(found[one], [moved])])
                ack(f"SELECT count(*) = 1 FROM broker.{table} WHERE id = '{one}'")
                ack(f"SELECT NOT {unsettled(one)}")
            mixed = ["m9", "m10", "m11"]
            follow_up = message("follow-up")
            always("SELECT (SELECT count(*) FROM broker.log WHERE id = 'follow-up') = 0 OR NOT " + unsettled("m11"))
            await receiver.settle(ack=[found["m9"], found["m10"]], move=[Move(found["m11"], [follow_up])])
            ack(stored("follow-up"))
            for one in mixed:
                ack(f"SELECT NOT {unsettled(one)}")


async def operate(directory: Path) -> None:
    """Seek, dead letters removed and given back, the audit, and topics that are added later."""
    async with open_sqlite_transport(directory / "broker.db") as broker:
        await broker.provision(TOPICS, GROUPS)
        dead = [message(f"d{number}", key="k", to=DeadChannel(TOPIC, GROUP)) for number in range(4)]
        always(together("broker.dead", [one.id for one in dead[2:]]))
        await broker.publish(dead)
        letters = await broker.browse(DeadChannel(TOPIC, GROUP))
        await broker.note(Act(id="1", at=1, who="me", verb="redrive", topic=TOPIC, group=GROUP, state="begun"))
        ack("SELECT count(*) >= 1 FROM broker.act")
        for letter in letters[:2]:
            one = letter.message.id
            always(
                f"SELECT (SELECT count(*) FROM broker.dead WHERE id = '{one}') + "
                f"(SELECT count(*) FROM broker.inbox WHERE id = '{one}') > 0"
            )
            await broker.publish([message(one, key="k", to=InboxChannel(TOPIC, GROUP))])
            ack(f"SELECT count(*) >= 1 FROM broker.inbox WHERE id = '{one}'")
            await broker.remove(DeadChannel(TOPIC, GROUP), [letter.position])
            ack(f"SELECT count(*) = 0 FROM broker.dead WHERE id = '{one}'")
        await broker.remove(DeadChannel(TOPIC, GROUP), [letter.position for letter in letters[2:]])
        ack("SELECT count(*) = 0 FROM broker.dead")
        await broker.publish([message(f"s{number}", key=f"k{number}") for number in range(6)])
        async with broker.subscribe(subscription("b", group="audit")) as receiver:
            await receiver.settle(ack=await deliveries(receiver, 6))
        for number in (3, 2, 1):
            await broker.seek(TOPIC, "audit", to=number)
        ack(f"SELECT {unsettled('s5', 'audit')}")
        for number in range(3):
            await broker.provision(
                [TopicSpec(f"shop.more{number}")], [GroupSpec("late", [TOPIC, f"shop.more{number}"])]
            )
            ack(f"SELECT count(*) = 1 FROM broker.topic WHERE name = 'shop.more{number}'")
        always(
            "SELECT count(*) IN (0, 16) FROM broker.cursor c JOIN broker.member_of m ON m.id = c.sub "
            "JOIN broker.topic t ON t.id = m.topic WHERE t.name = 'shop.bulk'"
        )
        await broker.provision([TopicSpec("shop.bulk", lanes=16)], [GroupSpec("bulk", ["shop.bulk"])])


async def checkpoint(directory: Path) -> None:
    """So much is written that both logs are copied into their files; then the last one closes, and another opens."""
    place, many = directory / "broker.db", 0
    for rounds in (36, 4):
        async with open_sqlite_transport(place) as broker, open_sqlite_store(directory / "store.db") as store:
            await broker.provision(TOPICS, GROUPS[1:])
            for _ in range(rounds):
                ids = [f"m{many + number}" for number in range(64)]
                many += 64
                await asyncio.gather(*(broker.publish([message(one)]) for one in ids))
                ack(f"SELECT count(*) >= {many} FROM broker.log")
                await asyncio.gather(*(put_row(store, one) for one in ids))
                ack(f"SELECT count(*) >= {many} FROM store.tidewire_outbox")


async def upgrade(directory: Path) -> None:
    """Files of the first schema, with what users have in them, are opened by today's code."""
    async with (
        open_sqlite_transport(directory / "broker.db") as broker,
        open_sqlite_store(directory / "store.db") as store,
    ):
        ack(stored("old-1", "old-2"))
        ack("SELECT count(*) = 1 FROM store.tidewire_outbox WHERE id = 'old-3'")
        await broker.publish([message("new")])
        ack(stored("new"))
        await put_row(store, "new-row")
        ack("SELECT count(*) = 1 FROM store.tidewire_outbox WHERE id = 'new-row'")


def prepare_upgrade(directory: Path) -> None:
    """Make the files as the first version made them."""
    for kind, name in ((BROKER, "broker.db"), (STORE, "store.db")):
        connection = sqlite3.connect(directory / name, isolation_level=None)
        connection.execute(f"PRAGMA application_id={kind.application_id}")
        for statement in kind.migrations[0]:
            connection.execute(statement)
        connection.execute("PRAGMA user_version=1")
        if kind is BROKER:
            connection.execute(
                "INSERT INTO topic (id, name, lanes, retention) VALUES (1, 'shop.order', 2, 604800000000)"
            )
            connection.execute("INSERT INTO source (id, name) VALUES (1, 'test')")
            connection.execute("INSERT INTO member_of (id, grp, topic) VALUES (1, 'billing', 1)")
            for lane in range(2):
                connection.execute("INSERT INTO cursor VALUES (1, ?, 0, 0, '', '', 0, 0)", (lane,))
            for number in (1, 2):
                row = (1, number % 2, number, f"old-{number}", 1, None, '{"ce-type":"shop.order.placed"}', b"{}")
                connection.execute(
                    "INSERT INTO log (topic, lane, at, id, source, key, headers, body) VALUES (?, ?, ?, ?, ?, ?, ?, ?)",
                    row,
                )
        else:
            connection.execute(
                "INSERT INTO tidewire_outbox (id, source, aggregatetype, aggregateid, type, headers, payload) "
                "VALUES ('old-3', 'test', 'shop.order', NULL, 'shop.order.placed', '{}', x'7b7d')"
            )
        connection.execute("PRAGMA journal_mode=WAL")
        connection.close()


async def two(directory: Path) -> None:
    """Two processes publish to one broker and settle from it at the same time."""
    async with open_sqlite_transport(directory / "broker.db") as broker:
        await broker.provision(TOPICS, GROUPS)
    command = [sys.executable, __file__]
    processes = [await asyncio.create_subprocess_exec(*command, f"peer-{name}", str(directory)) for name in ("a", "b")]
    codes = [await process.wait() for process in processes]
    if codes != [0, 0]:
        raise RuntimeError(f"the processes ended with {codes}")


async def peer(directory: Path, name: str) -> None:
    """One of the two: publishes, and settles what falls to it."""
    async with open_sqlite_transport(directory / "broker.db") as broker, broker.subscribe(subscription(name)) as own:
        for number in range(6):
            ids = [f"{name}-{number}-{part}" for part in range(2)]
            always(together("broker.log", ids))
            await broker.publish([message(one, key=f"k{number}") for one in ids])
            ack(stored(*ids))
            found = [one for one in await own.receive(8, timedelta(milliseconds=20)) if isinstance(one, Delivery)]
            for settlement in await own.settle(ack=found):
                if settlement.status == "settled":
                    ack(f"SELECT NOT {unsettled(settlement.delivery.message.id)}")


# --- the store ----------------------------------------------------------------------------------------------------


async def put_row(store: Any, event_id: str) -> None:
    """Put one event into the outbox, in a unit of its own."""
    unit = store.unit()
    await unit.begin()
    await store.outbox.put(unit, [message(event_id)])
    await (await unit.seal())


async def effect(store: Any, name: str, *, guard: Guard | None = None) -> None:
    """One effect as a handler has it: the mark, the user's row and the event that follows, in one unit."""
    one = f"EXISTS (SELECT 1 FROM store.effect WHERE name = '{name}')"
    always(f"SELECT {one} = EXISTS (SELECT 1 FROM store.tidewire_mark WHERE event_id = '{name}')")
    always(
        f"SELECT {one} = (EXISTS (SELECT 1 FROM store.tidewire_outbox WHERE id = 'after-{name}') OR "
        f"EXISTS (SELECT 1 FROM store.gone WHERE name = 'after-{name}'))"
    )
    unit = store.unit(guard)
    await store.inbox.mark(unit, Mark(GROUP, "charge", 0, "test", name), b"digest")
    await unit.tx.execute("INSERT INTO effect VALUES (?)", (name,))
    await store.outbox.put(unit, [message(f"after-{name}", key=name)])
    await (await unit.seal())
    ack(f"SELECT {one}")


async def units(directory: Path) -> None:
    """Effects with their marks and events, alone and many in one transaction, and some that are rolled back."""
    async with open_sqlite_store(directory / "store.db") as store:
        await tables(store)
        await store.lanes.adopt(GROUP, "0", 3)
        ack("SELECT epoch >= 3 FROM store.tidewire_lane")
        guard = Guard(GROUP, "0", 3)
        for number in range(5):
            await effect(store, f"alone-{number}", guard=guard)
        await asyncio.gather(*(effect(store, f"shared-{number}") for number in range(12)))
        for number in range(3):
            unit = store.unit()
            await unit.tx.execute("INSERT INTO effect VALUES (?)", (f"undone-{number}",))
            await unit.rollback()
            ack(f"SELECT NOT EXISTS (SELECT 1 FROM store.effect WHERE name = 'undone-{number}')")
        for epoch in (4, 5):
            await store.lanes.adopt(GROUP, "0", epoch)
            ack(f"SELECT epoch >= {epoch} FROM store.tidewire_lane")


async def tables(store: Any) -> None:
    """Make the user's tables."""
    unit = store.unit()
    await unit.tx.execute("CREATE TABLE IF NOT EXISTS effect (name TEXT)")
    await unit.tx.execute("CREATE TABLE IF NOT EXISTS gone (name TEXT)")
    await (await unit.seal())
    ack("SELECT count(*) = 2 FROM store.sqlite_master WHERE name IN ('effect', 'gone')")


async def relaying(directory: Path) -> None:
    """What a relay does to the outbox: the lease, rows done, refusals, the quarantine, delayed rows."""
    async with open_sqlite_store(directory / "store.db") as store:
        unit = store.unit()
        await unit.begin()
        await store.outbox.put(unit, [message(f"o{number}", key=f"k{number % 3}") for number in range(12)])
        await store.outbox.put(unit, [message("due", due=1), message("late", due=4 * 10**15)])
        always(
            "SELECT (SELECT count(*) FROM store.tidewire_outbox WHERE id = 'o11') = 0 OR "
            "(SELECT count(*) FROM store.tidewire_outbox_delayed WHERE id = 'late') = 1"
        )
        await (await unit.seal())
        ack("SELECT count(*) = 1 FROM store.tidewire_outbox_delayed WHERE id = 'late'")
        backlog = store.backlog
        await backlog.lease("me", LEASE)
        rows = list(await backlog.claim("me", after=0, limit=20))
        for start in range(0, 6, 2):
            gone = [row.message.id for row in rows[start : start + 2]]
            always(together("store.tidewire_outbox", gone))
            await backlog.done("me", [row.row for row in rows[start : start + 2]])
            ack(f"SELECT count(*) = 0 FROM store.tidewire_outbox WHERE id IN ('{gone[0]}', '{gone[1]}')")
        stuck = rows[6]
        always(
            f"SELECT (SELECT count(*) FROM store.tidewire_outbox WHERE id = '{stuck.message.id}') + (SELECT count(*) "
            f"FROM store.tidewire_outbox_refused WHERE id = '{stuck.message.id}') <= 1"
        )
        for _ in range(2):
            await backlog.refused("me", stuck.row, detail="no", attempts_max=2)
        ack(
            f"SELECT (SELECT count(*) FROM store.tidewire_outbox WHERE id = '{stuck.message.id}') + (SELECT count(*) "
            f"FROM store.tidewire_outbox_refused WHERE id = '{stuck.message.id}') = 1"
        )
        await backlog.claim("me", after=0, limit=20)
        await store.outbox.requeue([one.row for one in await store.outbox.stuck()])
        ack("SELECT count(*) = 0 FROM store.tidewire_outbox_refused")
        await backlog.lease("me", timedelta(0))


async def records(directory: Path) -> None:
    """What is remembered of failures, held keys, runs and timetables; marks that are pruned."""
    async with open_sqlite_store(directory / "store.db") as store:
        await tables(store)
        for number in range(3):
            await store.attempts.begin(GROUP, "test", f"e{number}")
            if number:
                ack(f"SELECT count(*) = 1 FROM store.tidewire_attempt WHERE event_id = 'e{number}'")
            await store.attempts.fail(GROUP, "test", f"e{number}", Failure(failures=number + 1, last_error="no"))
        await store.attempts.forget(GROUP, "test", "e0")
        ack("SELECT count(*) = 0 FROM store.tidewire_attempt WHERE event_id = 'e0'")
        rows = [Held(GROUP, TOPIC, "k", "test", f"h{number}", "inbox", 5) for number in range(4)]
        always("SELECT count(*) IN (0, 2) FROM store.tidewire_held WHERE event_id IN ('h0', 'h1')")
        await store.held.put(rows[:2])
        await store.held.put(rows[2:])
        ack("SELECT count(*) = 2 FROM store.tidewire_held WHERE event_id IN ('h2', 'h3')")
        await store.held.free(rows[:2])
        ack("SELECT count(*) = 0 FROM store.tidewire_held WHERE event_id IN ('h0', 'h1')")
        for number in range(8):
            await effect(store, f"marked-{number}")
        await store.inbox.next_run(GROUP)
        ack("SELECT run = 1 FROM store.tidewire_run")
        due, mine = await store.timetable.claim("daily", "rule", first=10, now=20, owner="me", lease=LEASE)
        assert mine
        ack("SELECT due >= 10 FROM store.tidewire_timetable")
        unit = store.unit()
        await unit.tx.execute("INSERT INTO effect VALUES ('daily')")
        await unit.tx.execute("INSERT INTO gone VALUES ('daily')")
        always(
            "SELECT EXISTS (SELECT 1 FROM store.gone WHERE name = 'daily') = "
            "coalesce((SELECT due = 30 FROM store.tidewire_timetable), 0)"
        )
        await store.timetable.advance(unit, "daily", owner="me", due=due, to=30)
        await (await unit.seal())
        ack("SELECT due = 30 FROM store.tidewire_timetable")


async def prune(directory: Path) -> None:
    """Old marks go in bounded batches."""
    async with open_sqlite_store(directory / "store.db") as store:
        for number in range(20):
            unit = store.unit()
            await store.inbox.mark(unit, Mark(GROUP, "charge", 0, "test", f"p{number}"), b"digest")
            await (await unit.seal())
        while await store.inbox.prune(4 * 10**15, 7):
            ack("SELECT count(*) <= 13 FROM store.tidewire_mark")
        ack("SELECT count(*) = 0 FROM store.tidewire_mark")


# --- the whole ----------------------------------------------------------------------------------------------------


async def service(directory: Path) -> None:
    """A service runs: receive, effect, mark and event in one transaction, ack, relay."""
    from disk_service import run_service

    await run_service(directory)


SCRIPTS: dict[str, Callable[[Path], Awaitable[None]]] = {
    one.__name__: one
    for one in (create, publish, settle, operate, checkpoint, upgrade, two, units, relaying, records, prune, service)
}


def main(argv: Sequence[str]) -> None:
    """Run one script, with a planted fault if one is named."""
    name, directory = argv[0], Path(argv[1])
    if len(argv) > 2:
        PLANTS[argv[2]]()
    if name.startswith("peer-"):
        asyncio.run(peer(directory, name.removeprefix("peer-")))
    else:
        asyncio.run(SCRIPTS[name](directory))


if __name__ == "__main__":
    main(sys.argv[1:])
