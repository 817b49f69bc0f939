"""Looking into a broker and acting on it from the command line, by real processes on a real file."""

from __future__ import annotations

import asyncio
import json
import os
import re
import select
import signal
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

from tidewire import Context, Reject, Service, event, running, transaction
from tidewire.cli import exits
from tidewire.clock import SystemClock
from tidewire.model import GroupSpec, Message, Topic, TopicSpec
from tidewire.runtime.serve import Options
from tidewire.stores.sqlite import open_sqlite_store
from tidewire.transports.sqlite import open_sqlite_transport

EVENTS = """
from decimal import Decimal
from tidewire import domain_event, event

@event("shop.order.placed", key="order_id")
class OrderPlaced:
    order_id: str
    total: Decimal = Decimal(1)

@domain_event
class Inside:
    name: str
"""


@event("shop.order.placed", key="order_id")
class OrderPlaced:
    """The same event, here."""

    order_id: str
    total: int = 1


@event("shop.payment.taken", key="order_id")
class PaymentTaken:
    """What follows."""

    order_id: str


@dataclass
class Shop:
    """A folder with a broker, a store and an events module, and the ids of what was published."""

    folder: Path
    ids: list[str]
    effects: list[str]

    def tidewire(self, *arguments: str, text: str | None = None) -> subprocess.CompletedProcess[str]:
        """Run the command line in the folder."""
        environment = {**os.environ, "TIDEWIRE_BROKER": f"sqlite:///{self.folder}/broker.db", "COLUMNS": "200"}
        command = [sys.executable, "-m", "tidewire.cli", *arguments]
        return subprocess.run(
            command, capture_output=True, text=True, timeout=60, check=False, cwd=self.folder, env=environment,
            input=text if text is not None else "",
        )  # fmt: skip

    def json(self, *arguments: str) -> Any:
        """Run a command with ``--json`` and return what it prints."""
        answer = self.tidewire(*arguments, "--json")
        assert answer.returncode == exits.OK, answer.stderr
        return json.loads(answer.stdout)


async def _open_shop(folder: Path) -> tuple[list[str], list[str]]:
    """Three orders: the second becomes a dead letter of billing, the others a payment; shipping never ran."""
    billing = Service("billing")

    @billing.on(OrderPlaced, on_dead_letter="continue")
    async def charge(order: OrderPlaced, context: Context) -> PaymentTaken:
        if order.order_id == "2":
            raise Reject("no money")
        return PaymentTaken(order.order_id)

    shipping = Service("shipping")
    shipping.on(OrderPlaced, on_dead_letter="continue")(charge)
    async with open_sqlite_transport(folder / "broker.db") as broker:
        async with running(shipping, transport=broker, options=Options(lanes=2)):
            pass
        async with (
            open_sqlite_store(folder / "billing.db") as store,
            running(billing, transport=broker, store=store, options=Options(lanes=2)) as app,
        ):
            ids = [await app.publisher.publish(OrderPlaced(str(number))) for number in (1, 2, 3)]
            for _ in range(3_000):
                topics = {topic.name: topic.messages for topic in await broker.topics()}
                stats = await broker.stats("shop.order", "billing")
                if topics.get("shop.payment") == 2 and stats.dead == 1 and not stats.ready:
                    break
                await asyncio.sleep(0.01)
        effects = [one.message.id for one in await broker.browse(Topic("shop.payment"))]
    return ids, effects


@pytest.fixture
def shop(tmp_path: Path) -> Shop:
    """A shop that has done some work."""
    (tmp_path / "shopevents.py").write_text(EVENTS)
    ids, effects = asyncio.run(_open_shop(tmp_path))
    return Shop(tmp_path, ids, effects)


