"""The relay under trouble: a topic that is full, and more old marks than one batch takes."""

from __future__ import annotations

import asyncio
import sqlite3
import time
from contextlib import closing
from datetime import timedelta
from pathlib import Path

import msgspec
import pytest
from runtime_doubles import Proxy
from runtime_world import Opened, OrderPlaced, PageViewed, World

from tidewire import Service, event, running, transaction
from tidewire.errors import ConfigurationError
from tidewire.model import GroupSpec, TopicSpec
from tidewire.rules.letters import topic_of
from tidewire.runtime.serve import Options
from tidewire.stores.postgres import open_postgres_store
from tidewire.stores.sqlite import open_sqlite_store
from tidewire.transports.memory import open_memory_transport
from tidewire.transports.postgres import open_postgres_transport

LONG_TRANSACTION = "tidewire.store.long_transaction"


@event("shop.bulk.made")
class BulkMade:
    """Goes to a topic with a small cap."""

    number: int
    filling: str = "x" * 100


def test_a_full_topic_holds_back_no_other(opened: Opened) -> None:
    """OX-21: what is for other topics leaves, however much waits before it; when there is room, the rest follows."""
    slow = Service("slow")
    seen: list[int] = []

    @slow.on(BulkMade)
    async def take(bulk: BulkMade) -> None:
        seen.append(bulk.number)

    async def scenario() -> None:
        async with opened() as world:
            await world.transport.provision(
                [TopicSpec("shop.bulk", lanes=4, size_bytes_max=20_000), TopicSpec("shop.page", lanes=4)],
                [GroupSpec("slow", ["shop.bulk"]), GroupSpec("stats", ["shop.page"])],
            )
            async with world.running(Service("shop")) as shop:
                async with transaction(world.store) as tx:
                    await shop.publisher.publish_all([BulkMade(number) for number in range(2_000)], tx=tx)
                    await shop.publisher.publish(PageViewed(1), tx=tx)

                async def arrived() -> bool:
                    return (await world.transport.stats("shop.page", "stats")).ready == 1

                await world.until(arrived)
                assert (0, 0) < await world.store.outbox.count()
                async with running(slow, transport=world.transport, options=world.options):
                    await world.until(lambda: len(seen) == 2_000, seconds=40)
            assert (0, 0) == await world.store.outbox.count()

    asyncio.run(scenario())


def test_old_marks_go_as_fast_as_they_have_come(tmp_path: Path) -> None:
    """More marks than one batch takes are pruned batch after batch, beside the relay's work."""
    path = tmp_path / "store.db"

    async def scenario() -> None:
        async with open_memory_transport() as transport, open_sqlite_store(path) as store:
            with closing(sqlite3.connect(path, isolation_level=None)) as shell:
                shell.execute("INSERT INTO tidewire_scope (grp, handler, run, source) VALUES ('g', 'h', 0, 's')")
                shell.execute(
                    "INSERT INTO tidewire_mark (scope, event_id, digest, at) WITH RECURSIVE n(i) AS "
                    "(SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < 8000) SELECT 1, 'id-' || i, x'00', 1 FROM n"
                )
            service = Service("shop")
            busy = True

            async def work(publisher: object) -> None:
                while busy:
                    async with transaction(store) as tx:
                        await app.publisher.publish(OrderPlaced("1"), tx=tx)

            async with running(service, transport=transport, store=store) as app, asyncio.TaskGroup() as tasks:
                tasks.create_task(work(app.publisher))
                deadline = time.monotonic() + 60
                left = 1
                with closing(sqlite3.connect(path)) as shell:
                    while left and time.monotonic() < deadline:
                        await asyncio.sleep(0.05)
                        (left,) = shell.execute("SELECT count(*) FROM tidewire_mark").fetchone()
                busy = False
            assert 0 == left

    asyncio.run(scenario())


