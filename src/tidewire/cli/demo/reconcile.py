"""The books: what the services' databases say, held against each other. Reads rows, never logs or counters."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import msgspec

from tidewire.cli.demo.shop.services import SERVICES
from tidewire.model import Browsed, DeadChannel

__all__ = ["QUERIES", "Books", "dead_ends", "reconcile"]

QUERIES: Mapping[str, tuple[str, str]] = {
    "lines": ("orders", "SELECT line, verdict FROM lines"),
    "orders": ("orders", "SELECT order_id, number FROM orders"),
    "payments": ("payments", "SELECT order_id, customer_id, number, refused FROM payments ORDER BY id"),
    "moves": ("inventory", "SELECT order_id, customer_id, number, pieces FROM moves ORDER BY id"),
    "stock": ("inventory", "SELECT moved FROM stock"),
    "parcels": ("shipping", "SELECT order_id, customer_id, number, '' FROM parcels ORDER BY id"),
    "notices": ("notifications", "SELECT order_id, customer_id, number, kind FROM notices ORDER BY id"),
}
"""What the books are made of: whose database, and what is read there."""
_FIRST = 10
_UNDELIVERABLE = "notifications"
_SENTENCES = {
    "C2": "never arrived",
    "C5": "took effect more than once",
    "C3": "took effect without its cause",
    "C7": "came after a later order of its customer",
}


class DeadEnd(msgspec.Struct, frozen=True):
    """A dead letter: whose, for which order, and why."""

    group: str
    order_id: str
    reason: str
    detail: str


class Books(msgspec.Struct, frozen=True, kw_only=True):
    """What the databases add up to. *problems* name what does not, the first few of each kind."""

    accepted: int
    malformed: int
    repeated: int
    conflict: int
    paid: int
    refused: int
    stock_moved: int
    shipped: int
    notified: int
    dead_letters: int
    lost: int
    duplicated: int
    out_of_order: int
    problems: Sequence[str]

    @property
    def balanced(self) -> bool:
        """Whether every accepted order went its whole way, once, in order, and all sums agree."""
        return not self.problems


def reconcile(found: Mapping[str, Sequence[Any]], *, file: str, lines: int, letters: Sequence[DeadEnd]) -> Books:
    """Add up what was *found*: the rows that `QUERIES` ask for. *lines*: how many lines of *file* were handed in; more
    may have come over HTTP."""
    answers = found["lines"]
    verdicts = Counter(verdict for _, verdict in answers)
    orders = {row[0]: row[1] for row in found["orders"]}
    payments, moves, parcels, notices = (found[name] for name in ("payments", "moves", "parcels", "notices"))
    paid = {row[0] for row in payments if not row[3]}
    refused = {row[0] for row in payments if row[3]}
    tally = Tally()
    tally.judge("payments", payments, set(orders))
    tally.judge("inventory", moves, paid)
    tally.judge("shipping", parcels, paid)
    ends = [letter.order_id for letter in letters if letter.group == _UNDELIVERABLE]
    tally.judge("notifications", notices, paid | refused, ends=ends, streams=3)
    tally.wrong_kind(notices, paid, refused)
    tally.letters(letters)
    tally.stock(moves, found["stock"])
    tally.door(verdicts, len(orders))
    tally.file(sum(line.startswith(f"{file}:") for line, _ in answers), lines)
    return Books(
        accepted=len(orders),
        malformed=verdicts["malformed"],
        repeated=verdicts["repeated"],
        conflict=verdicts["conflict"],
        paid=len(paid),
        refused=len(refused),
        stock_moved=len(moves),
        shipped=len({row[0] for row in parcels}),
        notified=len({row[0] for row in notices}),
        dead_letters=len(letters),
        lost=tally.lost,
        duplicated=tally.duplicated,
        out_of_order=tally.out_of_order,
        problems=tally.problems,
    )


class Tally:
    """Counts what is wrong and keeps the first few sentences of each kind."""

    def __init__(self) -> None:
        self.lost = self.duplicated = self.out_of_order = 0
        self.problems: list[str] = []

    def judge(
        self, service: str, rows: Sequence[Any], expected: set[str], *, ends: Sequence[str] = (), streams: int = -1
    ) -> None:
        """Each expected order took effect once, none besides, and per customer in the order of acceptance.

        The checkers of the simulation say so. *ends*: orders that are dead letters instead; *streams*: the column
        that tells what keeps its own order.
        """
        from tidewire.testing.simulation.checkers import CHECKS, Audience, History, Op  # not needed to open the shop

        history = History([Audience(of="order", group=service, handler=service)])
        for order in sorted(expected):
            history.add(Op(f="publish", event=order, of="order"))
        for place, row in enumerate(rows):
            order, customer, number = row[:3]
            stream = "" if streams < 0 else str(row[streams])
            effect = Op(f="effect", event=order, key=customer, n=number, stream=stream, number=place, group=service)
            history.add(msgspec.structs.replace(effect, handler=service))
        for order in ends:
            history.add(Op(f="effect", event=order, group=service, handler=service))
        found = {check: [one.event for one in CHECKS[check](history)] for check in _SENTENCES}
        self.lost += len(found["C2"])
        self.duplicated += len(found["C5"]) + len(found["C3"])
        self.out_of_order += len(found["C7"])
        for check, orders in found.items():
            self._say(orders, f"{service}: {{}} {_SENTENCES[check]}")

    def wrong_kind(self, notices: Sequence[Any], paid: set[str], refused: set[str]) -> None:
        """A paid order is told of its parcel, a refused one of its refusal."""
        for order, _, _, kind in notices:
            if order not in (paid if kind == "shipped" else refused):
                self.problems.append(f"notifications: {order} was told {kind!r}, which is not so")

    def letters(self, letters: Sequence[DeadEnd]) -> None:
        """Only mail that cannot be delivered may end in the dead channel, with its reason."""
        for letter in letters:
            if letter.group != _UNDELIVERABLE or not letter.reason:
                self.problems.append(f"{letter.group}: {letter.order_id} is a dead letter ({letter.detail})")

    def stock(self, moves: Sequence[Any], moved: Sequence[Any]) -> None:
        """The pieces on the moves are the pieces off the shelves."""
        pieces, left = sum(int(row[3]) for row in moves), sum(int(row[0]) for row in moved)
        if left != pieces:
            self.problems.append(f"inventory: {left} pieces have left the shelves, the moves say {pieces}")

    def door(self, verdicts: Counter[str], orders: int) -> None:
        """Every accepted line has an order."""
        if verdicts["accepted"] != orders:
            self.problems.append(f"orders: {verdicts['accepted']} lines were accepted, but there are {orders} orders")

    def file(self, answered: int, lines: int) -> None:
        """Every line of the file that was handed in has one verdict."""
        if answered != lines:
            self.lost += max(0, lines - answered)
            self.problems.append(f"orders: {lines} lines were handed in, {answered} have a verdict")

    def _say(self, orders: Sequence[str], sentence: str) -> None:
        self.problems += [sentence.format(order) for order in orders[:_FIRST]]
        if len(orders) > _FIRST:
            self.problems.append(sentence.format(f"… and {len(orders) - _FIRST} more"))


async def dead_ends(transport: Any) -> list[DeadEnd]:
    """Read every group's dead letters from the broker, without consuming them."""
    found: list[DeadEnd] = []
    for name, service in SERVICES.items():
        for topic in sorted({handler.event.topic for handler in service.handlers}):
            after: Any = None
            while letters := await transport.browse(DeadChannel(topic, name), after=after, limit=500):
                found += [_dead_end(name, letter) for letter in letters]
                after = letters[-1].position
    return found


def _dead_end(group: str, letter: Browsed) -> DeadEnd:
    headers = letter.message.headers
    try:
        order = msgspec.json.decode(letter.message.body, type=dict[str, Any]).get("order_id", "")
    except msgspec.MsgspecError:
        order = ""
    return DeadEnd(group, str(order), headers.get("dl-reason", ""), headers.get("dl-detail", ""))
