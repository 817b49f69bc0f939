"""``tidewire crashtest``: the example that is right, the one that is not, and what is no crash test at all."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tidewire.cli import exits

EXAMPLE = Path(__file__).parents[2] / "examples" / "crashtest"
RIGHT, WRONG, EVENTS = "payments.right:billing", "payments.wrong:billing", ("--events", "orders.jsonl")
PROBE = ("--probe", "payments.outside:world")


def crashtest(*arguments: str, text: str = "") -> subprocess.CompletedProcess[str]:
    """Run the command in a process of its own."""
    command = [sys.executable, "-m", "tidewire.cli", "crashtest", *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=120, check=False, cwd=EXAMPLE, input=text)


def test_a_service_that_is_right_passes() -> None:
    """Exit 0: every point was tried, and what was compared is named."""
    answer = crashtest(RIGHT, *EVENTS, *PROBE)
    assert (exits.OK, "") == (answer.returncode, answer.stderr)
    assert "idempotent, as far as was tried" == answer.stdout.splitlines()[-1]
    assert "effect took" in answer.stdout
    assert "table payment" in answer.stdout


def test_a_service_that_is_wrong_is_told() -> None:
    """Exit 1: the handler, what it did twice, and a history of one event and one crash; nobody else is named."""
    answer = crashtest(WRONG, *EVENTS, *PROBE, "--json")
    assert (exits.FAILED, "") == (answer.returncode, answer.stderr)
    told = json.loads(answer.stdout)
    (defect,) = told["defects"]
    assert (False, ["charge"], [1]) == (told["idempotent"], defect["handlers"], defect["lines"])
    assert {"place": "effect took", "row": "900", "expected": 1, "found": 2} in defect["differences"]
    assert "wrong.py" in defect["crash"]
    did = [entry["did"] for entry in defect["history"]]
    assert (1, 1, 2) == (did.count("publish"), did.count("kill"), did.count("effect"))
    assert "charge is not idempotent" == defect["in_words"][0]
    assert "  the shortest history that shows it: 1 event, 1 crash" in defect["in_words"]


def test_what_it_cannot_see_is_said() -> None:
    """Without a probe and without an effect noted, it says that nothing outside was compared."""
    line = '{"type": "shop.order.placed", "data": {"order_id": "1", "cents": 5}}'
    answer = crashtest("payments.counting:counting", "--events", "-", "--points", "5", text=line)
    assert exits.OK == answer.returncode, answer.stderr
    assert "not compared: what is outside" in answer.stdout
    assert "died at 5 of " in answer.stdout


@pytest.mark.parametrize(
    ("arguments", "text", "said"),
    [
        ((RIGHT,), "", "--events"),
        ((RIGHT, "--events", "no.jsonl"), "", "--events no.jsonl: No such file"),
        ((RIGHT, "--events", "-"), "", "- has no events"),
        ((RIGHT, "--events", "-"), '\n{"type": "shop.order.plced", "data": {}}', "line 2: .*placed'?"),
        (("payments.rigt:billing", *EVENTS), "", "did you mean 'payments.right'?"),
        ((RIGHT, *EVENTS, "--probe", "payments.outside:wrld"), "", "did you mean 'world'?"),
        ((RIGHT, *EVENTS, "--probe", "payments.outsid:world"), "", "there is no module 'payments.outsid'"),
        ((RIGHT, *EVENTS, "--probe", "world"), "", "module:function"),
        ((RIGHT, *EVENTS, "--points", "0"), "", "above zero"),
        ((RIGHT, *EVENTS, "--store", "sqlite:///orders.jsonl"), "", "cannot be copied"),
        ((RIGHT, *EVENTS, "--store", "memory://", "--no-store"), "", "exclude"),
        ((RIGHT, *EVENTS), "", "NotImplementedError: this example has no bank"),
        ((RIGHT, *EVENTS, "--no-store"), "", "on_dead_letter"),
    ],
)
def test_bad_use_is_told(arguments: tuple[str, ...], text: str, said: str) -> None:
    """Exit 2, nothing on stdout, what is wrong and what to do on stderr."""
    answer = crashtest(*arguments, text=text)
    assert (exits.USAGE, "") == (answer.returncode, answer.stdout)
    assert answer.stderr.startswith("error: ")
    assert "\nhint: " in answer.stderr
    assert re.search(said, answer.stderr)
