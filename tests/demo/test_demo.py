"""The demo as a person runs it: real processes, real kills, and books that can fail to balance."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from tidewire.cli.demo.orders import invented
from tidewire.cli.demo.plants import PLANTS

KEYS = {
    "accepted", "malformed", "repeated", "conflict", "paid", "refused", "shipped", "notified", "dead_letters", "lost",
    "duplicated", "out_of_order", "kills", "retries", "events", "seconds", "events_per_second", "balanced",
}  # fmt: skip


def demo(*arguments: str) -> tuple[int, dict[str, Any]]:
    """Run the demo and return its exit code and its report."""
    command = [sys.executable, "-m", "tidewire.cli", "demo", "--json", *arguments]
    done = subprocess.run(command, capture_output=True, text=True, timeout=240, check=False)
    assert done.stdout, done.stderr
    report: dict[str, Any] = json.loads(done.stdout)
    return done.returncode, report


def lines(path: Path, count: int, seed: int) -> str:
    path.write_bytes(b"\n".join(invented(count, seed)) + b"\n")
    return str(path)


def test_the_books_balance(tmp_path: Path) -> None:
    """Every line has its verdict, every accepted order its whole way, and the report has all its figures."""
    code, report = demo("--orders", lines(tmp_path / "orders.jsonl", 600, 7))
    assert (0, True, []) == (code, report["balanced"], report["problems"])
    assert KEYS <= report.keys()
    assert 600 == sum(report[name] for name in ("accepted", "malformed", "repeated", "conflict"))
    assert report["accepted"] == report["paid"] + report["refused"] == report["notified"] + report["dead_letters"]
    assert report["retries"] > 0


def test_the_books_balance_under_chaos(tmp_path: Path) -> None:
    """At least ten kills in the middle of the work lose nothing, repeat nothing, and break no order."""
    code, report = demo("--chaos", "--orders", lines(tmp_path / "orders.jsonl", 1_500, 11))
    assert report["kills"] >= 10
    assert (0, 0, 0) == (report["lost"], report["duplicated"], report["out_of_order"])
    assert (0, True, []) == (code, report["balanced"], report["problems"])


@pytest.mark.parametrize("defect", PLANTS)
def test_each_planted_defect_is_reported(tmp_path: Path, defect: str) -> None:
    """With a defect in the shop the books do not balance: the reconciliation can fail."""
    code, report = demo("--chaos", "--plant", defect, "--orders", lines(tmp_path / "orders.jsonl", 3_000, 13))
    assert (1, False) == (code, report["balanced"])
    assert report["lost"] + report["duplicated"] > 0


def test_hostile_lines_and_odd_numbers_balance(tmp_path: Path) -> None:
    """Bombs, quantities of 64 bits, huge prices, strange texts: each line has its verdict, the books balance."""
    line = {"sku": "s", "quantity": 2**63 - 1, "unit_price": "0"}
    order = {"email": "a@mail.example", "currency": "EUR", "placed_at": "0001-01-01T00:00:00Z", "lines": [line] * 3}
    good = [{**order, "order_id": f"o-{n}", "customer_id": name} for n, name in enumerate(["\u202e", "💥", "a|b", "c"])]
    good.append({**order, "order_id": "o-9", "customer_id": "c", "lines": [{**line, "unit_price": "1e999"}]})
    bad = [
        b"{",
        b"[" * 100_000,
        b"\xff",
        b"\xef\xbb\xbf{}",
        b"x" * 10_000_000,
        json.dumps({**good[0], "order_id": ""}).encode(),
    ]
    bad.append(json.dumps({**good[0], "customer_id": "a\u2028b"}).encode())
    path = tmp_path / "höstile 100%.jsonl"
    path.write_bytes(b"\n\n".join([*(json.dumps(one).encode() for one in good), *bad * 6]) + b"\r\n \n")
    code, report = demo("--orders", str(path))
    assert (0, True, []) == (code, report["balanced"], report["problems"])
    assert (5, 42, 4, 1) == tuple(report[name] for name in ("accepted", "malformed", "paid", "refused"))


@pytest.mark.usefixtures("postgresql_server")  # where there is none, the demo cannot start one either
def test_the_books_balance_on_a_postgresql_that_is_killed(tmp_path: Path) -> None:
    """The same shop on the demo's own PostgreSQL, which dies twice with `kill -9` while services do too."""
    file = lines(tmp_path / "orders.jsonl", 600, 17)
    code, report = demo("--chaos", "--store", "postgresql://", "--orders", file)
    assert (0, 0, 0) == (report["lost"], report["duplicated"], report["out_of_order"])
    assert (0, True, []) == (code, report["balanced"], report["problems"])
    assert (2, True) == (report["server_kills"], report["kills"] >= 10)


