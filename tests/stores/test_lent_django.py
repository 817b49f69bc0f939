"""Handlers that use Django's ORM in the unit's transaction: what they may, and what holds when they fail."""

from __future__ import annotations

import json
import subprocess
import sys

import psycopg

PROGRAM = """
import asyncio, json, sys
from urllib.parse import urlsplit
import django
from django.conf import settings

url = urlsplit(sys.argv[1])
where = {"HOST": url.hostname, "PORT": url.port, "USER": url.username, "PASSWORD": url.password, "NAME": url.path[1:]}
settings.configure(DATABASES={"default": {"ENGINE": "django.db.backends.postgresql", **where}})
django.setup()

from django.db import connection, transaction
from tidewire import ConfigurationError, Context, Parts, Retry, Service, SyncContext, event, running
from tidewire.config import open_store, open_store_on
from tidewire.model import DeadChannel, Topic, TopicSpec
from tidewire.transports.memory import open_memory_transport


@event("bar.drink.ordered", key="drink")
class Ordered:
    drink: str


@event("bar.bill.written", key="drink")
class Billed:
    drink: str


def insert(drink):
    with connection.cursor() as cursor:
        cursor.execute("INSERT INTO drink VALUES (%s)", [drink])


bar = Service("bar", concurrency=4)


@bar.on(Ordered, retry=Retry(attempts=1))
def serve(ordered: Ordered, context: SyncContext) -> Billed:
    assert connection.in_atomic_block and connection.connection is context.tx.connection
    insert(ordered.drink)
    if ordered.drink == "raises":
        raise ValueError("spilled")
    if ordered.drink == "commits":
        transaction.commit()
    if ordered.drink == "swallows":
        try:
            with connection.cursor() as cursor:
                cursor.execute("INSERT INTO nowhere VALUES (1)")
        except Exception:
            pass
    if ordered.drink == "commits by hand":
        try:
            with connection.cursor() as cursor:
                cursor.execute("COMMIT")
        except Exception:
            pass
    if ordered.drink == "rolls back":
        transaction.set_rollback(True)
    if ordered.drink == "inner":
        try:
            with transaction.atomic():
                insert("undone")
                raise KeyError
        except KeyError:
            pass
    return Billed(ordered.drink)


class Ears:
    def __init__(self, left):
        self.left, self.done = left, asyncio.Event()

    def record(self, facts):
        self.left -= sum(fact.kind == "settled" for fact in facts)  # acked, or its dead letter is stored
        if self.left <= 0:
            self.done.set()


async def main():
    drinks = ["tea", "raises", "commits", "commits by hand", "rolls back", "swallows", "inner", "coffee"]
    ears = Ears(len(drinks))
    async with open_memory_transport() as broker:
        await broker.provision([TopicSpec("bar.bill", lanes=1)], [])
        async with (
            open_store_on(connection, provision=True) as store,
            running(bar, transport=broker, store=store, parts=Parts(observer=ears)) as app,
        ):
            await app.publisher.publish_all([Ordered(drink) for drink in drinks])
            await asyncio.wait_for(ears.done.wait(), 30)
        billed = await broker.browse(Topic("bar.bill"), limit=100)
        dead = await broker.browse(DeadChannel("bar.drink", "bar"), limit=100)
    print(json.dumps([sorted(str(one.message.key) for one in billed),
                      {one.message.key: one.message.headers["dl-detail"] for one in dead}]))


asyncio.run(main())
"""


def test_what_the_orm_writes_is_in_the_unit(postgresql_url: str) -> None:
    """Kept with its event or not at all: an error that rises or is caught, a commit of any kind and a rollback by the
    handler leave nothing."""
    with psycopg.connect(postgresql_url, autocommit=True) as connection:
        connection.execute("CREATE TABLE drink (name text)")
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, postgresql_url], capture_output=True, text=True, timeout=90, check=False
    )
    assert 0 == done.returncode, done.stderr
    billed, dead = json.loads(done.stdout)
    with psycopg.connect(postgresql_url) as connection:
        drunk = connection.execute("SELECT name FROM drink ORDER BY name").fetchall()
    assert ["coffee", "inner", "tea"] == billed == [name for (name,) in drunk]
    assert {"raises", "commits", "commits by hand", "rolls back", "swallows"} == dead.keys()
    assert "ValueError: spilled" in dead["raises"]
    assert "TransactionManagementError" in dead["commits"]
    assert "TransactionControl" in dead["commits by hand"] or "(COMMIT)" in dead["commits by hand"]
    assert "(ROLLBACK)" in dead["rolls back"]
    assert "TransactionAborted: the handler caught UndefinedTable (42P01)" in dead["swallows"]