def test_a_broker_without_any_of_the_topics_gets_no_row_quarantined(
    opened: Opened, caplog: pytest.LogCaptureFixture
) -> None:
    """A broker that has taken nothing and knows no topic is taken for the wrong one: rows stay, uncounted, and
    the log and the probe say so; once a topic is there, they leave."""

    def told() -> int:
        return sum(record.message == "tidewire.relay.no_topics" for record in caplog.records)

    async def scenario() -> None:
        async with opened() as world:
            world.options = msgspec.structs.replace(world.options, provision=False)
            async with world.running(Service("shop")) as shop:
                async with transaction(world.store) as tx:
                    await shop.publisher.publish(PageViewed(1), tx=tx)
                await world.until(lambda: told() >= 3)
                why = shop.health()["relay"]
                assert (False, True) == (why.ready, "none of the topics: shop.page" in why.why)
                assert ((1, 0), []) == (await world.store.outbox.count(), [*await world.store.outbox.stuck()])
                await world.transport.provision([TopicSpec("shop.page")], [GroupSpec("stats", ["shop.page"])])

                async def arrived() -> bool:
                    return (await world.transport.stats("shop.page", "stats")).ready == 1

                await world.until(arrived)
                await world.until(lambda: shop.health()["relay"].ready)
            assert (0, 0) == await world.store.outbox.count()

    asyncio.run(scenario())


def test_a_row_for_a_missing_topic_is_quarantined_where_others_are_taken(opened: Opened) -> None:
    """A broker that takes other events is the right one: what has no topic there is put aside, and holds up nobody."""

    async def scenario() -> None:
        async with opened() as world:
            world.options = msgspec.structs.replace(world.options, provision=False)
            await world.transport.provision([TopicSpec("shop.page")], [GroupSpec("stats", ["shop.page"])])
            async with world.running(Service("shop")) as shop:
                async with transaction(world.store) as tx:
                    await shop.publisher.publish(PageViewed(1), tx=tx)
                    await shop.publisher.publish(BulkMade(1), tx=tx)

                async def put_aside() -> bool:
                    return await world.store.outbox.count() == (0, 1)

                await world.until(put_aside, seconds=30)
            (stuck,) = await world.store.outbox.stuck()
            assert "shop.bulk" == topic_of(stuck.message.to)
            (fact,) = [one for one in world.observer.facts if one.kind == "quarantined"]
            assert ("shop.bulk.made", stuck.message.id, "shop.bulk", "unknown_topic") == (
                fact.type, fact.event_id, fact.topic, fact.detail,
            )  # fmt: skip

    asyncio.run(scenario())


def test_a_relay_that_meets_a_stranger_goes(postgresql_url: str) -> None:
    """A service does not start beside a live relay to another broker. Of two that began at the same moment, and saw
    each other too late, the one with the greater name ends, and no other."""

    async def scenario() -> None:
        long = Options().relay_lease
        async with (
            open_postgres_transport(postgresql_url) as transport,
            open_postgres_store(postgresql_url, provision=True) as store,
            open_postgres_store(postgresql_url) as seen,
        ):
            looks: list[list[str]] = []

            async def relays() -> list[str]:
                looks.append([*await store.relays()])
                return looks[-1]

            world = World(transport, Proxy(store, relays=relays))
            await seen.backlog.lease("zzz to postgresql:0", long)
            with pytest.raises(ConfigurationError, match="publishes to another broker: zzz to postgresql:0"):
                async with world.running(Service("shop")):
                    pass
            await seen.backlog.lease("zzz to postgresql:0", timedelta(0))

            async def beside_both() -> None:
                async with world.running(Service("shop")):
                    await world.until(lambda: looks[-1:] and len(looks[-1]) == 1)
                    await seen.backlog.lease("zzz to postgresql:0", long)
                    await world.until(lambda: len(looks[-1]) == 2)
                    await seen.backlog.lease("zzz to postgresql:0", timedelta(0))
                    await seen.backlog.lease("aaa to postgresql:0", long)
                    await world.until(lambda: False, seconds=30)

            with pytest.raises(ConfigurationError, match="publishes to another broker: aaa to postgresql:0"):
                await beside_both()

    asyncio.run(scenario())


def test_a_transaction_that_stays_open_is_told_of(opened: Opened, caplog: pytest.LogCaptureFixture) -> None:
    """OB4: where a store can say for how long a transaction has been open, the relay tells log and observer of a long
    one."""

    async def scenario() -> None:
        async with opened() as world:

            async def oldest_write() -> timedelta:
                return timedelta(minutes=2)

            world.store = Proxy(world.store, oldest_write=oldest_write)
            async with world.running(Service("shop")):
                await world.until(lambda: [one for one in caplog.records if one.message == LONG_TRANSACTION])
            assert [120_000_000] == [one.took_us for one in world.observer.facts if one.kind == "long_transaction"]

    asyncio.run(scenario())
    assert [120.0] == [vars(record)["age_s"] for record in caplog.records if record.message == LONG_TRANSACTION]
