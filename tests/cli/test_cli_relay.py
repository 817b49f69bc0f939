"""`tidewire relay`, `outbox` and `inbox`, by real processes, on a file and on a PostgreSQL server."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

from tidewire import event, open_publisher, transaction
from tidewire.cli import exits
from tidewire.config import open_store, open_transport
from tidewire.model import Mark, Topic, TopicSpec
from tidewire.runtime.serve import Options
from tidewire.transports.sqlite import open_sqlite_transport

DAY_US = 86_400_000_000


@event("shop.order.placed", key="order_id")
class OrderPlaced:
    """What is published."""

    order_id: str


@dataclass
class Place:
    """A folder with a broker, and a store beside it."""

    directory: Path
    store: str

    def tidewire(self, *arguments: str, code: int = exits.OK) -> str:
        """Run a command to its end and return what it printed."""
        done = subprocess.run(
            [sys.executable, "-m", "tidewire.cli", *arguments], cwd=self.directory, capture_output=True, text=True,
            timeout=60, check=False, env=self.environment(),
        )  # fmt: skip
        assert code == done.returncode, done.stderr
        return done.stdout

    def json(self, *arguments: str, code: int = exits.OK) -> Any:
        """Run a command with ``--json`` and return what it said."""
        return json.loads(self.tidewire(*arguments, "--json", code=code))

    def environment(self) -> dict[str, str]:
        """Return the environment with the settings in it."""
        return {**os.environ, "TIDEWIRE_STORE": self.store, "TIDEWIRE_BROKER": "sqlite:///broker.db"}

    @property
    def broker(self) -> str:
        """The broker's URL from elsewhere."""
        return f"sqlite:///{self.directory / 'broker.db'}"

    @contextmanager
    def relaying(self, *arguments: str) -> Iterator[subprocess.Popen[str]]:
        """Run ``tidewire relay`` while the block lasts, and demand that it stops well."""
        process = subprocess.Popen(
            [sys.executable, "-m", "tidewire.cli", "relay", *arguments], cwd=self.directory, text=True,
            stderr=subprocess.PIPE, env=self.environment(),
        )  # fmt: skip
        try:
            yield process
            process.send_signal(signal.SIGTERM)
            _, said = process.communicate(timeout=30)
            assert exits.OK == process.returncode, said
        finally:
            process.kill()
            process.communicate()

    async def put(self, *names: str, delay: timedelta = timedelta(0)) -> list[str]:
        """Commit an event for each name from here, where nobody relays, and return their ids."""
        async with (
            open_transport(self.broker) as transport,
            open_store(self.store, provision=True) as store,
            open_publisher("shop", transport=transport, store=store, options=Options(relay=False)) as publisher,
            transaction(store) as tx,
        ):
            return [await publisher.publish(OrderPlaced(name), tx=tx, delay=delay) for name in names]

    async def refuse_first(self) -> None:
        """Let the first row be quarantined, as if the broker had refused it for good."""
        async with open_store(self.store) as store:
            assert await store.backlog.lease("test", Options().lease)
            (row, *_) = await store.backlog.claim("test", after=0, limit=1)
            assert await store.backlog.refused("test", row.row, detail="too_large: 2 MB", attempts_max=1)
            await store.backlog.lease("test", Options().lease * 0)

    async def arrived(self, number: int) -> list[str]:
        """Wait until *number* events are on the broker, and return their ids."""
        async with open_sqlite_transport(self.directory / "broker.db") as transport, asyncio.timeout(30):
            await transport.provision([TopicSpec("shop.order", lanes=4)], [])
            while True:
                found = await transport.browse(Topic("shop.order"), limit=1_000)
                if len(found) >= number:
                    return [one.message.id for one in found]
                await asyncio.sleep(0.05)


@pytest.fixture(params=["sqlite", "postgresql"])
def place(request: pytest.FixtureRequest, tmp_path: Path) -> Place:
    """A place with a store of each kind."""
    if request.param == "postgresql":
        return Place(tmp_path, request.getfixturevalue("postgresql_url"))
    return Place(tmp_path, f"sqlite:///{tmp_path / 'store.db'}")


