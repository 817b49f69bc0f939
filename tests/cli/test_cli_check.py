"""``tidewire check``: what is promised is said in sentences, and what is unsafe is refused with its fix."""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tidewire import Service, event, running
from tidewire.cli import exits
from tidewire.model import GroupSpec, TopicSpec
from tidewire.stores.sqlite import open_sqlite_store
from tidewire.transports.sqlite import open_sqlite_transport

SERVICES = """
from datetime import timedelta
from tidewire import Context, Retry, Service, event

@event("shop.order.placed", key="order_id")
class OrderPlaced:
    order_id: str

@event("shop.payment.taken", key="order_id")
class PaymentTaken:
    order_id: str

billing = Service("billing")
stock = Service("stock")
twin = Service("billing")

@billing.on(OrderPlaced, retry=Retry(attempts=2))
async def charge(order: OrderPlaced, context: Context) -> PaymentTaken:
    return PaymentTaken(order.order_id)

@stock.on(PaymentTaken, on_dead_letter="continue")
async def take(payment: PaymentTaken) -> None: ...
"""


@event("shop.order.placed", key="order_id")
class OrderPlaced:
    """The same event, here."""

    order_id: str


@dataclass
class Folder:
    """A folder with services in it."""

    path: Path

    def check(self, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
        """Run the command in the folder."""
        known = {name: value for name, value in os.environ.items() if not name.startswith("TIDEWIRE_")}
        return subprocess.run(
            [sys.executable, "-m", "tidewire.cli", "check", *arguments], capture_output=True, text=True, timeout=60,
            check=False, cwd=self.path, env={**known, **environment}, stdin=subprocess.DEVNULL,
        )  # fmt: skip

    def json(self, *arguments: str, code: int = exits.OK) -> Any:
        """Run it with ``--json`` and return what it prints."""
        answer = self.check(*arguments, "--json")
        assert (code, "") == (answer.returncode, answer.stderr)
        return json.loads(answer.stdout)

    def files(self) -> set[str]:
        """Return what is in the folder besides Python's own."""
        return {path.name for path in self.path.rglob("*") if "__pycache__" not in str(path)}


@pytest.fixture
def folder(tmp_path: Path) -> Folder:
    """A folder with a module of services, and nothing else."""
    (tmp_path / "shop.py").write_text(SERVICES)
    return Folder(tmp_path)


def provision(folder: Folder, *, lanes: int = 8) -> None:
    """Make the broker with the topics and groups that the services want."""

    async def make() -> None:
        async with open_sqlite_transport(folder.path / "broker.db") as broker:
            topics = [TopicSpec("shop.order", lanes=lanes), TopicSpec("shop.payment", lanes=lanes)]
            await broker.provision(topics, [GroupSpec("billing", ["shop.order"]), GroupSpec("stock", ["shop.payment"])])

    asyncio.run(make())


BROKER = ("--broker", "sqlite:///broker.db")
STORE = ("--store", "sqlite:///store.db")


def test_a_safe_service_is_told_what_it_is_promised(folder: Folder) -> None:
    """Every point in a sentence, with the numbers of the real settings; exit 0."""
    provision(folder)
    answer = folder.check("shop:billing", *BROKER, *STORE, TIDEWIRE_LEASE="45")
    assert (exits.OK, "") == (answer.returncode, answer.stderr)
    for part in (
        "shop.order.placed version 1 on topic shop.order → charge",
        "exactly once in the store",
        "by key order_id",
        "2 attempts, after waits of up to 1 s",
        "follow it there, and are redriven in order",
        "recognised for 35 d",
        "at most 45 s (lease)",
        "synced to disk",
        "safe (errors: 0, warnings: 0)",
    ):
        assert part in answer.stdout


def test_json_holds_the_same(folder: Folder) -> None:
    """The numbers and the sentences, by stable keys."""
    provision(folder)
    said = folder.json("shop:billing", *BROKER, *STORE)
    assert (True, [], []) == (said["safe"], said["findings"], said["not_checked"])
    (service,) = said["services"]
    (one,) = service["subscriptions"]
    assert ("billing", "charge", ["order_id"]) == (service["name"], one["handler"], one["key"])
    assert ("exactly once", "key", "hold_key") == (one["effect"], one["ordering"], one["on_dead_letter"])
    assert ([1.0], 35 * 86_400) == (one["waits_s"], one["dedup_s"])
    assert {"effect", "order", "retries", "while_failing", "at_the_end", "repeats", "publishing"} == set(
        one["in_words"]
    )


def test_what_is_unsafe_is_refused_with_its_fix(folder: Folder) -> None:
    """Without a store an ordered handler has to say what follows a dead letter; exit 1."""
    provision(folder)
    answer = folder.check("shop:billing", *BROKER)
    assert exits.FAILED == answer.returncode
    fix = 'give it a store (--store sqlite:///billing.db, TIDEWIRE_STORE), or say on_dead_letter="continue"'
    assert f"hint: {fix}" in answer.stdout
    assert "refused (errors: 1" in answer.stdout
    said = folder.json("shop:billing", "--broker", "memory://", *STORE, code=exits.FAILED)
    assert (False, ["broker-not-durable"]) == (said["safe"], [one["code"] for one in said["findings"]])


def test_the_topology_is_compared(folder: Folder) -> None:
    """Missing topics and other numbers of lanes are what `run` would refuse; --provision creates what is missing."""
    provision(folder, lanes=2)
    drift = folder.json("shop:billing", *BROKER, *STORE, code=exits.FAILED)["findings"]
    assert [("topology-drift", "topic shop.order: lanes is 2, not 8")] == [(one["code"], one["what"]) for one in drift]

    async def empty() -> None:
        async with open_sqlite_transport(folder.path / "empty.db"):
            pass

    asyncio.run(empty())
    bare = ("shop:billing", "--broker", "sqlite:///empty.db", *STORE)
    missing = folder.json(*bare, code=exits.FAILED)["findings"]
    assert ["topology-missing", "topology-missing", "no-topic-to-publish"] == [one["code"] for one in missing]
    assert [] == folder.json(*bare, "--provision")["findings"]


def test_nothing_is_created_where_nothing_is(folder: Folder) -> None:
    """A broker that is not there is said not to be checked, with exit 3; --offline does not look."""
    before = folder.files()
    answer = folder.check("shop:billing", *BROKER, *STORE)
    assert exits.UNAVAILABLE == answer.returncode
    assert "not checked: topics and groups: there is no broker" in answer.stdout
    assert exits.OK == folder.check("shop:billing", *BROKER, *STORE, "--offline").returncode
    assert before == folder.files()


def test_a_store_without_its_file_is_refused(folder: Folder) -> None:
    """A log without its file is what a moved store leaves behind: the run that follows would refuse it, too."""
    provision(folder)
    (folder.path / "store.db-wal").write_bytes(b"what the moved file lacks")
    answer = folder.check("shop:billing", *BROKER, *STORE)
    assert exits.FAILED == answer.returncode
    assert "its log store.db-wal is there" in answer.stdout


def test_a_handler_that_has_vanished_is_warned_about(folder: Folder) -> None:
    """The store has its marks; --strict refuses a warning."""
    provision(folder)
    service = Service("billing")
    handled = asyncio.Event()

    @service.on(OrderPlaced, name="old_name")
    async def handle(order: OrderPlaced) -> None:
        handled.set()

    async def run() -> None:
        async with (
            open_sqlite_transport(folder.path / "broker.db") as broker,
            open_sqlite_store(folder.path / "store.db") as store,
            running(service, transport=broker, store=store) as app,
        ):
            await app.publisher.publish(OrderPlaced("1"))
            await handled.wait()

    asyncio.run(run())
    said = folder.json("shop:billing", *BROKER, *STORE)
    (finding,) = said["findings"]
    assert ("warning", "handler-vanished") == (finding["level"], finding["code"])
    assert "name='old_name'" in finding["fix"]
    assert exits.FAILED == folder.check("shop:billing", *BROKER, *STORE, "--strict").returncode


def test_services_are_checked_against_each_other(folder: Folder) -> None:
    """One group name for two services, and one store for several, are told."""
    said = folder.json("shop:billing", "shop:twin", "--offline", *STORE, code=exits.FAILED)
    assert {"same-name", "shared-store"} == {one["code"] for one in said["findings"]}


def test_a_file_that_is_no_broker_is_refused(folder: Folder) -> None:
    """A store's file, or any other, is named with what it is; one file for both is refused however it is spelt."""
    (folder.path / "text.db").write_text("no database")
    said = folder.json("shop:billing", "--broker", "sqlite:///text.db", *STORE, code=exits.FAILED)
    assert ["broker-refused"] == [one["code"] for one in said["findings"]]
    one_file = folder.check("shop:billing", *BROKER, "--store", f"sqlite:////{folder.path}/./broker.db")
    assert exits.USAGE == one_file.returncode
    assert "cannot be the same file" in one_file.stderr


@pytest.mark.parametrize(
    ("arguments", "hint"),
    [
        (("shop:biling",), "did you mean 'billing'?"),
        (("shop:billing", "--brokr", "x"), "did you mean '--broker'?"),
        ((), "`tidewire check --help`"),
        (("shop:billing", "--broker", "sqlit:///x"), "known schemes: amqp, amqps, kafka, memory, postgresql, sqlite"),
    ],
)
def test_bad_use_is_answered_with_a_hint(folder: Folder, arguments: tuple[str, ...], hint: str) -> None:
    """Exit 2, on stderr, nothing on stdout."""
    answer = folder.check(*arguments)
    assert (exits.USAGE, "") == (answer.returncode, answer.stdout)
    assert hint in answer.stderr