def test_topics(shop: Shop) -> None:
    """They are listed with what they hold, one is shown with its groups, a missing one is made, and nothing twice."""
    listed = {topic["name"]: topic for topic in shop.json("topics")["topics"]}
    assert {"shop.order": 3, "shop.payment": 2} == {name: topic["messages"] for name, topic in listed.items()}
    assert 2 == listed["shop.order"]["lanes"]
    assert ["billing", "shipping"] == shop.json("topics", "shop.order")["groups"]
    assert "shop.order" in shop.tidewire("topics").stdout
    create = ("topics", "shop.stock", "--create", "--lanes", "3", "--retention", "2d")
    assert "create" == shop.json(*create, "--dry-run")["change"]
    assert "shop.stock" not in shop.tidewire("topics").stdout
    assert "create" == shop.json(*create)["change"]
    assert (3, 172_800.0) == tuple(shop.json("topics", "shop.stock")[name] for name in ("lanes", "retention_s"))
    assert "unchanged" == shop.json(*create)["change"]
    assert exits.FAILED == shop.tidewire("topics", "shop.stock", "--create", "--lanes", "5").returncode


def test_a_missing_topic_is_told_with_the_fix(shop: Shop) -> None:
    """Publishing to a topic that nobody has made says how to make it."""
    (shop.folder / "refunds.py").write_text(EVENTS.replace("shop.order.placed", "shop.refund.wanted"))
    answer = shop.tidewire("publish", "refunds:OrderPlaced", "--data", '{"order_id": "1"}')
    assert exits.FAILED == answer.returncode
    assert "unknown_topic" in answer.stderr
    assert "hint: " in answer.stderr
    assert "--provision" in answer.stderr


def test_groups(shop: Shop) -> None:
    """What waits, what is dead and who owns what, for all groups or one."""
    found = {(one["group"], one["topic"]): one for one in shop.json("groups")["groups"]}
    billing, shipping = found["billing", "shop.order"], found["shipping", "shop.order"]
    assert (0, 1, 3, 0) == (billing["ready"], billing["dead"], shipping["ready"], shipping["dead"])
    assert {} == billing["owners"]
    assert shipping["oldest_ready"] > 0
    assert ["shipping"] == [one["group"] for one in shop.json("groups", "shipping")["groups"]]
    assert "shipping" in shop.tidewire("groups", "--topic", "shop.order").stdout


def test_find_says_where_an_event_is(shop: Shop) -> None:
    """In its topic with how far each group is, and as a dead letter with its reason."""
    found = {one["place"]: one for one in shop.json("find", shop.ids[1])["found"]}
    assert {"billing": "settled", "shipping": "waiting"} == found["topic"]["groups"]
    assert ("permanent", "billing") == (found["dead"]["reason"], found["dead"]["group"])
    said = shop.tidewire("find", shop.ids[1]).stdout
    assert "no money" in said
    assert "dead letter of billing" in said
    missing = shop.tidewire("find", "nothing")
    assert (exits.FAILED, True) == (missing.returncode, "no event has the id" in missing.stderr)


def test_trace_shows_what_an_event_caused(shop: Shop) -> None:
    """From the cause or from the effect, the same tree."""
    effect = shop.effects[0]
    cause = shop.json("find", effect)["found"][0]["causation_id"]
    for start in (cause, effect):
        (root,) = shop.json("trace", start)["events"]
        assert (cause, [effect]) == (root["id"], [node["id"] for node in root["effects"]])
    said = shop.tidewire("trace", effect).stdout
    assert said.index("shop.order.placed") < said.index("shop.payment.taken")
    assert exits.FAILED == shop.tidewire("trace", "nothing").returncode


def test_a_dead_letter_is_not_told_to_be_settled(shop: Shop) -> None:
    """Its group has put it aside from the topic; for people the dead channel has the last word."""
    for command in ("find", "trace"):
        said = shop.tidewire(command, shop.ids[1]).stdout
        assert ("dead", "waiting") == tuple(state(said, group) for group in ("billing", "shipping")), said


def state(said: str, group: str) -> str:
    """Return the only state of *group* that a command has printed."""
    (found,) = {match[1] for match in re.finditer(rf"\b{group} +(settled|waiting|dead|delayed)\b", said)}
    return found


