"""The demo as a person runs it: real processes, real kills, and books that can fail to balance."""

from __future__ import annotations

import json
import subprocess
import sys
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
