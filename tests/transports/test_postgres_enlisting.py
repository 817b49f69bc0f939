"""Broker and store in one PostgreSQL database: an effect, its position and what it publishes are one transaction."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from datetime import timedelta
from pathlib import Path

import psycopg
import pytest

from tidewire import Context, Service, event, running
from tidewire.model import Delivery, GroupSpec, Message, Subscription, Topic, TopicSpec
from tidewire.protocols import Receiver
from tidewire.runtime.serve import Options
from tidewire.stores.postgres import open_postgres_store
from tidewire.stores.postgres.store import PostgresStore
from tidewire.stores.sqlite import open_sqlite_store
from tidewire.transports.postgres import PostgresTransport, open_postgres_transport

TOPIC = "shop.order"


@event("shop.order.placed", key="order_id")
class OrderPlaced:
    """What comes."""

    order_id: str


@event("shop.payment.taken", key="order_id")
class PaymentTaken:
    """What follows."""

    order_id: str


def run(url: str, test: Callable[[PostgresTransport, PostgresStore], Awaitable[None]]) -> None:
    """Run *test* on a broker and a store in the database at *url*, with a table of the user's own."""

    async def scenario() -> None:
        async with (
            asyncio.timeout(40),
            open_postgres_transport(url) as broker,
            open_postgres_store(url, provision=True) as store,
        ):
            with psycopg.connect(url, autocommit=True) as connection:
                connection.execute("CREATE TABLE effect (id text)")
            await broker.provision([TopicSpec(TOPIC, lanes=1)], [GroupSpec("billing", [TOPIC])])
            await test(broker, store)

    asyncio.run(scenario())


async def take(receiver: Receiver, number: int, *, wait: float = 10.0) -> list[Delivery]:
    """Receive *number* deliveries, or what there is after a while."""
    found: list[Delivery] = []
    while len(found) < number and (some := await receiver.receive(number, timedelta(seconds=wait))):
        found += [one for one in some if isinstance(one, Delivery)]
    return found


def member(name: str) -> Subscription:
    return Subscription("billing", [TOPIC], name, lease=timedelta(seconds=20), grace=timedelta(0))


def rows(url: str, sql: str) -> list[tuple[object, ...]]:
    with psycopg.connect(url) as connection:
        return connection.execute(sql.encode()).fetchall()


def test_effect_position_and_outgoing_event_are_one_transaction(postgresql_url: str) -> None:
    """They were written by the same transaction of the database; the event that came is not handed out again."""

    async def test(broker: PostgresTransport, store: PostgresStore) -> None:
        billing = Service("billing")
        first, go_on = asyncio.Event(), asyncio.Event()

        @billing.on(OrderPlaced)
        async def charge(order: OrderPlaced, context: Context) -> PaymentTaken | None:
            if order.order_id == "slow":  # what is unsettled before it keeps the position's row where it is
                first.set()
                await go_on.wait()
                return None
            await context.tx.execute("INSERT INTO effect (id) VALUES ($1)", (order.order_id,))
            return PaymentTaken(order.order_id)

        options = Options(lanes=1, relay=False)
        async with running(billing, transport=broker, store=store, options=options) as app:
            await app.publisher.publish(OrderPlaced("slow"))
            await first.wait()
            await app.publisher.publish(OrderPlaced("quick"))
            while not rows(postgresql_url, "SELECT 1 FROM tidewire_broker_above WHERE settled = 1"):  # noqa: ASYNC110
                await asyncio.sleep(0.01)
            transactions = {
                found
                for table in ("effect", "tidewire_mark", "tidewire_outbox", "tidewire_broker_above")
                for found in rows(postgresql_url, f"SELECT xmin::text FROM {table}")
            }
            assert 1 == len(transactions)
            go_on.set()

    run(postgresql_url, test)


@pytest.mark.parametrize("commits", [True, False])
def test_a_member_that_dies_between_commit_and_ack_has_settled(postgresql_url: str, commits: bool) -> None:
    """What was committed does not come again, to nobody; what was rolled back does."""

    async def test(broker: PostgresTransport, store: PostgresStore) -> None:
        assert await broker.enlist(store)
        await broker.publish([Message(Topic(TOPIC), f"id-{n}", "shop", "k", {}, b"{}") for n in range(3)])
        async with open_postgres_transport(postgresql_url) as dying:
            assert await dying.enlist(store)
            async with dying.subscribe(member("a")) as receiver:
                found = await take(receiver, 3)
                unit = store.unit()
                await unit.tx.execute("INSERT INTO effect (id) VALUES ('1')")
                dying.settle_with(unit, found[:2])
                if commits:
                    await (await unit.seal())
                else:
                    await unit.rollback()
        async with broker.subscribe(member("b")) as receiver:
            again = await take(receiver, 3 if not commits else 1)
            assert (["id-2"] if commits else ["id-0", "id-1", "id-2"]) == [one.message.id for one in again]
            assert [] == await take(receiver, 1, wait=0.3)
        assert int(commits) == len(rows(postgresql_url, "SELECT id FROM effect"))

    run(postgresql_url, test)


def test_who_lost_the_lane_settles_nothing(postgresql_url: str) -> None:
    """A member whose lane has gone to another moves no position of it with its transaction."""

    async def test(broker: PostgresTransport, store: PostgresStore) -> None:
        assert await broker.enlist(store)
        await broker.publish([Message(Topic(TOPIC), "id-0", "shop", "k", {}, b"{}")])
        async with broker.subscribe(member("a")) as receiver:
            found = await take(receiver, 1)
            with psycopg.connect(postgresql_url, autocommit=True) as connection:
                connection.execute("UPDATE tidewire_broker_cursor SET epoch = epoch + 1, owner = 'b', until = 1")
            unit = store.unit()
            broker.settle_with(unit, found)
            await (await unit.seal())
        assert [] == rows(postgresql_url, "SELECT 1 FROM tidewire_broker_above")

    run(postgresql_url, test)


def test_another_database_is_not_enlisted(postgresql_url: str, postgresql_server: str, tmp_path: Path) -> None:
    """A store elsewhere, in PostgreSQL or in a file, commits for itself; nothing is claimed that is not so."""

    async def test(broker: PostgresTransport, store: PostgresStore) -> None:
        assert await broker.enlist(store)
        async with (
            open_postgres_store(f"{postgresql_server}?schema=elsewhere", provision=True) as other,
            open_sqlite_store(tmp_path / "store.db") as file,
        ):
            assert not await broker.enlist(other)
            assert not await broker.enlist(file)

    try:
        run(postgresql_url, test)
    finally:
        with psycopg.connect(postgresql_server, autocommit=True) as connection:
            connection.execute("DROP SCHEMA IF EXISTS elsewhere CASCADE")
