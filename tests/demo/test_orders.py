"""What is an order and what is not, and books made by hand."""

from __future__ import annotations

import json
import sqlite3
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tidewire.cli.demo.orders import Order, digest, invented, read_order
from tidewire.cli.demo.reconcile import QUERIES, reconcile
from tidewire.cli.demo.shop.services import TABLES

GOOD: dict[str, Any] = {
    "order_id": "o-1",
    "customer_id": "c-1",
    "email": "a@mail.example",
    "currency": "EUR",
    "placed_at": "2026-11-24T09:30:00+01:00",
    "lines": [{"sku": "s", "quantity": 1, "unit_price": "9.90"}],
}
LINE: dict[str, Any] = GOOD["lines"][0]


def test_an_order_is_read() -> None:
    """The shape of the issue, unknown fields ignored, unicode kept."""
    order = read_order(json.dumps({**GOOD, "customer_id": "Лев 🦁", "extra": [1]}).encode())
    assert isinstance(order, Order)
    assert "Лев 🦁" == order.customer_id


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"order_id": ""}, "order_id is empty"),
        ({"email": "  "}, "email is empty"),
        ({"customer_id": "a\u0000b"}, "control characters"),
        ({"placed_at": "2026-02-30T00:00:00Z"}, "placed_at"),
        ({"placed_at": "2026-01-01T00:00:00"}, "time zone"),
        ({"lines": []}, "lines is empty"),
        ({"lines": [{**LINE, "quantity": 0}]}, "quantity"),
        ({"lines": [{**LINE, "quantity": True}]}, "bool"),
        ({"lines": [{**LINE, "quantity": 1.5}]}, "float"),
        ({"lines": [{**LINE, "unit_price": 9.9}]}, "unit_price"),
        ({"lines": [{**LINE, "unit_price": "-0.01"}]}, "unit_price"),
        ({"lines": [{**LINE, "unit_price": "NaN"}]}, "unit_price"),
        ({"lines": [{**LINE, "unit_price": "Infinity"}]}, "unit_price"),
        ({"lines": [{**LINE, "unit_price": "1_000"}]}, "unit_price"),
        ({"lines": [{**LINE, "sku": ""}]}, "sku is empty"),
    ],
)
def test_what_is_no_order_says_why(change: dict[str, Any], reason: str) -> None:
    """Refused at the door with a reason that names the place."""
    verdict = read_order(json.dumps({**GOOD, **change}).encode())
    assert isinstance(verdict, str)
    assert reason in verdict


@given(st.binary(max_size=300))
def test_no_bytes_break_the_door(text: bytes) -> None:
    """Whatever the line, there is an order or a reason."""
    assert isinstance(read_order(text), (Order, str))


def test_deep_and_long_lines_are_refused() -> None:
    """Bombs are answered like any other mistake."""
    assert isinstance(read_order(b"[" * 100_000), str)
    assert isinstance(read_order(b'{"order_id":"' + b"x" * 1_000_000 + b'"}'), str)


def test_the_same_content_in_another_spelling_is_the_same_order() -> None:
    """`repeated` and `conflict` are told apart by content."""
    first = read_order(json.dumps(GOOD).encode())
    again = read_order(json.dumps(dict(reversed(GOOD.items())), indent=2).encode())
    other = read_order(json.dumps({**GOOD, "email": "b@mail.example"}).encode())
    assert isinstance(first, Order)
    assert isinstance(again, Order)
    assert isinstance(other, Order)
    assert digest(first) == digest(again) != digest(other)


def test_the_shipped_file_is_what_the_generator_makes() -> None:
    """5,000 lines, from a fixed seed."""
    shipped = Path(__file__).parents[2] / "src/tidewire/cli/demo/orders-5000.jsonl"
    assert shipped.read_bytes() == b"\n".join(invented()) + b"\n"


def books(directory: Path, *statements: tuple[str, str]) -> Any:
    """Make the databases of a shop with one accepted, paid order, apply *statements*, and reconcile."""
    rows = {
        "orders": [
            "INSERT INTO orders VALUES (1, 'o-1', 'c-1', x'00', 'f:1', '{}')",
            "INSERT INTO lines VALUES ('f:1', 'accepted', '')",
        ],
        "payments": ["INSERT INTO payments VALUES (1, 'o-1', 'c-1', 1, '9.90', '')"],
        "inventory": ["INSERT INTO moves VALUES (1, 'o-1', 'c-1', 1, 2)", "INSERT INTO stock VALUES ('s', 2)"],
        "shipping": ["INSERT INTO parcels VALUES (1, 'o-1', 'c-1', 1)"],
        "notifications": ["INSERT INTO notices VALUES (1, 'o-1', 'c-1', 1, 'shipped')"],
    }
    found: dict[str, Any] = {}
    for service, tables in TABLES.items():
        connection = sqlite3.connect(directory / f"{service}.db")
        for statement in [*tables["sqlite"], *rows[service], *(sql for name, sql in statements if name == service)]:
            connection.execute(statement)
        for name, (whose, query) in QUERIES.items():
            if whose == service:
                found[name] = connection.execute(query).fetchall()
        connection.close()
    return reconcile(found, file="f", lines=1, letters=[])


def test_honest_books_balance(tmp_path: Path) -> None:
    """One order, its whole way, once."""
    assert books(tmp_path).balanced


@pytest.mark.parametrize(
    ("service", "sql", "finding"),
    [
        ("payments", "DELETE FROM payments", "lost"),
        ("inventory", "DELETE FROM moves", "lost"),
        ("shipping", "INSERT INTO parcels VALUES (2, 'o-1', 'c-1', 1)", "duplicated"),
        ("notifications", "DELETE FROM notices", "lost"),
        ("notifications", "INSERT INTO notices VALUES (2, 'o-9', 'c-1', 9, 'shipped')", "duplicated"),
        ("inventory", "UPDATE stock SET moved = 3", ""),
        ("notifications", "UPDATE notices SET kind = 'refused'", ""),
        ("orders", "DELETE FROM lines", "lost"),
    ],
)
def test_cooked_books_do_not_balance(tmp_path: Path, service: str, sql: str, finding: str) -> None:
    """Each kind of wrong is found, and counted where it has a count."""
    found = books(tmp_path, (service, sql))
    assert not found.balanced
    assert not finding or getattr(found, finding) > 0


def test_orders_of_a_customer_out_of_order_are_found(tmp_path: Path) -> None:
    """The order of first effects per customer is the order of acceptance."""
    found = books(
        tmp_path,
        ("orders", "INSERT INTO orders VALUES (2, 'o-2', 'c-1', x'01', 'f:2', '{}')"),
        ("payments", "UPDATE payments SET id = 9"),
        ("payments", "INSERT INTO payments VALUES (3, 'o-2', 'c-1', 2, '1', '')"),
    )
    assert 1 == found.out_of_order
