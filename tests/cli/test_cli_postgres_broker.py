"""Commands that look into a broker and act on it do so in PostgreSQL as they do in a file."""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psycopg
import pytest

from tidewire import Context, Reject, Service, event, open_publisher, running
from tidewire.cli import exits
from tidewire.config import open_transport
from tidewire.runtime.serve import Options

Run = Callable[..., Any]


@event("shop.order.placed", key="order_id")
class OrderPlaced:
    """The demo's first event."""

    order_id: str


async def _open_shop(url: str) -> list[str]:
    """Three orders, of which the second becomes a dead letter; return their ids."""
    billing = Service("billing")

    @billing.on(OrderPlaced, on_dead_letter="continue", repeatable=True)
    async def charge(order: OrderPlaced, context: Context) -> None:
        if order.order_id == "2":
            raise Reject("no money")

    async with (
        open_transport(url) as broker,
        running(billing, transport=broker, options=Options(lanes=2)) as app,
        asyncio.timeout(20),
    ):
        ids = [await app.publisher.publish(OrderPlaced(str(number))) for number in (1, 2, 3)]
        while True:
            stats: Any = await getattr(broker, "stats")("shop.order", "billing")  # noqa: B009
            if stats.dead == 1 and not stats.ready:
                return ids
            await asyncio.sleep(0.01)


@pytest.fixture
def run(postgresql_url: str, tmp_path: Path) -> Run:
    """A function that runs a command on the broker and returns its JSON."""

    def command(*arguments: str, code: int = exits.OK) -> Any:
        environment = {**os.environ, "TIDEWIRE_BROKER": postgresql_url}
        done = subprocess.run(
            [sys.executable, "-m", "tidewire.cli", *arguments, "--json"],
            capture_output=True, text=True, timeout=60, check=False, cwd=tmp_path, env=environment,
        )  # fmt: skip
        assert code == done.returncode, done.stderr
        return json.loads(done.stdout) if done.stdout else done.stderr

    return command


def test_operators_commands_work_on_postgresql(run: Run, postgresql_url: str) -> None:
    """Topics, groups, find, dead letters with redrive, and replay: all of them read and write the same log."""
    ids = asyncio.run(_open_shop(postgresql_url))
    assert [("shop.order", 3)] == [(one["name"], one["messages"]) for one in run("topics")["topics"]]
    assert "create" == run("topics", "shop.stock", "--create")["change"]
    (billing,) = run("groups")["groups"]
    assert (0, 1) == (billing["ready"], billing["dead"])
    found = {one["place"]: one for one in run("find", ids[1])["found"]}
    assert {"billing": "settled"} == found["topic"]["groups"]
    assert [ids[1]] == [one["id"] for one in run("dlq", "list", "--group", "billing")["letters"]]
    assert 1 == run("dlq", "redrive", "--group", "billing", "--yes")["moved"]
    (billing,) = run("groups")["groups"]
    assert (1, 0) == (billing["ready"], billing["dead"])
    run("replay", "shop.order", "--group", "billing", "--from", "1", "--yes")
    (billing,) = run("groups")["groups"]
    assert 4 == billing["ready"]


def test_doctor_says_what_a_broker_on_postgresql_is(run: Run, postgresql_url: str) -> None:
    """One that is not there yet is told from one that is; nothing is made by looking."""
    missing = run("doctor", code=exits.FAILED)
    assert "there is no broker in postgresql://" in json.dumps(missing)
    asyncio.run(_open_shop(postgresql_url))
    (broker,) = [section for section in run("doctor")["sections"] if section["name"].startswith("broker")]
    assert [] == broker["findings"]


def test_a_broker_without_tables_is_not_made_by_looking(run: Run) -> None:
    """Whoever only looks is told how the tables come about."""
    assert "no tables yet" in run("topics", code=exits.USAGE)


SHOP = """
from tidewire import Context, Service, event

@event("shop.order.placed", key="order_id")
class OrderPlaced:
    order_id: str

billing = Service("billing")

@billing.on(OrderPlaced)
async def charge(order: OrderPlaced, context: Context) -> None:
    await context.tx.execute("INSERT INTO paid (id) VALUES ($1)", (order.order_id,))
"""


def test_a_broker_without_tables_is_not_made_by_a_run(run: Run, postgresql_url: str, tmp_path: Path) -> None:
    """``tidewire run`` without ``--provision`` is refused, with the fix, and leaves no table behind."""
    (tmp_path / "shop.py").write_text(SHOP)
    said = run("run", "shop:billing", code=exits.USAGE)
    assert "no tables yet" in said
    assert "--provision" in said
    with psycopg.connect(postgresql_url) as connection:
        assert [] == connection.execute("SELECT tablename FROM pg_tables WHERE tablename ~ 'tidewire'").fetchall()


def test_two_processes_share_the_work_and_one_may_die(postgresql_url: str, tmp_path: Path) -> None:
    """Two `tidewire run` on one database, broker and store in one: one is killed, and every order is paid once."""
    (tmp_path / "shop.py").write_text(SHOP)
    environment = {**os.environ, "TIDEWIRE_BROKER": postgresql_url, "TIDEWIRE_STORE": postgresql_url}
    command = [sys.executable, "-m", "tidewire.cli", "run", "shop:billing", "--provision"]

    def paid() -> tuple[int, int]:
        with psycopg.connect(postgresql_url) as connection:
            row = connection.execute("SELECT count(*), count(DISTINCT id) FROM paid").fetchone()
        assert row is not None
        return row

    async def life() -> None:
        async with open_transport(postgresql_url) as broker, open_publisher("web", transport=broker) as publisher:
            inspector: Any = broker
            while len(await _owners(inspector)) < 2:  # noqa: ASYNC110 - other processes know no asyncio.Event
                await asyncio.sleep(0.05)
            for number in range(200):
                await publisher.publish(OrderPlaced(str(number)))
                if number == 60:
                    processes[0].kill()

    with psycopg.connect(postgresql_url, autocommit=True) as connection:
        connection.execute("CREATE TABLE paid (id text)")
    with (tmp_path / "log").open("wb") as log:
        processes = [
            subprocess.Popen(command, cwd=tmp_path, env={**environment, "TIDEWIRE_LEASE": "1"}, stdout=log, stderr=log)
            for _ in range(2)
        ]
        try:
            asyncio.run(asyncio.wait_for(life(), 60))
            deadline = time.monotonic() + 60
            while paid()[1] < 200 and time.monotonic() < deadline:
                time.sleep(0.1)
            processes[1].terminate()
            assert 0 == processes[1].wait(30)
        finally:
            for process in processes:
                process.kill()
                process.wait()
    assert (200, 200) == paid(), (tmp_path / "log").read_text()


async def _owners(inspector: Any) -> set[str]:
    return {owner for group in await inspector.groups() for owner in group.owners.values()}