def test_tail_prints_what_is_there_and_what_comes(shop: Shop) -> None:
    """Filters hold, and a follower sees an event that is published while it runs."""
    answer = shop.tidewire("tail", "--no-follow", "--json", "--type", "shop.order.placed")
    documents = [json.loads(line) for line in answer.stdout.splitlines()]
    assert shop.ids == [document["id"] for document in documents]
    where = shop.tidewire("tail", "shop.order", "--no-follow", "--json", "--where", "data.order_id=3")
    assert [shop.ids[2]] == [json.loads(line)["id"] for line in where.stdout.splitlines()]
    command = [sys.executable, "-m", "tidewire.cli", "tail", "--json", "--count", "1"]
    environment = {**os.environ, "TIDEWIRE_BROKER": f"sqlite:///{shop.folder}/broker.db"}
    follower = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment)
    published = publish_until(shop, lambda: follower.poll() is not None)
    said, _ = follower.communicate(timeout=30)
    assert json.loads(said)["id"] in published
    assert "9" == json.loads(said)["key"]


def publish_until(shop: Shop, seen: Callable[[], object]) -> list[str]:
    """Publish an event, and another one if it came before anybody looked, until it is *seen*; return their ids."""
    published: list[str] = []
    while not seen():
        assert len(published) < 60, "nobody sees what is published"
        answer = shop.tidewire("publish", "shopevents:OrderPlaced", "--data", '{"order_id": "9"}')
        published.append(answer.stdout.strip())
    return published


def test_ctrl_c_ends_a_tail(shop: Shop) -> None:
    """Interrupted from the keyboard it ends with the code that says so, without a traceback."""
    command = [sys.executable, "-m", "tidewire.cli", "tail", "--json"]
    environment = {**os.environ, "TIDEWIRE_BROKER": f"sqlite:///{shop.folder}/broker.db"}
    follower = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment)
    publish_until(shop, lambda: select.select([follower.stdout], [], [], 0)[0])
    follower.send_signal(signal.SIGINT)
    _, complaint = follower.communicate(timeout=30)
    assert (exits.INTERRUPTED, "") == (follower.returncode, complaint)


def test_publish_checks_the_event(shop: Shop) -> None:
    """What is no such event never leaves; lines before a bad one are out, and it is named."""
    bad = shop.tidewire("publish", "shopevents:OrderPlaced", "--data", '{"order_id": 1}')
    assert exits.USAGE == bad.returncode
    assert "order_id" in bad.stderr
    lines = '{"order_id": "a"}\n\n{"order_id": "b"}\n{"total": "x"}\n{"order_id": "c"}\n'
    some = shop.tidewire("publish", "shopevents:OrderPlaced", "--data", "-", "--lines", "--json", text=lines)
    assert exits.USAGE == some.returncode
    assert "line 4" in some.stderr
    assert 2 == len(some.stdout.splitlines())
    (shop.folder / "order.json").write_text('{"order_id": "d", "total": "2.50"}')
    again = ("publish", "shopevents:OrderPlaced", "--data", "@order.json", "--id", "one-id")
    assert ["one-id"] * 2 == [shop.tidewire(*again).stdout.strip() for _ in range(2)]
    assert 6 == shop.json("topics", "shop.order")["messages"]
    later = shop.tidewire("publish", "shopevents:OrderPlaced", "--data", '{"order_id": "e"}', "--delay", "1h")
    assert ["delayed"] == [
        state for one in shop.json("find", later.stdout.strip())["found"] for state in set(one["groups"].values())
    ]


def test_publish_tells_of_a_field_that_is_left_out(shop: Shop) -> None:
    """A typo in an optional field would go unseen: it is told once, with what was meant, and the event goes out."""
    lines = '{"order_id": "a", "totla": 3}\n{"order_id": "b", "totla": 4}\n'
    told = shop.tidewire("publish", "shopevents:OrderPlaced", "--data", "-", "--lines", text=lines)
    assert (exits.OK, 2) == (told.returncode, len(told.stdout.splitlines()))
    assert ["warning: OrderPlaced has no field 'totla': it is left out; did you mean 'total'?"] == [
        line for line in told.stderr.splitlines() if line.startswith("warning")
    ]
    silent = shop.tidewire("publish", "shopevents:OrderPlaced", "--data", '{"order_id": "c", "total": "1"}')
    assert "warning" not in silent.stderr


