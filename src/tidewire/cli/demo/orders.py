"""What an order is: reading lines that somebody else wrote, and making the file that the demo ships."""

from __future__ import annotations

import json
import random
import re
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from hashlib import blake2b

import msgspec

from tidewire.cli.demo.shop.events import Line, OrderAccepted
from tidewire.rules.names import has_control

__all__ = ["LINE_BYTES_MAX", "Order", "accepted", "digest", "invented", "read_order"]

LINE_BYTES_MAX = 262_144
_TEXT_MAX = 1_000
_QUANTITY_MAX = 2**63 - 1
_PRICE = re.compile(r"[+-]?(?:[0-9]{1,60}(?:\.[0-9]{0,60})?|\.[0-9]{1,60})(?:[eE][+-]?[0-9]{1,3})?")


class OrderLine(msgspec.Struct, frozen=True):
    """One line of an order as it is handed in; the price is a text, so that no digit is lost."""

    sku: str
    quantity: int
    unit_price: str


class Order(msgspec.Struct, frozen=True):
    """An order as it is handed in."""

    order_id: str
    customer_id: str
    email: str
    currency: str
    placed_at: datetime
    lines: list[OrderLine]


_decoder = msgspec.json.Decoder(Order)


def read_order(text: bytes) -> Order | str:
    """Return the order in *text*, or why it is none. Never raises, whatever the bytes."""
    if len(text) > LINE_BYTES_MAX:
        return f"longer than {LINE_BYTES_MAX} bytes"
    try:
        order = _decoder.decode(text)
    except (msgspec.MsgspecError, UnicodeError, ValueError) as error:
        return str(error)[:200]
    except (RecursionError, MemoryError):
        return "nested too deeply"
    return _what_is_wrong(order) or order


def _what_is_wrong(order: Order) -> str:
    for name in ("order_id", "customer_id", "email", "currency"):
        problem = _text_problem(getattr(order, name))
        if problem:
            return f"{name} {problem}"
    if order.currency != "EUR":
        return f"currency must be EUR, not {order.currency[:10]!r}"
    if order.placed_at.tzinfo is None:
        return "placed_at has no time zone"
    if not order.lines:
        return "lines is empty"
    for number, line in enumerate(order.lines):
        problem = _what_is_wrong_in(line)
        if problem:
            return f"lines[{number}].{problem}"
    return ""


def _what_is_wrong_in(line: OrderLine) -> str:
    problem = _text_problem(line.sku)
    if problem:
        return f"sku {problem}"
    if not 1 <= line.quantity <= _QUANTITY_MAX:
        return f"quantity must be 1 to {_QUANTITY_MAX}"
    if not _PRICE.fullmatch(line.unit_price) or Decimal(line.unit_price) < 0:
        return f"unit_price must be a finite decimal from 0: {line.unit_price[:20]!r}"
    return ""


def _text_problem(text: str) -> str:
    if not text.strip():
        return "is empty"
    if len(text) > _TEXT_MAX:
        return f"is longer than {_TEXT_MAX} characters"
    return "holds control characters" if has_control(text) else ""


def digest(order: Order) -> bytes:
    """Return what tells two orders of one id apart: their content, whatever their spelling in JSON."""
    return blake2b(msgspec.json.encode(order), digest_size=16).digest()


def accepted(order: Order, number: int) -> OrderAccepted:
    """Return the event that *order* was accepted as the shop's *number*-th."""
    lines = [Line(line.sku, line.quantity, Decimal(line.unit_price)) for line in order.lines]
    total = sum((line.unit_price * line.quantity for line in lines), Decimal(0))
    return OrderAccepted(order.order_id, order.customer_id, number, order.email, order.currency, lines, total)


# --- the shipped file ---------------------------------------------------------------------------------------------

_NAMES = ["ada", "björk", "chen", "dilnoza", "emeka", "fatima", "grzegorz", "håkon", "ines", "jürgen", "kaito", "лев"]
_SKUS = [f"sku-{number:03}" for number in range(120)]
_MALFORMED = [
    b"{not json",
    b'{"order_id":"half","customer_id":',
    b"[]",
    b'"an order"',
    b"\xff\xfe\x00",
    b'{"order_id":"","customer_id":"c","email":"a@b.example","currency":"EUR","placed_at":"2026-01-01T00:00:00Z","lines":[]}',
]


def invented(count: int = 5_000, seed: int = 20_261_124) -> Iterator[bytes]:
    """Return *count* varied lines, the same for one seed: orders, a few repeated, changed, unpayable or malformed."""
    chance = random.Random(seed)  # noqa: S311 - a shop's orders are no secret
    moment = datetime(2026, 11, 1, 8, tzinfo=UTC)
    earlier: list[dict[str, object]] = []
    for number in range(count):
        moment += timedelta(milliseconds=chance.randrange(50, 90_000))
        kind = chance.random()
        if kind < 0.015 and earlier:
            yield _text(chance.choice(earlier))
        elif kind < 0.025 and earlier:
            yield _text({**chance.choice(earlier), "email": "somebody.else@shop.example"})
        elif kind < 0.04:
            yield _malformed(chance, _order(chance, number, moment))
        else:
            order = _order(chance, number, moment)
            earlier.append(order)
            yield _text(order)


def _order(chance: random.Random, number: int, moment: datetime) -> dict[str, object]:
    customer = chance.randrange(400) if chance.random() < 0.9 else chance.randrange(5)
    name = _NAMES[customer % len(_NAMES)]
    draw = chance.random()
    domain = "nowhere.invalid" if draw < 0.01 else "blocked.example" if draw < 0.04 else "mail.example"
    lines = [
        {
            "sku": chance.choice(_SKUS),
            "quantity": chance.choice([1, 1, 1, 2, 3, 12]),
            "unit_price": f"{Decimal(chance.randrange(0, 15_000)) / 100:.2f}",
        }
        for _ in range(chance.choice([1, 1, 2, 3, 5, 8]))
    ]
    if chance.random() < 0.02:
        lines[0] = {**lines[0], "quantity": 400, "unit_price": "49.90"}
    return {
        "order_id": f"order-{number:06}",
        "customer_id": f"customer-{customer:03}",
        "email": f"{name}.{customer}@{domain}",
        "currency": "EUR",
        "placed_at": moment.isoformat().replace("+00:00", "Z"),
        "lines": lines,
    }


def _malformed(chance: random.Random, order: dict[str, object]) -> bytes:
    line = {"sku": "sku-001", "quantity": 1, "unit_price": "1.00"}
    broken = chance.choice(
        [
            {**order, "placed_at": "2026-02-30T10:00:00Z"},
            {**order, "placed_at": "yesterday"},
            {**order, "lines": []},
            {**order, "lines": [{**line, "quantity": 0}]},
            {**order, "lines": [{**line, "quantity": True}]},
            {**order, "lines": [{**line, "unit_price": "NaN"}]},
            {**order, "lines": [{**line, "unit_price": 9.9}]},
            {**order, "lines": [{**line, "unit_price": "-1"}]},
            {**order, "customer_id": " "},
            {**order, "currency": "XXX"},
            None,
        ]
    )
    return chance.choice(_MALFORMED) if broken is None else _text(broken)


def _text(order: dict[str, object]) -> bytes:
    return json.dumps(order, ensure_ascii=False, separators=(",", ":")).encode()
