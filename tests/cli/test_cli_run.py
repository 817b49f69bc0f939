"""``tidewire run`` with real services, real brokers and real signals."""

from __future__ import annotations

import asyncio
import http.client
import json
import os
import signal
import socket
import sqlite3
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

import pytest

from tidewire.model import TopicInfo
from tidewire.transports.sqlite import open_sqlite_transport

SHOP = """
from tidewire import Context, Service, event

@event("shop.order.placed", version=1, key="order_id")
class OrderPlaced:
    order_id: str

billing = Service("billing")

@billing.lifespan
async def opened(service):
    open(f"up-{__import__('os').getpid()}", "w").close()
    yield {}
    with open(f"down-{__import__('os').getpid()}", "w") as note:
        note.write(str(__import__('gc').get_freeze_count()))

@billing.on(OrderPlaced)
async def charge(order: OrderPlaced, context: Context) -> None:
    await context.tx.execute("create table if not exists charged (order_id text, process integer)")
    await context.tx.execute("insert into charged values (?, ?)", (order.order_id, __import__('os').getpid()))
"""

PUBLISH = """
import asyncio, sys
from tidewire import open_publisher
from tidewire.config import open_transport
from twshop import OrderPlaced

async def main():
    async with open_transport("sqlite:///broker.db") as transport:
        async with open_publisher("orders", transport=transport) as publisher:
            await publisher.publish_all([OrderPlaced(order_id=str(n)) for n in range(int(sys.argv[1]))])

asyncio.run(main())
"""

Start = Callable[..., "subprocess.Popen[str]"]


@pytest.fixture
def project(tmp_path: Path) -> Path:
    """Return a folder with the module ``twshop``."""
    (tmp_path / "twshop.py").write_text(SHOP)
    return tmp_path


@pytest.fixture
def start(project: Path) -> Iterator[Start]:
    """Return a function that starts ``tidewire run``; whoever is left at the end is killed."""
    begun: list[subprocess.Popen[str]] = []

    def run(*options: str, environ: Mapping[str, str] | None = None) -> subprocess.Popen[str]:
        command = [sys.executable, "-m", "tidewire.cli", "run", "twshop:billing", *options]
        process = subprocess.Popen(
            command, cwd=project, env={**os.environ, **(environ or {})}, stderr=subprocess.PIPE, text=True
        )
        begun.append(process)
        return process

    yield run
    for process in begun:
        if process.poll() is None:
            process.kill()
        process.communicate()


ON_FILES = ("--broker", "sqlite:///broker.db", "--store", "sqlite:///billing.db")


def publish(project: Path, count: int) -> None:
    """Publish *count* orders from another process."""
    subprocess.run([sys.executable, "-c", PUBLISH, str(count)], cwd=project, check=True, timeout=60)


def charged(project: Path) -> list[tuple[str, int]]:
    """Return (order, process) of every charge in the service's own database."""
    if not (project / "billing.db").exists():
        return []
    connection = sqlite3.connect(project / "billing.db", timeout=10)
    try:
        return connection.execute("select order_id, process from charged").fetchall()
    except sqlite3.OperationalError:
        return []
    finally:
        connection.close()


def until(condition: Callable[[], object], what: str) -> None:
    """Wait, for 30 s at most, until *condition* holds."""
    deadline = time.monotonic() + 30
    while not condition():
        assert time.monotonic() < deadline, f"waited in vain: {what}"
        time.sleep(0.02)


def up(project: Path) -> set[int]:
    """Return the processes that have opened the service."""
    return {int(path.name[3:]) for path in project.glob("up-*")}


def down(project: Path) -> set[int]:
    """Return the processes that have closed it."""
    return {int(path.name[5:]) for path in project.glob("down-*")}


def test_a_service_runs_until_sigterm_and_drains(project: Path, start: Start) -> None:
    """Events published by another process are handled; SIGTERM ends with closed resources and exit 0."""
    process = start(*ON_FILES, "--provision", "--json-logs")
    until(lambda: up(project), "the service")
    publish(project, 20)
    until(lambda: len(charged(project)) == 20, "20 charges")
    process.send_signal(signal.SIGTERM)
    _, said = process.communicate(timeout=30)
    assert (0, up(project)) == (process.returncode, down(project))
    assert sorted(str(n) for n in range(20)) == sorted(order for order, _ in charged(project))
    events = [json.loads(line)["event"] for line in said.splitlines()]
    assert {"tidewire.service.started", "tidewire.service.drained"} <= set(events)
    (note,) = project.glob("down-*")
    assert int(note.read_text()) > 1_000, "the collector goes through all that was loaded"


def test_workers_share_the_work_and_drain(project: Path, start: Start) -> None:
    """Two workers divide the lanes: every event is handled once, by more than one process, and both drain."""
    process = start(*ON_FILES, "--provision", "--workers", "2")
    until(lambda: len(up(project)) == 2, "two workers")
    publish(project, 200)
    until(lambda: len(charged(project)) == 200, "200 charges")
    process.send_signal(signal.SIGTERM)
    process.communicate(timeout=30)
    assert (0, up(project)) == (process.returncode, down(project))
    assert 200 == len({order for order, _ in charged(project)})


