"""The pytest plugin in a project of its own: alone, beside other plugins, in a script, with a web application."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

SHOP = """
from datetime import timedelta
from tidewire import Retry, Service, event

@event("shop.order.placed", key="order_id")
class OrderPlaced:
    order_id: str

@event("shop.payment.taken", key="order_id")
class PaymentTaken:
    order_id: str

billing = Service("billing")
calls = []

@billing.on(OrderPlaced, retry=Retry(attempts=3, first_delay=timedelta(milliseconds=10)))
async def charge(order: OrderPlaced) -> PaymentTaken:
    calls.append(order.order_id)
    if order.order_id == "never" or order.order_id == "slow" and calls.count("slow") < 3:
        raise RuntimeError("not yet")
    return PaymentTaken(order.order_id)
"""
PLAIN = """
from datetime import timedelta
from shop import OrderPlaced, PaymentTaken, billing

{mark}
async def test_charge(tidewire):
    async with tidewire(billing) as world:
        await world.publish(OrderPlaced(order_id="1"))
        assert world.published(PaymentTaken).one().order_id == "1"
        await world.publish(OrderPlaced(order_id="slow"))
        await world.advance(timedelta(seconds={seconds}))
        assert len(world.published(PaymentTaken)) == 2
"""
IN_ANY_MODE = """
from datetime import timedelta
from tidewire.testing import run, tidewire_world
from shop import OrderPlaced, PaymentTaken, billing

def test_charge():
    async def scenario():
        async with tidewire_world(billing) as world:
            await world.publish(OrderPlaced(order_id="slow"))
            await world.advance(timedelta(hours=12))
            assert world.published(PaymentTaken).one().order_id == "slow"

    run(scenario())
"""
FASTAPI = """
import asyncio
from fastapi import FastAPI
from fastapi.testclient import TestClient
from httpx import ASGITransport, AsyncClient
from shop import OrderPlaced, PaymentTaken, billing

app = FastAPI()

@app.post("/orders/{order_id}")
async def place(order_id: str):
    return {"id": await app.state.publisher.publish(OrderPlaced(order_id=order_id))}

async def test_a_route_publishes(tidewire):
    async with tidewire(billing) as world:
        app.state.publisher = world.publisher
        async with AsyncClient(transport=ASGITransport(app=app), base_url="http://shop") as client:
            assert (await client.post("/orders/1")).status_code == 200
        await world.settle()
        assert world.published(PaymentTaken).one().order_id == "1"

async def test_the_synchronous_client_too(tidewire):
    async with tidewire(billing) as world:
        app.state.publisher = world.publisher
        answer = await asyncio.to_thread(TestClient(app).post, "/orders/2")
        assert answer.status_code == 200
        await world.settle()
        assert world.published(PaymentTaken).one().order_id == "2"
"""
FAILING = """
from shop import OrderPlaced, PaymentTaken, billing

async def test_charge(tidewire):
    async with tidewire(billing) as world:
        await world.publish(OrderPlaced(order_id="never"))
        world.published(PaymentTaken).one()
