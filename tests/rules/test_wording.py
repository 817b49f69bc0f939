"""Guarantees in sentences, and what functions say about themselves."""

from __future__ import annotations

from datetime import timedelta
from functools import wraps
from typing import TYPE_CHECKING, Any

import pytest

from tidewire import Context, Retry, event
from tidewire.rules.functions import reads_tx, returned_events
from tidewire.rules.wording import in_words, retry_in_words

if TYPE_CHECKING:
    from nowhere import Unknown  # type: ignore[import-not-found]


@event("shop.order.placed", key="order_id")
class OrderPlaced:
    """One event."""

    order_id: str


@event("shop.payment.taken", key="order_id")
class PaymentTaken:
    """Another."""

    order_id: str


@pytest.mark.parametrize(
    ("seconds", "words"),
    [
        (0, "0 s"), (0.25, "250 ms"), (1, "1 s"), (1.5, "1.5 s"), (64, "1 min 4 s"), (600, "10 min"),
        (3_661, "1 h 1 min"), (35 * 86_400, "35 d"), (90_061, "1 d 1 h"),
    ],
)  # fmt: skip
def test_durations_in_words(seconds: float, words: str) -> None:
    """Two units at most, and none that is empty."""
    assert words == in_words(timedelta(seconds=seconds))


def test_a_retry_policy_in_words() -> None:
    """The actual waits and their sum; a long list is cut; one attempt is no retry."""
    assert "1 attempt, no retry" == retry_in_words(Retry(attempts=1))
    said = retry_in_words(Retry(attempts=3))
    assert said.startswith("3 attempts, after waits of up to 1 s, 4 s (")
    assert said.endswith("5 s in all")
    assert "10 min, 10 min, …" in retry_in_words(Retry(attempts=50))


def test_what_a_function_returns_is_read_from_its_annotation() -> None:
    """One event, one or none, several, a list; what cannot be resolved, or says nothing, is nothing."""

    async def one(order: OrderPlaced) -> OrderPlaced: ...  # type: ignore[empty-body]

    def several(order: Unknown) -> list[PaymentTaken | OrderPlaced] | None: ...

    def unknown(order: OrderPlaced) -> Unknown: ...

    def nothing(order: OrderPlaced) -> None: ...

    def silent(order: Any): ...  # type: ignore[no-untyped-def]

    @wraps(one)
    def wrapped(*arguments: Any) -> Any: ...

    names = [[found.type for found in returned_events(f)] for f in (one, several, unknown, nothing, silent, wrapped)]
    both = ["shop.order.placed", "shop.payment.taken"]
    assert [["shop.order.placed"], both, [], [], [], ["shop.order.placed"]] == names


def test_a_function_that_reads_tx_is_known() -> None:
    """By its own code, without running it."""

    async def writes(order: OrderPlaced, context: Context) -> None:
        await context.tx.execute("…")

    def reads(order: OrderPlaced) -> str:
        return order.order_id

    assert [True, False, False] == [reads_tx(writes), reads_tx(reads), reads_tx(print)]
