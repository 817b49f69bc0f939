"""The door over HTTP: plain JSON, CloudEvents in both modes, lines, and whatever else somebody sends."""

from __future__ import annotations

import asyncio
import json
import socket
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest

from tidewire import Service, running, transaction
from tidewire.cli.demo.door import Door, serve_door
from tidewire.cli.demo.feeder import chunked, post
from tidewire.cli.demo.shop.services import TABLES
from tidewire.stores.sqlite import open_sqlite_store
from tidewire.transports.memory import open_memory_transport

Post = Callable[..., Awaitable[tuple[int, Any]]]
PLAIN = {"content-type": "application/json"}
LINES = {"content-type": "application/x-ndjson", "x-line": "f.jsonl:7"}


def order(**changed: Any) -> dict[str, Any]:
    return {
        "order_id": "o-1",
        "customer_id": "c-1",
        "email": "a@mail.example",
        "currency": "EUR",
        "placed_at": "2026-11-24T09:30:00Z",
        "lines": [{"sku": "s", "quantity": 1, "unit_price": "9.90"}],
        **changed,
    }


def text(**changed: Any) -> bytes:
    return json.dumps(order(**changed)).encode()


def at_the_door(directory: Path, test: Callable[[Post], Awaitable[None]]) -> None:
    """Open the door of a shop for *test*, which is given a function that posts and returns status and reply."""

    async def scenario() -> None:
        listener, stopped = socket.create_server(("127.0.0.1", 0)), asyncio.Event()
        port = listener.getsockname()[1]

        async def send(body: bytes, headers: dict[str, str]) -> tuple[int, Any]:
            status, reply = await post(port, "/orders", body, headers)
            return status, json.loads(reply)

        async with (
            open_memory_transport() as transport,
            open_sqlite_store(directory / "orders.db") as store,
            running(Service("orders"), transport=transport, store=store) as app,
            asyncio.TaskGroup() as tasks,
        ):
            async with transaction(store) as tx:
                for table in TABLES["orders"]["sqlite"]:
                    await tx.execute(table)
            tasks.create_task(serve_door(Door(store, app.publisher), listener, stopped))
            await test(send)
            stopped.set()

    asyncio.run(scenario())


def test_an_order_comes_in_as_json_or_as_a_cloudevent(tmp_path: Path) -> None:
    """Plain, binary mode and structured mode (with data or data_base64) are one order: accepted once, then repeated."""
    binary = {**PLAIN, "ce-specversion": "1.0", "ce-id": "e-1", "ce-source": "web", "ce-type": "shop.order.handed-in"}
    event = {"specversion": "1.0", "id": "e-1", "source": "web", "type": "shop.order.handed-in"}
    structured = {"content-type": "application/cloudevents+json; charset=utf-8"}

    async def test(send: Post) -> None:
        assert (202, "accepted") == await verdict(send, text(), PLAIN)
        assert (200, "repeated") == await verdict(send, text(), PLAIN)
        assert (200, "repeated") == await verdict(send, text(), binary)
        assert (200, "repeated") == await verdict(send, json.dumps({**event, "data": order()}).encode(), structured)
        assert (202, "accepted") == await verdict(
            send, json.dumps({**event, "data": order(order_id="o-2")}).encode(), structured
        )
        assert (409, "conflict") == await verdict(send, text(email="other@mail.example"), binary)
        assert (422, "malformed") == await verdict(send, text(order_id=""), binary)
        assert (422, "malformed") == await verdict(send, json.dumps(event).encode(), structured)
        assert (422, "malformed") == await verdict(send, text(), {**binary, "ce-specversion": "0.3"})
        assert (422, "malformed") == await verdict(send, text(), {**binary, "ce-source": ""})

    at_the_door(tmp_path, test)


async def verdict(send: Post, body: bytes, headers: dict[str, str]) -> tuple[int, str]:
    status, reply = await send(body, headers)
    assert reply["reason"] or reply["verdict"] == "accepted"
    return status, reply["verdict"]