"""


def pytest_in(folder: Path, test: str, *arguments: str, **environ: str) -> subprocess.CompletedProcess[str]:
    """Run pytest on one file of a new project."""
    (folder / "shop.py").write_text(SHOP)
    (folder / "test_shop.py").write_text(test)
    (folder / "pytest.ini").write_text("[pytest]\nasyncio_default_fixture_loop_scope = function\n")
    environment = {**os.environ, "PYTHONPATH": str(folder), **environ}
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", *arguments]
    return subprocess.run(
        command, cwd=folder, env=environment, capture_output=True, text=True, timeout=120, check=False
    )


def passed(answer: subprocess.CompletedProcess[str], count: int) -> bool:
    """Whether *count* tests passed and nothing else happened."""
    return answer.returncode == 0 and f"{count} passed" in answer.stdout


def test_alone_it_runs_on_virtual_time(tmp_path: Path) -> None:
    """No other plugin is needed, and an hour is nothing."""
    answer = pytest_in(tmp_path, PLAIN.format(mark="", seconds=3_600), "-p", "no:asyncio", "-p", "no:anyio")
    assert passed(answer, 1), answer.stdout


@pytest.mark.parametrize(
    ("mark", "arguments"),
    [
        ("import pytest\n\n@pytest.mark.asyncio", ("--asyncio-mode=strict",)),
        ("", ("--asyncio-mode=auto",)),
        ("", ("--asyncio-mode=strict",)),
        ("import pytest\n\n@pytest.fixture\ndef anyio_backend():\n    return 'asyncio'\n\n@pytest.mark.anyio", ()),
    ],
    ids=["asyncio strict", "asyncio auto", "asyncio strict without a mark", "anyio"],
)
def test_beside_other_plugins(tmp_path: Path, mark: str, arguments: tuple[str, ...]) -> None:
    """A test that another plugin runs has its loop and real time; it passes all the same."""
    answer = pytest_in(tmp_path, PLAIN.format(mark=mark, seconds=0.5), *arguments)
    assert passed(answer, 1), answer.stdout


def test_hours_of_real_time_are_refused_with_the_fix(tmp_path: Path) -> None:
    """Where another plugin runs the test, it does not wait for hours; it says how to have virtual time."""
    answer = pytest_in(tmp_path, PLAIN.format(mark="", seconds=3_600), "--asyncio-mode=auto")
    assert 1 == answer.returncode
    assert "would wait that long: this test is not on virtual time" in answer.stdout
    assert "strict mode" in answer.stdout
    plain = pytest_in(tmp_path, IN_ANY_MODE, "--asyncio-mode=auto")
    assert passed(plain, 1), plain.stdout


def test_the_same_test_against_a_broker(tmp_path: Path) -> None:
    """With a URL it runs on that broker, in real time."""
    url = f"sqlite:///{tmp_path}/broker.db"
    answer = pytest_in(tmp_path, PLAIN.format(mark="", seconds=0.5), "--tidewire-broker", url)
    assert passed(answer, 1), answer.stdout
    assert (tmp_path / "broker.db").stat().st_size > 0
    again = pytest_in(tmp_path, PLAIN.format(mark="", seconds=0.5), TIDEWIRE_TEST_BROKER=f"sqlite:///{tmp_path}/b.db")
    assert passed(again, 1), again.stdout
    assert (tmp_path / "b.db").exists()


def test_with_a_web_application(tmp_path: Path) -> None:
    """Routes publish through the world, under an ASGI client and under the synchronous one."""
    answer = pytest_in(tmp_path, FASTAPI)
    assert passed(answer, 2), answer.stdout


def test_a_failing_test_tells_the_story(tmp_path: Path) -> None:
    """What the person at the terminal sees names what happened."""
    answer = pytest_in(tmp_path, FAILING)
    assert 1 == answer.returncode
    assert "expected one, there are 0" in answer.stdout
    assert "retried       shop.order.placed" in answer.stdout


def test_in_a_plain_script(tmp_path: Path) -> None:
    """No pytest is needed."""
    (tmp_path / "shop.py").write_text(SHOP)
    script = (
        "from datetime import timedelta\n"
        "from shop import OrderPlaced, PaymentTaken, billing\n"
        "from tidewire.testing import run, tidewire_world\n"
        "async def main():\n"
        "    async with tidewire_world(billing) as world:\n"
        "        await world.publish(OrderPlaced('slow'))\n"
        "        await world.advance(timedelta(hours=1))\n"
        "        print(world.published(PaymentTaken).one().order_id)\n"
        "run(main())\n"
    )
    answer = subprocess.run(
        [sys.executable, "-c", script], cwd=tmp_path, capture_output=True, text=True, timeout=60, check=False
    )
    assert "slow\n" == answer.stdout, answer.stderr
