"""A crash test finds the handler that repeats an effect, with a history of one event and one crash, and nobody else."""

from __future__ import annotations

import asyncio
import socket
import sqlite3
from collections.abc import Callable, Sequence
from contextlib import closing
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest

from tidewire import ConfigurationError, Context, Service, event
from tidewire.stores.sqlite import open_sqlite_store
from tidewire.testing.simulation import effect
from tidewire.testing.simulation.crashtest import (
    Incoming,
    Limits,
    Setting,
    Verdict,
    copied,
    crash_test,
    events_in,
    told,
)


@event("shop.order.placed", key="order_id")
class OrderPlaced:
    """An order."""

    order_id: str


CREATE = "create table if not exists paid (id text, order_id text, at text, attempt integer)"


def orders(service: Service, count: int = 1) -> Sequence[Incoming]:
    """Return *count* orders as they come in."""
    text = "".join(f'{{"type": "shop.order.placed", "data": {{"order_id": "{n}"}}}}\n' for n in range(count))
    return events_in(text.encode(), service)


def verdict_on(handle: Callable[..., Any], *, count: int = 1, **setting: Any) -> Verdict:
    """Crash test a service with this one handler."""
    service = Service("billing")
    service.on(OrderPlaced, on_dead_letter="continue")(handle)
    return crash_test(Setting(service=service, **setting), orders(service, count))


def kills(verdict: Verdict) -> list[int]:
    """Return for each defect how many crashes its history has."""
    return [sum(entry.did == "kill" for entry in defect.history) for defect in verdict.defects]


def test_rows_of_the_store_are_right() -> None:
    """What is only in the service's own transaction is idempotent; time and chance in it are no difference."""

    async def pay(order: OrderPlaced, context: Context[Any]) -> None:
        await context.tx.execute(CREATE)
        await context.tx.execute(
            "insert into paid values (?, ?, ?, 0)", (str(uuid4()), order.order_id, datetime.now(UTC).isoformat())
        )

    verdict = verdict_on(pay, count=2)
    assert () == verdict.defects
    assert verdict.points == verdict.tried >= 20
    assert 2 == verdict.duplicates
    assert {"table paid": ("at", "id")} == verdict.varying


def test_a_call_outside_is_found() -> None:
    """An effect before the commit happens again after a crash: one event and one crash show it."""

    async def call(order: OrderPlaced, context: Context[Any]) -> None:
        effect("called", order.order_id)
        await context.tx.execute(CREATE)

    verdict = verdict_on(call, count=3)
    assert [("call",)] == [defect.handlers for defect in verdict.defects]
    assert [1] == [len(defect.events) for defect in verdict.defects]
    assert [1] == kills(verdict)
    assert ['effect called "0": twice instead of once'] == [str(one) for one in verdict.defects[0].differences]


def test_what_follows_the_attempt_is_found() -> None:
    """A row that says which attempt it was is another one after a crash."""

    async def note(order: OrderPlaced, context: Context[Any]) -> None:
        await context.tx.execute(CREATE)
        await context.tx.execute("insert into paid values ('', ?, '', ?)", (order.order_id, context.attempt))

    (defect,) = verdict_on(note).defects
    assert ("note",) == defect.handlers
    assert "in note, at test_crashtest.py" in defect.where or "before" in defect.where
    assert any('"attempt":2' in difference.row for difference in defect.differences)


def test_without_a_store_a_duplicate_is_enough() -> None:
    """A service without a store has no inbox mark: what the broker hands out twice happens twice."""

    def mail(order: OrderPlaced) -> None:
        effect("mailed", order.order_id)

    verdict = verdict_on(mail, start=None)
    assert ("mail",) == verdict.defects[0].handlers
    assert "" == verdict.defects[0].where
    assert ["duplicate"] == [entry.did for entry in verdict.defects[0].history if entry.did == "duplicate"]


def test_a_file_is_seen_by_a_probe() -> None:
    """What is written elsewhere before an await is found by a probe, which has a folder of its own in each world."""
    place: list[Path] = []

    async def write(order: OrderPlaced, context: Context[Any]) -> None:
        with place[0].open("a") as file:
            file.write(f"{order.order_id}\n")
        await asyncio.sleep(1)
        await context.tx.execute(CREATE)

    def world(folder: Path) -> Callable[[], object]:
        place[:] = [folder / "ledger"]
        return lambda: {"ledger": place[0].read_text().split()}

    (defect,) = verdict_on(write, probe=world).defects
    assert ['probe ledger "0": twice instead of once'] == [str(one) for one in defect.differences]
    assert "await asyncio.sleep(1)" in defect.where
    assert [] == place, "worlds run in children: nothing here has changed"


def test_only_the_one_who_did_it_is_named() -> None:
    """Of two handlers of one event, that run again together, the one with the effect is named."""
    service = Service("billing")

    @service.on(OrderPlaced)
    async def right(order: OrderPlaced, context: Context[Any]) -> None:
        await context.tx.execute(CREATE)

    @service.on(OrderPlaced)
    async def wrong(order: OrderPlaced, context: Context[Any]) -> None:
        await context.tx.execute(CREATE)
        effect("called", order.order_id)

    verdict = crash_test(Setting(service=service), orders(service))
    assert [("wrong",)] == [defect.handlers for defect in verdict.defects]