HOSTILE = {
    "empty": b"",
    "not JSON": b"{",
    "not UTF-8": b"\xff\xfe\x00",
    "a BOM": b"\xef\xbb\xbf" + text(),
    "deep": b"[" * 200_000,
    "NaN": text().replace(b'"quantity": 1', b'"quantity": NaN'),
    "1e999": text().replace(b'"quantity": 1', b'"quantity": 1e999'),
    "minus zero": text().replace(b'"quantity": 1', b'"quantity": -0'),
    "beyond 64 bits": text().replace(b'"quantity": 1', b'"quantity": 9223372036854775808'),
    "true": text().replace(b'"quantity": 1', b'"quantity": true'),
    "a lone surrogate": text(customer_id="\ud800"),
    "NUL": text(order_id="a\0"),
    "a line separator": text(customer_id="a\u2028b"),
    "no such day": text(placed_at="2026-02-30T00:00:00Z"),
    "a leap second": text(placed_at="2016-12-31T23:59:60Z"),
    "an endless price": text(lines=[{"sku": "s", "quantity": 1, "unit_price": "Infinity"}]),
    "ten megabytes": text(email="x" * 10_000_000),
}


@pytest.mark.parametrize("what", HOSTILE)
def test_what_is_no_order_is_refused_with_its_reason(tmp_path: Path, what: str) -> None:
    """Malformed as a request and as a line of a file, and the next order is taken."""

    async def test(send: Post) -> None:
        assert (422, "malformed") == await verdict(send, HOSTILE[what], PLAIN)
        status, answers = await send(b"\n\n".join([HOSTILE[what], text()]), LINES)
        assert 200 == status
        malformed = [] if what == "empty" else ["malformed"]
        assert [*malformed, "accepted"] == [answer["verdict"] for answer in answers]
        assert all(answer["reason"] for answer in answers[:-1])

    at_the_door(tmp_path, test)


def test_the_largest_quantities_are_taken(tmp_path: Path) -> None:
    """Whatever 64 bits hold is a quantity, and what customers write in their own alphabets is a text."""
    most = {"sku": "s\u202e", "quantity": 2**63 - 1, "unit_price": "0.000000000000000000000000000001"}

    async def test(send: Post) -> None:
        assert (202, "accepted") == await verdict(send, text(lines=[most] * 100, customer_id="Лев 🦁"), PLAIN)

    at_the_door(tmp_path, test)


def test_a_line_keeps_its_first_verdict(tmp_path: Path) -> None:
    """Handing in again after a lost reply changes nothing; blank lines count in the numbering and nowhere else."""

    async def test(send: Post) -> None:
        body = b"\n".join([text(), b"", b"  ", text(order_id="o-2"), b"{"])
        first = await send(body, LINES)
        assert (200, ["accepted", "accepted", "malformed"]) == (first[0], [one["verdict"] for one in first[1]])
        assert first == await send(body, LINES)
        assert (200, ["accepted"]) == (lambda s, r: (s, [one["verdict"] for one in r]))(
            *await send(text(order_id="o-2"), {**LINES, "x-line": "f.jsonl:10"})
        )

    at_the_door(tmp_path, test)


def test_too_much_in_one_call_is_refused(tmp_path: Path) -> None:
    """A call is bounded in lines and bytes; nothing of what is refused is kept."""

    async def test(send: Post) -> None:
        assert (422, "malformed") == await verdict(send, b"\n" * 20_000, LINES)

    at_the_door(tmp_path, test)


def test_lines_are_handed_in_in_bounded_calls() -> None:
    """At most fifty lines, gaps of blank ones included, and a megabyte, unless one line alone is longer."""
    short = [(number, b"x") for number in range(1, 121)]
    assert [50, 50, 20] == [len(chunk) for chunk in chunked(short)]
    assert [[1, 3], [900]] == [
        [number for number, _ in chunk] for chunk in chunked([(1, b"a"), (3, b"b"), (900, b"c")])
    ]
    long = [(1, b"x"), (2, bytes(40 << 20)), (3, b"y"), (4, bytes(1 << 20)), (5, b"z")]
    assert [[1], [2], [3], [4], [5]] == [[number for number, _ in chunk] for chunk in chunked(long)]
    assert [] == list(chunked([]))