def test_a_killed_worker_loses_nothing(project: Path, start: Start) -> None:
    """``kill -9`` of a worker in the middle: every order is charged once, by whoever is left or comes."""
    process = start(*ON_FILES, "--provision", "--workers", "2", environ={"TIDEWIRE_LEASE": "1"})
    until(lambda: len(up(project)) == 2, "two workers")
    publish(project, 300)
    until(lambda: charged(project), "a first charge")
    os.kill(max(up(project)), signal.SIGKILL)
    until(lambda: len(charged(project)) >= 300, "300 charges")
    until(lambda: len(up(project)) == 3, "the worker that takes the killed one's place")
    process.send_signal(signal.SIGTERM)
    _, said = process.communicate(timeout=30)
    assert 0 == process.returncode, said
    orders = [order for order, _ in charged(project)]
    assert (300, 300) == (len(orders), len(set(orders)))


def test_a_missing_broker_is_refused_without_provision(project: Path, start: Start) -> None:
    """``run`` makes no broker: the file that is not there is named, none is made by the refusal, exit 2."""
    process = start(*ON_FILES)
    _, said = process.communicate(timeout=30)
    assert 2 == process.returncode
    assert "there is no broker file" in said
    assert "--provision" in said
    assert [] == [path.name for path in project.glob("broker.db*")]


def test_missing_topics_are_refused_without_provision(project: Path, start: Start) -> None:
    """``run`` verifies the topology: what is missing is named, nothing is created, exit 2."""

    async def make_broker() -> Sequence[TopicInfo]:
        async with open_sqlite_transport(project / "broker.db") as broker:
            return await broker.topics()

    assert [] == asyncio.run(make_broker())
    process = start(*ON_FILES)
    _, said = process.communicate(timeout=30)
    assert 2 == process.returncode
    assert "shop.order" in said
    assert "--provision" in said
    assert [] == asyncio.run(make_broker())


def test_settings_come_from_the_environment_too(project: Path, start: Start) -> None:
    """``TIDEWIRE_BROKER`` and its kin mean the same as the options."""
    environ = {"TIDEWIRE_BROKER": "sqlite:///broker.db", "TIDEWIRE_STORE": "sqlite:///billing.db"}
    process = start(environ={**environ, "TIDEWIRE_PROVISION": "true"})
    until(lambda: up(project), "the service")
    process.send_signal(signal.SIGINT)
    process.communicate(timeout=30)
    assert (0, True, True) == (
        process.returncode,
        (project / "broker.db").exists(),
        (project / "billing.db").exists(),
    )


@pytest.mark.parametrize(
    ("options", "word"),
    [
        (("--broker", "nats://b:4222"), "nats"),
        (("--broker", "nonsense"), "nonsense"),
        (("--grace", "-1"), "grace"),
        (("--grace", "soon"), "grace"),
        (("--workers", "0"), "workers"),
        (("--workers", "2", "--broker", "memory://"), "memory://"),
        (("--broker", "sqlite:///x.db", "--store", "sqlite:///x.db"), "same file"),
    ],
)
def test_a_bad_setting_is_named(start: Start, options: tuple[str, ...], word: str) -> None:
    """A setting that cannot be ends with exit 2, an error that names it and a hint; no traceback."""
    process = start(*options)
    _, said = process.communicate(timeout=30)
    assert 2 == process.returncode
    assert said.startswith("error: ")
    assert "\nhint: " in said
    assert word in said.splitlines()[0]
    assert "Traceback" not in said


def test_a_file_that_is_no_broker_is_refused(project: Path, start: Start) -> None:
    """The broker's file belongs to another program: exit 2, the file is named and not changed."""
    (project / "broker.db").write_bytes(b"something else, " * 1_000)
    before = (project / "broker.db").read_bytes()
    process = start(*ON_FILES, "--provision")
    _, said = process.communicate(timeout=30)
    assert (2, before) == (process.returncode, (project / "broker.db").read_bytes())
    assert "broker.db" in said


def test_a_probe_answers_while_it_runs(project: Path, start: Start) -> None:
    """``--probe`` opens a port that says ready; it closes with the service."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    process = start("--provision", f"--probe=127.0.0.1:{port}", "--store=sqlite:///billing.db")
    until(lambda: list(project.glob("up-*")), "the service is up")
    until(lambda: answers(port) == 200, "the probe says ready")
    process.send_signal(signal.SIGTERM)
    assert 0 == process.wait(20)
    assert answers(port) is None


@pytest.mark.parametrize(
    ("options", "said"),
    [(["--probe=here"], "HOST:PORT"), (["--probe=127.0.0.1:1", "--workers=2"], "several workers")],
)
def test_a_probe_that_cannot_be_is_refused(start: Start, options: list[str], said: str) -> None:
    """A wrong address, and one port for several processes, end with exit code 2 and the reason."""
    process = start(*options)
    _, errors = process.communicate(timeout=20)
    assert 2 == process.returncode
    assert said in errors


def answers(port: int) -> int | None:
    """Return the status of ``/readyz``, or None where nobody listens."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=5)
    try:
        connection.request("GET", "/readyz")
        return connection.getresponse().status
    except ConnectionError:
        return None
    finally:
        connection.close()
