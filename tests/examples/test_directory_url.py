"""A service runs on another package's broker, named by its URL alone: the example, installed as pip would install it.

Installing is made by hand, because an isolated build per test would take longer than the test: the example's own
``pyproject.toml`` says which entry points the ``.dist-info`` has.
"""

from __future__ import annotations

import json
import os
import signal
import sqlite3
import subprocess
import sys
import time
import tomllib
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import pytest

EXAMPLE = Path(__file__).resolve().parents[2] / "examples" / "directory-broker"
SHOP = """
from tidewire import Context, Reject, Service, event

@event("shop.order.placed", key="order_id")
class OrderPlaced:
    order_id: str

billing = Service("billing")

@billing.on(OrderPlaced)
async def charge(order: OrderPlaced, context: Context) -> None:
    if order.order_id == "bad":
        raise Reject("no such order")
    await context.tx.execute("create table if not exists charged (order_id text)")
    await context.tx.execute("insert into charged values (?)", (order.order_id,))
"""
URL = "directory:///broker"


@pytest.fixture
def environ(tmp_path: Path) -> Mapping[str, str]:
    """Return an environment in which the example is installed and ``directory`` is the broker of a project."""
    project = tomllib.loads((EXAMPLE / "pyproject.toml").read_text())["project"]
    info = tmp_path / "site" / f"directory_broker-{project['version']}.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {project['name']}\nVersion: {project['version']}\n")
    lines = [f"[{group}]\n{name} = {value}\n" for group, points in project["entry-points"].items()
             for name, value in points.items()]  # fmt: skip
    (info / "entry_points.txt").write_text("".join(lines))
    (tmp_path / "twshop.py").write_text(SHOP)
    path = os.pathsep.join([str(tmp_path / "site"), str(EXAMPLE)])
    return {**os.environ, "PYTHONPATH": path, "TIDEWIRE_BROKER": URL}


def tidewire(environ: Mapping[str, str], folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run a command to its end."""
    command = [sys.executable, "-m", "tidewire.cli", *arguments]
    return subprocess.run(command, cwd=folder, env=environ, capture_output=True, text=True, timeout=60, check=False)


@pytest.fixture
def service(environ: Mapping[str, str], tmp_path: Path) -> Iterator[subprocess.Popen[str]]:
    """Run billing, in two processes, until the test ends."""
    command = [sys.executable, "-m", "tidewire.cli", "run", "twshop:billing", "--store", "sqlite:///billing.db"]
    process = subprocess.Popen(
        [*command, "--provision", "--workers", "2"], cwd=tmp_path, env=environ, stderr=subprocess.PIPE, text=True
    )
    yield process
    if process.poll() is None:
        process.kill()
    process.communicate()


def charged(folder: Path) -> list[str]:
    """Return what the service has charged."""
    if not (folder / "billing.db").exists():
        return []
    connection = sqlite3.connect(folder / "billing.db", timeout=10)
    try:
        return sorted(row[0] for row in connection.execute("select order_id from charged"))
    except sqlite3.OperationalError:
        return []
    finally:
        connection.close()


def test_a_service_runs_on_a_third_party_broker(
    environ: Mapping[str, str], service: subprocess.Popen[str], tmp_path: Path
) -> None:
    """``run`` serves from it, ``publish``, ``groups`` and ``dlq`` work on it, and SIGTERM drains it."""
    broker = tmp_path / "broker"
    until(lambda: list(broker.glob("topics/shop.order/groups/billing/lanes/*.owner")), "the service owns lanes")
    for order in ("1", "2", "bad", "3"):
        data = json.dumps({"order_id": order})
        sent = tidewire(environ, tmp_path, "publish", "twshop:OrderPlaced", "--data", data)
        assert 0 == sent.returncode, sent.stderr
    until(lambda: ["1", "2", "3"] == charged(tmp_path), "three orders are charged")
    until(lambda: list(broker.glob("topics/shop.order/groups/billing/dead/*")), "the bad one is a dead letter")
    shown = tidewire(environ, tmp_path, "groups", "--json")
    assert 0 == shown.returncode, shown.stderr
    assert '"billing"' in shown.stdout
    letters = tidewire(environ, tmp_path, "dlq", "list", "--json")
    assert 0 == letters.returncode, letters.stderr
    assert "no such order" in letters.stdout
    service.send_signal(signal.SIGTERM)
    assert 0 == service.wait(20)
    assert [] == list((broker / "members" / "billing").iterdir())


def test_without_the_package_the_error_says_what_there_is(tmp_path: Path) -> None:
    """The same URL without the package is refused with the known schemes, and the exit code of a bad setting."""
    (tmp_path / "twshop.py").write_text(SHOP)
    ran = tidewire({**os.environ, "TIDEWIRE_BROKER": URL}, tmp_path, "run", "twshop:billing")
    assert 0 != ran.returncode
    assert "no installed package provides 'directory'" in ran.stderr
    assert "known schemes: amqp, amqps, kafka, memory, postgresql, sqlite" in ran.stderr


def until(condition: Callable[[], object], what: str) -> None:
    """Wait, for 30 s at most, until *condition* holds."""
    deadline = time.monotonic() + 30
    while not condition():
        assert time.monotonic() < deadline, f"waited in vain: {what}"
        time.sleep(0.02)