def test_replay_repairs_or_executes_again(shop: Shop) -> None:
    """A preview changes nothing; a replay skips what has happened; again, it happens once more, and it is audited."""
    preview = shop.json("replay", "shop.order", "--group", "billing", "--from", "1", "--dry-run")
    assert ({"shop.order.placed": 3}, False) == (preview["types"], preview["moved"])
    unasked = shop.tidewire("replay", "shop.order", "--group", "billing", "--from", "1")
    assert (exits.USAGE, True) == (unasked.returncode, "--yes" in unasked.stderr)
    assert 0 == shop.json("groups", "billing")["groups"][0]["ready"]
    assert shop.json("replay", "shop.order", "--group", "billing", "--from", "1h", "--yes")["moved"]
    assert 3 == shop.json("groups", "billing")["groups"][0]["ready"]
    asyncio.run(_run_billing(shop.folder))
    assert 3 == shop.json("topics", "shop.payment")["messages"]  # the one that had been refused
    store = f"sqlite:///{shop.folder}/billing.db"
    again = ("replay", "shop.order", "--group", "billing", "--from", "1", "--again", "--store", store, "--yes")
    assert 1 == shop.json(*again)["run"]
    asyncio.run(_run_billing(shop.folder))
    assert 6 == shop.json("topics", "shop.payment")["messages"]
    assert exits.USAGE == shop.tidewire("replay", "shop.order", "--group", "nobody", "--from", "1").returncode


def test_replay_from_before_the_marks_is_refused(tmp_path: Path) -> None:
    """Events older than inbox marks live may take effect again: that has to be said with --force."""

    class LongAgo(SystemClock):
        def now_us(self) -> int:
            return super().now_us() - 40 * 86_400_000_000

    async def fill() -> None:
        path = tmp_path / "broker.db"
        async with open_sqlite_transport(path) as broker:
            await broker.provision(
                [TopicSpec("shop.order", lanes=1, retention=timedelta(days=99))], [GroupSpec("billing", ["shop.order"])]
            )
        async with open_sqlite_transport(path, clock=LongAgo()) as broker:
            message = Message(Topic("shop.order"), "e1", "web", "k", {"ce-type": "shop.order.placed"}, b"{}")
            await broker.publish([message])

    asyncio.run(fill())
    shop = Shop(tmp_path, ["e1"], [])
    arguments = ("replay", "shop.order", "--group", "billing", "--from", "1", "--yes")
    refused = shop.tidewire(*arguments)
    assert (exits.USAGE, True) == (refused.returncode, "--force" in refused.stderr), refused.stderr
    assert shop.json(*arguments, "--force")["moved"]


async def _run_billing(folder: Path) -> None:
    """Let billing handle what waits, now without refusing anything."""
    billing = Service("billing")

    @billing.on(OrderPlaced, on_dead_letter="continue")
    async def charge(order: OrderPlaced) -> PaymentTaken:
        return PaymentTaken(order.order_id)

    async with (
        open_sqlite_transport(folder / "broker.db") as broker,
        open_sqlite_store(folder / "billing.db") as store,
        running(billing, transport=broker, store=store, options=Options(lanes=2)),
    ):
        async with asyncio.timeout(30):
            stats = await broker.stats("shop.order", "billing")
            while stats.ready or stats.in_flight or sum(await store.outbox.count()):
                await asyncio.sleep(0.01)
                stats = await broker.stats("shop.order", "billing")