def test_the_demo_clears_its_schemas_away(tmp_path: Path, postgresql_url: str) -> None:
    """On somebody's server each service has a schema of its own, and nothing is left of them."""
    import psycopg

    code, report = demo("--store", postgresql_url, "--orders", lines(tmp_path / "orders.jsonl", 200, 19))
    assert (0, True, []) == (code, report["balanced"], report["problems"])
    with psycopg.connect(postgresql_url) as connection:
        left = connection.execute("SELECT nspname::text FROM pg_namespace WHERE nspname LIKE 'demo%'").fetchall()
    assert [] == left


@pytest.mark.usefixtures("kafka_server")  # where there is none, the demo cannot start one either
def test_the_books_balance_on_a_kafka_that_is_killed(tmp_path: Path) -> None:
    """The same shop on the demo's own Kafka, which dies twice with `kill -9` while services do too."""
    file = lines(tmp_path / "orders.jsonl", 300, 23)
    code, report = demo("--chaos", "--broker", "kafka://", "--orders", file)
    assert (0, 0, 0) == (report["lost"], report["duplicated"], report["out_of_order"])
    assert (0, True, []) == (code, report["balanced"], report["problems"])
    assert (2, True) == (report["server_kills"], report["kills"] >= 10)


@pytest.mark.usefixtures("rabbitmq_server")
def test_the_books_balance_on_a_rabbitmq_that_is_killed(tmp_path: Path) -> None:
    """The same shop on the demo's own RabbitMQ, which dies twice with `kill -9` while services do too."""
    file = lines(tmp_path / "orders.jsonl", 300, 31)
    code, report = demo("--chaos", "--broker", "amqp://", "--orders", file)
    assert (0, 0, 0) == (report["lost"], report["duplicated"], report["out_of_order"])
    assert (0, True, []) == (code, report["balanced"], report["problems"])
    assert (2, True) == (report["server_kills"], report["kills"] >= 10)


def test_a_broker_that_has_topics_of_a_shop_is_refused(tmp_path: Path) -> None:
    """What lies there is not the demo's: it would be counted in the books, or taken from a shop that is real."""
    url = f"sqlite:///{tmp_path / 'broker.db'}"
    file = lines(tmp_path / "orders.jsonl", 20, 29)
    code, report = demo("--broker", url, "--orders", file)
    assert (0, True) == (code, report["balanced"])
    command = [sys.executable, "-m", "tidewire.cli", "demo", "--broker", url, "--orders", file]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert 2 == done.returncode
    assert "shop.order" in done.stderr
    assert "hint:" in done.stderr


@pytest.mark.parametrize("url", ["sqlite:///x.db", "memory://", "mysql://host/x"])
def test_a_store_for_all_services_is_refused_by_name(url: str) -> None:
    """Services share no file, and the text says what they can have."""
    command = [sys.executable, "-m", "tidewire.cli", "demo", "--store", url]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert 2 == done.returncode
    assert "PostgreSQL" in done.stderr


def test_a_word_that_is_no_url_starts_no_broker() -> None:
    """`--broker kafka` is refused as what it is; only `kafka://` asks for one of the demo's own."""
    command = [sys.executable, "-m", "tidewire.cli", "demo", "--broker", "kafka"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert 2 == done.returncode
    assert "kafka" in done.stderr
    assert "Traceback" not in done.stderr


def processes_of(directory: Path) -> list[str]:
    """The command lines of processes that name *directory* in them or in their environment."""
    found: list[str] = []
    for process in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):
            line, environment = ((process / name).read_bytes() for name in ("cmdline", "environ"))
            if str(directory).encode() in line + environment:
                found.append(line.replace(b"\0", b" ").decode(errors="replace"))
    return found


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_whatever_ends_the_demo_leaves_nobody_behind(tmp_path: Path, number: signal.Signals) -> None:
    """Ctrl-C and SIGTERM stop the shop; killed, the demo takes its services with it all the same."""
    command = [sys.executable, "-m", "tidewire.cli", "demo", "--keep", str(tmp_path / "shop")]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    assert process.stderr is not None
    for line in process.stderr:
        if "the shop is open" in line:
            break
    assert len(processes_of(tmp_path)) == 6
    process.send_signal(number)
    process.communicate(timeout=30)
    assert process.returncode == (130 if number != signal.SIGKILL else -9)
    deadline = time.monotonic() + 20
    while processes_of(tmp_path):
        assert time.monotonic() < deadline, processes_of(tmp_path)
        time.sleep(0.05)


def test_an_empty_file_balances(tmp_path: Path) -> None:
    """No orders, nothing wrong."""
    (tmp_path / "none.jsonl").write_text("\n\n")
    code, report = demo("--orders", str(tmp_path / "none.jsonl"))
    assert (0, 0, True) == (code, report["accepted"], report["balanced"])


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    """Exit code 2, the name of the file, and what to do."""
    command = [sys.executable, "-m", "tidewire.cli", "demo", "--orders", str(tmp_path / "nowhere.jsonl")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert 2 == done.returncode
    assert "nowhere.jsonl" in done.stderr
    assert "hint:" in done.stderr
