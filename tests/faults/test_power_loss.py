"""A power loss at any step of any write path: what was acknowledged is there, and nothing is there by halves."""

from __future__ import annotations

import os
import random

import pytest
from disk_model import Disk
from disk_scripts import SCRIPTS
from disk_trace import Op, missing
from power_loss import enumerate_states

STATES_EACH = 80


@pytest.fixture(scope="module", autouse=True)
def _strace() -> None:
    """Recording needs strace, which is Linux's; the install script brings it where it may."""
    if why := missing():
        pytest.skip(f"power loss of the embedded broker and the SQLite store: {why}")


@pytest.mark.parametrize("script", SCRIPTS)
def test_whatever_the_disk_holds_after_a_power_loss_is_whole(script: str) -> None:
    """Opened as a service opens it, each state has what was acknowledged, no half transaction, and drains (SQ1)."""
    result = enumerate_states(script, seed=random.randrange(1 << 32), most=STATES_EACH)
    assert [] == result.examples
    assert result.states >= STATES_EACH // 2
    assert result.drained > 0


@pytest.mark.parametrize(
    ("script", "plant", "kind"),
    [
        ("publish", "normal", "acked lost"),
        ("units", "normal", "acked lost"),
        ("publish", "ack-first", "acked lost"),
        ("settle", "settle-in-two", "half a transaction"),
        ("units", "mark-apart", "half a transaction"),
        ("create", "unsynced-draft", "does not open"),
    ],
)
def test_a_planted_fault_is_found(script: str, plant: str, kind: str) -> None:
    """``synchronous=NORMAL``, an early ack, a transaction in two halves and an unsynced file are caught."""
    result = enumerate_states(script, seed=1, most=600, plant=plant, enough=1)
    assert kind in result.violations


def test_a_disk_keeps_what_was_synced_and_may_lose_the_rest() -> None:
    """The model: content and name are two things, and each is certain only behind its own sync."""
    disk = Disk("/d", {})
    for op in (Op("create", "/d/a"), Op("write", "/d/a", data=b"x" * 1024)):
        disk.do(op)
    for mark, path in (("1", "/d/a"), ("2", "/d")):
        assert {"/d/a": b"x" * 1024} not in [disk.none()]
        disk.do(Op("syncing", path, mark=mark))
        disk.do(Op("sync", path, mark=mark))
    assert {"/d/a": b"x" * 1024} == disk.none()
    disk.do(Op("write", "/d/a", at=512, data=b"y" * 1024))
    disk.do(Op("unlink", "/d/a"))
    found = {state.get("/d/a") for state in disk.crashes(random.Random(1), 500)}
    whole, half = b"x" * 512 + b"y" * 1024, b"x" * 512 + b"y" * 512
    assert {None, b"x" * 1024, whole, half + b"x" * 0, b"x" * 1024 + b"y" * 512} >= found - {half}
    assert {None, b"x" * 1024, whole} <= found


def test_a_write_during_a_sync_is_not_made_certain_by_it() -> None:
    """A sync reaches what was written before it was asked for, not what came while it ran."""
    disk = Disk("/d", {"/d/a": b""})
    disk.do(Op("syncing", "/d/a", mark="t"))
    disk.do(Op("write", "/d/a", data=os.urandom(512)))
    disk.do(Op("sync", "/d/a", mark="t"))
    assert {"/d/a": b""} == disk.none()
