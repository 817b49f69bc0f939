"""The shop as real processes on a real database: what is accepted is paid once, whatever is killed meanwhile."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Generator, Mapping
from contextlib import contextmanager
from pathlib import Path

import httpx
import pytest

HOME = Path(__file__).parent.parent
SECONDS = 60


@contextmanager
def started(environment: Mapping[str, str], *arguments: str) -> Generator[subprocess.Popen[str]]:
    """A process of the shop that is stopped at the end; what it wrote is shown where it failed."""
    process = subprocess.Popen(
        [sys.executable, *arguments], env={**os.environ, **environment}, stderr=subprocess.PIPE, text=True
    )
    try:
        yield process
    finally:
        process.terminate()
        _, errors = process.communicate(timeout=20)
        print(arguments, process.returncode, errors, file=sys.stderr)


def free_port() -> int:
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        return int(listening.getsockname()[1])


def until(client: httpx.Client, **wanted: int) -> None:
    """Wait until the books are as *wanted*; while the door is not open yet nobody answers."""
    end = time.monotonic() + SECONDS
    found: object = None
    while time.monotonic() < end:
        try:
            found = client.get("/books").json()
        except httpx.TransportError as error:
            found = error
        if found == wanted:
            return
        time.sleep(0.05)
    raise AssertionError(f"the books are {found}, and should be {wanted}")


@pytest.mark.parametrize("database", ["postgresql", "sqlite"])
def test_every_accepted_order_is_paid_once(request: pytest.FixtureRequest, tmp_path: Path, database: str) -> None:
    """Orders come in, the service is killed with SIGKILL and started again, and the books balance."""
    url = f"sqlite:///{tmp_path / 'shop.db'}"
    if database == "postgresql":
        url = request.getfixturevalue("postgresql_url")
    port = free_port()
    environment = {
        "SHOP_DATABASE": url,
        "SHOP_BROKER": f"sqlite:///{tmp_path / 'broker.db'}",
        "PYTHONUNBUFFERED": "1",
    }
    manage = str(HOME / "manage.py")
    for act in (["tidewire", "upgrade"], ["migrate", "--verbosity", "0"]):
        subprocess.run([sys.executable, manage, *act], env={**os.environ, **environment}, check=True)
    web = (manage, "runserver", "--noreload", str(port))
    billed = (manage, "tidewire", "run", "djshop.billing:billing", "--provision")
    with started(environment, *web), httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=20) as client:
        until(client, orders=0, payments=0, paid=0)
        with started(environment, *billed) as billing:
            for number in range(20):
                assert 202 == client.post("/orders", json={"order_id": f"o-{number}", "total": "9.90"}).status_code
            assert 409 == client.post("/orders", json={"order_id": "o-1", "total": "9.90"}).status_code
            billing.send_signal(signal.SIGKILL)
            billing.wait(10)
        for number in range(20, 30):
            assert 202 == client.post("/orders", json={"order_id": f"o-{number}", "total": "9.90"}).status_code
        with started(environment, *billed):
            until(client, orders=30, payments=30, paid=30)


def test_a_relay_makes_no_broker_by_itself(tmp_path: Path) -> None:
    """A misspelt broker is refused by `manage.py tidewire relay`, and no file is made of it."""
    database, broker = (f"sqlite:///{tmp_path / name}" for name in ("shop.db", "bro.db"))
    environment = {"SHOP_DATABASE": database, "SHOP_BROKER": broker}
    for act, code in (("upgrade", 0), ("relay", 1)):
        done = subprocess.run(
            [sys.executable, str(HOME / "manage.py"), "tidewire", act],
            env={**os.environ, **environment}, capture_output=True, text=True, timeout=60, check=False,
        )  # fmt: skip
        assert code == done.returncode, done.stderr
    assert "there is no broker file" in done.stderr
    assert not (tmp_path / "bro.db").exists()