def test_outbox(shop: Shop) -> None:
    """What waits is counted and published from here; what is stuck is shown, and leaves again when it is told to."""
    path = shop.folder / "web.db"

    async def fill() -> None:
        async with open_sqlite_store(path) as store:
            async with transaction(store) as tx:
                unit = store.adopt_tx(tx)
                assert unit is not None
                message = Message(
                    Topic("shop.payment"), "from-web", "web", "k", {"ce-type": "shop.payment.taken"}, b"{}"
                )
                stuck = Message(Topic("shop.payment"), "stuck", "web", "s", {"ce-type": "shop.payment.taken"}, b"{}")
                await store.outbox.put(unit, [stuck, message])
            await store.backlog.lease("test", timedelta(seconds=30))
            (first, _) = await store.backlog.claim("test", after=0, limit=2)
            await store.backlog.refused("test", first.row, detail="too_large: no", attempts_max=1)
            await store.backlog.lease("test", timedelta(0))

    asyncio.run(fill())
    store = ("--store", f"sqlite:///{path}")
    status = shop.tidewire("outbox", "status", *store, "--json")
    found = json.loads(status.stdout)
    assert (exits.FAILED, 1, 1) == (status.returncode, found["pending"], found["stuck"])
    assert ["stuck"] == [one["id"] for one in shop.json("outbox", "stuck", *store)["stuck"]]
    assert 0 == shop.json("outbox", "flush", *store)["left"]
    assert 1 == len(shop.json("find", "from-web")["found"])
    assert 1 == shop.json("outbox", "requeue", "--all", *store)["requeued"]
    assert 0 == shop.json("outbox", "flush", *store)["left"]
    assert 1 == len(shop.json("find", "stuck")["found"])
    nothing = shop.tidewire("outbox", "requeue", "77", *store)
    assert "Nothing changed" in nothing.stdout


def test_bench_measures_this_broker(shop: Shop) -> None:
    """Every row is a number above zero with a unit, on a broker of its own or on one that is named."""
    found = shop.json("bench", "--events", "200", "--store")
    assert 5 == len(found["rows"])
    assert all(row["value"] > 0 and row["unit"] for row in found["rows"])
    assert found["sync_us"] > 0
    assert "events/s" in shop.tidewire("bench", "--events", "200", "--broker", f"sqlite:///{shop.folder}/b.db").stdout


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (["topics", "shop.ordr"], "did you mean 'shop.order'"),
        (["topics", "--create"], "needs the name"),
        (["groups", "biling"], "did you mean 'billing'"),
        (["tail", "shop.ordr"], "did you mean"),
        (["groups", "--topic", "shop.ordr"], "did you mean 'shop.order'"),
        (["tail", "--where", "nonsense"], "FIELD=VALUE"),
        (["tail", "--where", "dta.total=1"], "did you mean 'data'"),
        (["tail", "--count", "0"], "a whole number from 1 on"),
        (["tail", "--since", "yesterday"], "no time"),
        (["find"], "required"),
        (["publish", "shopevents:OrderPlacd", "--data", "{}"], "did you mean 'OrderPlaced'"),
        (["publish", "shopevents:Inside", "--data", "{}"], "domain event"),
        (["publish", "shopevents:OrderPlaced", "--data", '{"order_id": "1"}', "--id", ""], "--id is empty"),
        (["publish", "shopevents", "--data", "{}"], "names no event class"),
        (["publish", "shopevents:OrderPlaced", "--data", "@missing.json"], "No such file"),
        (
            ["publish", "shopevents:OrderPlaced", "--data", '{"order_id": "1"}', "--broker", "sqlite:///missing.db"],
            "no broker file",
        ),
        (["replay", "shop.order", "--group", "billing", "--from", "1", "--again"], "store"),
        (["outbox"], "none is named"),
        (["outbox", "requeue", "--store", "sqlite:///x.db"], "row numbers"),
        (["outbox", "--store", "sqlite:///missing.db"], "no store file"),
        (["topics", "--broker", "sqlite:///missing.db"], "no broker file"),
        (["topics", "--broker", "memory://"], "inside the process"),
        (["bench", "--events", "1"], "at least 100"),
    ],
)
def test_bad_use_is_answered_with_the_fix(shop: Shop, arguments: list[str], complaint: str) -> None:
    """Exit code 2, nothing on stdout, what is wrong on stderr, and no file comes into being."""
    before = sorted(path.name for path in shop.folder.iterdir() if path.suffix == ".db")
    answer = shop.tidewire(*arguments)
    assert (exits.USAGE, "") == (answer.returncode, answer.stdout)
    assert complaint in answer.stderr
    assert "Traceback" not in answer.stderr
    assert before == sorted(path.name for path in shop.folder.iterdir() if path.suffix == ".db")