def test_what_needs_two_events_is_told_with_two() -> None:
    """An effect that comes with the second event is shown by a history of both, of a file of four."""

    async def second(order: OrderPlaced, context: Context[Any]) -> None:
        await context.tx.execute(CREATE)
        known = await context.tx.fetchval("select count(*) from paid")
        if known == 1:
            effect("second", order.order_id)
        await context.tx.execute("insert into paid values ('', ?, '', 0)", (order.order_id,))

    (defect,) = verdict_on(second, count=4).defects
    assert (0, 1) == defect.events


def test_the_network_is_shut() -> None:
    """A handler that reaches for the network is no result: the crash test says so, and who is to be replaced."""

    async def connect(order: OrderPlaced) -> None:
        with closing(socket.socket()) as out:
            out.connect(("127.0.0.1", 9))

    with pytest.raises(ConfigurationError, match="lets nothing out"):
        verdict_on(connect)


def test_a_thread_that_would_wait_for_the_loop_is_refused() -> None:
    """A ``def`` handler with a context is refused with a hint."""

    def block(order: OrderPlaced, context: Any) -> None:
        context.tx.execute(CREATE)

    with pytest.raises(ConfigurationError, match="cannot be simulated"):
        verdict_on(block)


def test_it_is_bounded() -> None:
    """No more points are tried than allowed, and it says how many there were."""

    async def nothing(order: OrderPlaced) -> None:
        pass

    service = Service("billing")
    service.on(OrderPlaced)(nothing)
    verdict = crash_test(Setting(service=service), orders(service), limits=Limits(points=3))
    assert (3, True) == (verdict.tried, verdict.points > 3)
    assert () == verdict.defects


def test_a_history_is_told() -> None:
    """In words, step by step, with the line of the file and the line of the code."""

    async def call(order: OrderPlaced, context: Context[Any]) -> None:
        effect("called", order.order_id)
        await asyncio.sleep(0)

    service = Service("billing")
    service.on(OrderPlaced)(call)
    incoming = events_in(b'\n{"type": "shop.order.placed", "data": {"order_id": "7"}}', service)
    verdict = crash_test(Setting(service=service), incoming)
    lines = told(verdict.defects[0], incoming)
    assert "call is not idempotent" == lines[0]
    assert "  the shortest history that shows it: 1 event, 1 crash" in lines
    assert "    1. shop.order.placed of line 2 comes in" in lines
    assert 1 == sum("at test_crashtest.py:" in line and "await asyncio.sleep(0)" in line for line in lines)


async def _made(path: Path) -> None:
    async with open_sqlite_store(path):
        with closing(sqlite3.connect(path)) as connection, connection:
            connection.execute("create table stock (sku text primary key, number integer)")
            connection.execute("insert into stock values ('tea', 5)")


def test_a_store_is_copied(tmp_path: Path) -> None:
    """The worlds begin with the tables of the file, and the file stays as it is."""
    path = tmp_path / "billing.db"
    asyncio.run(_made(path))
    before = path.read_bytes()

    async def take(order: OrderPlaced, context: Context[Any]) -> None:
        await context.tx.execute("update stock set number = number - 1 where sku = 'tea'")
        effect("left", await context.tx.fetchval("select number from stock"))

    (defect,) = verdict_on(take, start=copied(path)).defects
    assert "effect left 4: twice instead of once" == str(defect.differences[0])
    assert before == path.read_bytes()
    assert b"" == copied(tmp_path / "nothing.db")


def test_an_effect_is_nothing_elsewhere() -> None:
    """Outside of a crash test, `effect` does nothing."""
    effect("called", object())


def ignore(order: OrderPlaced) -> None:
    """Handle an order in no way."""


GOOD = '{"type": "shop.order.placed", "data": {"order_id": "1"}}'
CLOUD = '{"specversion": "1.0", "id": "7", "source": "web", "type": "shop.order.placed", "data": {"order_id": "1"}}'


def test_events_are_read() -> None:
    """Plain lines and CloudEvents; the id and the source of a CloudEvent stay."""
    service = Service("billing")
    service.on(OrderPlaced)(ignore)
    incoming = events_in(f"{GOOD}\n\n{CLOUD}\n".encode(), service)
    assert [1, 3] == [one.line for one in incoming]
    assert [("line-1", "tidewire-crashtest"), ("7", "web")] == [(m.message.id, m.message.source) for m in incoming]
    assert ["1", "1"] == [one.message.key for one in incoming]


@pytest.mark.parametrize(
    ("line", "why"),
    [
        ("{", "line 2: "),
        ('{"type": "shop.order.placed"}', "line 2: .*data"),
        ('{"type": "shop.order.placd", "data": {}}', "line 2: .*did you mean 'shop.order.placed'"),
        ('{"type": "shop.order.placed", "data": {"order": 1}}', "line 2: .*order_id"),
        ('{"type": "shop.order.placed", "data": {"order_id": "1"}, "id": "line-1"}', "line 2: .*line 1"),
        ('{"specversion": "1.0", "id": "7", "type": "shop.order.placed", "data": {}}', "line 2: .*source"),
        ('{"specversion": "1.0", "id": "7", "source": "web", "type": "shop.order.placed", "schemaversion": "9"}', "9"),
    ],
)
def test_a_line_that_is_no_event_is_named(line: str, why: str) -> None:
    """With its number, and what is wrong."""
    service = Service("billing")
    service.on(OrderPlaced)(ignore)
    with pytest.raises(ConfigurationError, match=why):
        events_in(f"{GOOD}\n{line}\n".encode(), service)