def free_port() -> int:
    """Return a port that nobody listens on now."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        return int(server.getsockname()[1])


def ready(port: int) -> tuple[int, Any]:
    """Ask the probe, once it is there."""
    for _ in range(200):
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{port}/readyz", timeout=5) as answer:
                return answer.status, json.load(answer)
        except urllib.error.HTTPError as error:
            return error.code, json.load(error)
        except OSError:
            time.sleep(0.05)
    raise AssertionError("nobody answers the probe")


def test_a_relay_alone_publishes_what_others_commit(place: Place) -> None:
    """What was committed before it started and what is committed later reaches the broker, in order; it answers probes
    and stops at a signal."""
    first = asyncio.run(place.put("1", "2"))
    port = free_port()
    with place.relaying("--probe", f"127.0.0.1:{port}", "--provision"):
        assert first == asyncio.run(place.arrived(2))
        status, body = ready(port)
        assert (200, True) == (status, body["relay"]["ready"])
        assert place.json("outbox")["relayed"]
        later = asyncio.run(place.put("3"))
        assert [*first, *later] == asyncio.run(place.arrived(3))
    found = place.json("outbox", "status")
    assert (0, 0, False) == (found["pending"], found["stuck"], found["relayed"])


def test_the_outbox_is_shown_and_acted_on(place: Place) -> None:
    """Status counts, flush publishes what is due, stuck shows what was refused, requeue lets it leave."""
    asyncio.run(place.put("1", "2"))

    asyncio.run(place.refuse_first())
    found = place.json("outbox", "status", code=exits.FAILED)
    assert (1, 1, 0) == (found["pending"], found["stuck"], found["delayed"])
    assert "stuck since" in place.tidewire("outbox", code=exits.FAILED)
    asyncio.run(place.arrived(0))
    assert 0 == place.json("outbox", "flush")["left"]
    (stuck,) = place.json("outbox", "stuck")["stuck"]
    assert "too_large: 2 MB" == stuck["detail"]
    assert 1 == place.json("outbox", "requeue", str(stuck["row"]))["requeued"]
    assert 0 == place.json("outbox", "flush")["left"]
    assert 2 == len(asyncio.run(place.arrived(2)))


def test_a_flush_says_what_is_left_and_why(place: Place) -> None:
    """Rows stay because they are not due, because the broker refuses them, behind such a one, or for another relay."""
    asyncio.run(place.put("refused", "refused", "refused"))
    asyncio.run(place.put("later", delay=timedelta(days=1)))
    asyncio.run(place.arrived(0))

    asyncio.run(place.refuse_first())
    said = place.tidewire("outbox", "flush", code=exits.FAILED)
    assert "1 rows are left, 3 are stuck." in said
    assert "1 not due: the first is at" in said
    assert "1 refused by the broker" in said
    assert "2 held back by those, whose key they have" in said
    found = place.json("outbox", "flush", code=exits.FAILED)
    assert (1, 0, 1, 3, 2) == tuple(found[name] for name in ("left", "ready", "delayed", "stuck", "behind"))
    assert found["next_due"] == place.json("outbox", "status", code=exits.FAILED)["next_due"]

    async def other(duration: timedelta) -> None:
        async with open_store(place.store) as store:
            assert await store.backlog.lease("test", duration)

    asyncio.run(place.put("ready"))
    asyncio.run(other(timedelta(minutes=5)))
    said = place.tidewire("outbox", "flush", code=exits.FAILED)
    assert "1 may leave now: another process relays this outbox." in said
    asyncio.run(other(timedelta(0)))
    assert 0 == place.json("outbox", "flush", code=exits.FAILED)["ready"]


def test_marks_are_counted_and_pruned(place: Place) -> None:
    """Status counts the marks of each group; prune removes those beyond the window, and younger ones only by force."""

    async def mark() -> None:
        async with open_store(place.store, provision=True) as store:
            unit = store.unit()
            for number in range(3):
                await store.inbox.mark(unit, Mark("billing", "charge", 0, "shop", f"event-{number}"), b"digest")
            await (await unit.seal())

    asyncio.run(mark())
    (group,) = place.json("inbox", "status")["groups"]
    assert ("billing", 3) == (group["group"], group["marks"])
    assert "billing" in place.tidewire("inbox")
    assert 0 == place.json("inbox", "prune")["pruned"]
    place.tidewire("inbox", "prune", "--older-than", "1s", code=exits.USAGE)
    time.sleep(1.1)
    assert 3 == place.json("inbox", "prune", "--older-than", "1s", "--force")["pruned"]
    assert [] == place.json("inbox", "status")["groups"]
    assert "no marks" in place.tidewire("inbox")


def test_a_service_may_leave_its_outbox_alone(tmp_path: Path) -> None:
    """With --no-relay a service commits events and publishes none; a relay beside it does."""
    (tmp_path / "shop.py").write_text("from tidewire import Service\nshop = Service('shop')\n")
    place = Place(tmp_path, f"sqlite:///{tmp_path / 'store.db'}")
    (event_id,) = asyncio.run(place.put("1"))
    asyncio.run(place.arrived(0))
    command = [sys.executable, "-m", "tidewire.cli", "run", "shop:shop", "--no-relay"]
    with subprocess.Popen(command, cwd=tmp_path, env=place.environment(), stderr=subprocess.PIPE, text=True) as service:
        try:
            with place.relaying() as relay:
                assert relay.poll() is None
                assert [event_id] == asyncio.run(place.arrived(1))
            asyncio.run(place.put("2"))
            service.send_signal(signal.SIGTERM)
            service.communicate(timeout=30)
            assert exits.OK == service.returncode
        finally:
            service.kill()
    assert 1 == place.json("outbox")["pending"]


def test_a_broker_that_is_not_the_one_takes_no_row(place: Place) -> None:
    """A file that is not there is not made, and a broker with none of the topics is refused: rows stay as they are."""
    asyncio.run(place.put("1", "2"))
    for verb in (("relay",), ("outbox", "flush")):
        place.tidewire(*verb, "--broker", "sqlite:///broker.bd", code=exits.USAGE)
        assert not (place.directory / "broker.bd").exists()
    place.tidewire("outbox", "flush", code=exits.USAGE)
    found = place.json("outbox", "status")
    assert (2, 0) == (found["pending"], found["stuck"])
    assert 0 == place.json("outbox", "flush", "--provision")["left"]
    assert 2 == len(asyncio.run(place.arrived(2)))


def test_two_brokers_do_not_share_an_outbox(place: Place, postgresql_url: str) -> None:
    """While a relay lives, one that would publish elsewhere is refused, whatever command begins it; the same broker by
    another URL is not; and once the first has stopped, another broker may be used on purpose."""
    here = ("--broker", postgresql_url, "--provision")
    other = ("--broker", f"{postgresql_url}?prefix=other_", "--provision")
    asyncio.run(place.put("1"))
    with place.relaying(*here):
        end = time.monotonic() + 60
        while place.json("outbox", "status")["pending"]:
            assert time.monotonic() < end, "nothing was published"
        for verb in (("relay",), ("outbox", "flush")):
            place.tidewire(*verb, *other, code=exits.USAGE)
        place.tidewire("outbox", "flush", "--broker", f"{postgresql_url}?connect_timeout=5")
    asyncio.run(place.put("2"))
    assert 0 == place.json("outbox", "flush", *other)["left"]


def test_a_relay_needs_a_store_and_a_broker_to_share(tmp_path: Path) -> None:
    """Without a store, or with a broker in memory, it says so and does not start."""
    Place(tmp_path, "").tidewire("relay", code=exits.USAGE)
    Place(tmp_path, "sqlite:///s.db").tidewire("relay", "--broker", "memory://", code=exits.USAGE)
