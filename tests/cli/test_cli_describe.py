"""``tidewire describe``: what a service is, by its registrations alone."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tidewire.cli import exits

SERVICES = """
from collections.abc import AsyncIterator, Mapping
from datetime import datetime, timedelta
from tidewire import Body, Context, Every, Header, Plain, Position, Retry, Service, domain_event, event, upcast
from tidewire.middleware import timeout

@event("shop.order.placed", version=3, key="order_id")
class OrderPlaced:
    order_id: str

@event("shop.order.viewed")
class OrderViewed:
    page: str

@event("shop.payment.taken", key=("order_id", "part"), topic="money")
class PaymentTaken:
    order_id: str
    part: int

@domain_event("stock.fell")
class StockFell:
    sku: str

billing = Service("billing", concurrency=3, middleware=[timeout(timedelta(seconds=5))])
stock = Service("stock")

@billing.upcast
@upcast(OrderPlaced, from_version=2)
def second(fields):
    return fields

@billing.on(OrderPlaced, retry=Retry(attempts=3), timeout=timedelta(seconds=7))
async def charge(order: OrderPlaced, context: Context) -> PaymentTaken | None:
    await context.tx.execute("…")

@billing.on(StockFell)
def note(fell: StockFell) -> None: ...

@billing.recur(Every(timedelta(hours=1)), missed="skip")
async def hourly(due: datetime) -> OrderViewed: ...

@billing.lifespan
async def opened(service: Service) -> AsyncIterator[Mapping[str, object]]:
    yield {}

stock.accept(
    Plain({"view": OrderViewed, "click": None}, type=Header("kind"), id=[Body("no"), Position()], source="web")
)

@stock.on(OrderViewed, name="one", ordering="none", batch=10)
async def many(views: list[OrderViewed]) -> None: ...
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder with a module of services."""
    (tmp_path / "shop.py").write_text(SERVICES)
    return tmp_path


def describe(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run the command in *folder*, with a broker set that cannot be, which must not matter."""
    command = [sys.executable, "-m", "tidewire.cli", "describe", *arguments]
    environment = {**os.environ, "TIDEWIRE_BROKER": "sqlite:////nowhere/broker.db"}
    return subprocess.run(command, capture_output=True, text=True, timeout=60, check=False, cwd=folder, env=environment)


def documents(folder: Path, *arguments: str) -> Any:
    """Return what ``--json`` prints."""
    answer = describe(folder, *arguments, "--json")
    assert (exits.OK, "") == (answer.returncode, answer.stderr)
    return json.loads(answer.stdout)


def test_a_service_is_described_in_words(folder: Path) -> None:
    """Everything that was registered: events, keys, versions, retries, middleware, recurring runs, lifespan."""
    answer = describe(folder, "shop:billing")
    assert (exits.OK, "") == (answer.returncode, answer.stderr)
    for part in (
        "billing: group billing, source billing",
        "3 handlers at a time",
        "lifespan    opened",
        "shop.order.placed version 3 (reads 2 to 3) on topic shop.order → charge",
        "by key order_id",
        "3 attempts, after waits of up to 1 s, 4 s",
        "reads context.tx: it needs one",
        "shop.payment.taken (topic money)",
        "domain event stock.fell → note",
        "recurring hourly",
        "every 3600 s",
        "they do not run",
    ):
        assert part in answer.stdout


def test_json_holds_the_same(folder: Path) -> None:
    """By stable keys, for several services."""
    billing, stock = documents(folder, "shop:billing", "shop:stock")["services"]
    (charge,) = billing["handlers"]
    assert ([2, 3], ["order_id"], "key") == (charge["event"]["versions"], charge["event"]["key"], charge["ordering"])
    assert ([1.0, 4.0], 7.0, True) == (charge["waits_s"], charge["timeout_s"], charge["reads_tx"])
    assert ["shop.payment.taken"] == [event["type"] for event in charge["returns"]]
    assert (["note"], ["hourly"]) == (
        [one["name"] for one in billing["domain"]],
        [one["name"] for one in billing["recurring"]],
    )
    assert ({"shop.order": "none"}, 10) == (stock["topics"], stock["handlers"][0]["batch"])


def test_plain_messages_are_described(folder: Path) -> None:
    """What they become, and where each attribute comes from, in words and by stable keys."""
    answer = describe(folder, "shop:stock")
    for part in (
        "plain messages of shop.order",
        "by the header kind: view → shop.order.viewed, click → skipped",
        "the field no of the body, else the position on the broker, within source web",
        "the broker's, else what the event declares",
    ):
        assert part in answer.stdout
    billing, stock = documents(folder, "shop:billing", "shop:stock")["services"]
    assert [] == billing["plain"]
    (plain,) = stock["plain"]
    assert {"view": "shop.order.viewed", "click": None} == plain["kinds"]
    assert ("shop.order", "web", "the whole body") == (plain["topic"], plain["source"], plain["data"])


def test_explain_says_where_an_event_goes_and_who_handles_it(folder: Path) -> None:
    """Topic, key, makers, handlers, who skips it and who does not read it."""
    placed = describe(folder, "shop:billing", "shop:stock", "--explain", "shop.order.placed").stdout
    assert "goes to topic shop.order (its type without the last segment)" in placed
    assert "billing: charge handles it." in placed
    assert "stock: reads shop.order for shop.order.viewed, and skips it" in placed
    taken = documents(folder, "shop:billing", "shop:stock", "--explain", "shop.payment.taken")
    assert [
        "shop.payment.taken goes to topic money (as topic= says); each group on it gets its own copy.",
        "Its key is order_id, part: events of one key lie in one lane, in order.",
        "It is returned by billing.charge.",
        "billing: does not read topic money.",
        "stock: does not read topic money.",
    ] == taken["explained"]
    viewed = describe(folder, "shop:billing", "--explain", "shop.order.viewed").stdout
    assert "without order" in viewed
    assert "It is returned by billing.hourly." in viewed
    fell = describe(folder, "shop:billing", "shop:stock", "--explain", "stock.fell").stdout
    assert "stays inside its service" in fell
    assert "stock: no handler asks for it." in fell


def test_an_event_that_nobody_knows_is_a_failure(folder: Path) -> None:
    """Exit 1, and the nearest one."""
    answer = describe(folder, "shop:billing", "--explain", "shop.order.plced")
    assert (exits.FAILED, "") == (answer.returncode, answer.stdout)
    assert "did you mean 'shop.order.placed'?" in answer.stderr
    assert "they know: " in describe(folder, "shop:billing", "--explain", "x").stderr


def test_bad_use_is_answered_with_a_hint(folder: Path) -> None:
    """Exit 2: no such service, no target."""
    answer = describe(folder, "shop:biling")
    assert (exits.USAGE, True) == (answer.returncode, "did you mean 'billing'?" in answer.stderr)
    assert exits.USAGE == describe(folder).returncode


def test_nothing_is_opened(folder: Path) -> None:
    """Neither a broker nor a store is loaded, and no file appears."""
    describe(folder, "shop:billing")
    assert {"shop.py"} == {path.name for path in folder.iterdir()} - {"__pycache__"}
    script = (
        "import sys; sys.path.insert(0, '.'); from tidewire.cli.main import main; main(['describe', 'shop:billing']);"
        "print(*sys.modules, file=sys.stderr)"
    )
    ran = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True, cwd=folder)
    adapters = ("tidewire.transports.", "tidewire.stores.", "sqlite3")
    assert [] == [name for name in ran.stderr.split() if name.startswith(adapters)]
