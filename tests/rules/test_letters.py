"""Retries and dead letters as messages."""

from __future__ import annotations

import base64

import msgspec
import pytest

from tidewire.model import DeadChannel, DeadLetter, Delivery, Failure, InboxChannel, Message, Reason, Topic
from tidewire.rules.letters import dead_letter, failure_in, redriven, retried
from tidewire.rules.retry import remember

HEADERS = {"ce-id": "1", "ce-type": "shop.order.placed", "tenant": "acme"}
MESSAGE = Message(Topic("shop.order"), "1", "shop", "k", HEADERS, b"\x00body\xff")
FAILURE = Failure(failures=3, first_error="A: a", last_error="B: b", first_at=1, last_at=2, counts={"A": 1, "B": 2})


def delivery(**changes: object) -> Delivery:
    return msgspec.structs.replace(Delivery(MESSAGE, "shop.order/1", 4, 17, stored_at=1_000_000), **changes)


def test_a_dead_letter_says_what_a_plain_message_was_read_as() -> None:
    """Its own headers do not, and they are not touched: a redrive reads it anew. Where they do, nothing is added."""
    plain = delivery(message=msgspec.structs.replace(MESSAGE, headers={"kind": "placed"}))
    verdict = DeadLetter(Reason.PERMANENT, "no")

    def headers_of(given: Delivery) -> set[str]:
        letter = dead_letter(given, verdict, group="billing", failure=None, member="m", event_type="shop.order.placed")
        assert given.message.headers.items() <= redriven(letter).headers.items()
        assert {"tw-redriven"} == redriven(letter).headers.keys() - given.message.headers.keys()
        return set(letter.headers)

    assert "dl-type" in headers_of(plain)
    assert "dl-type" not in headers_of(delivery())


def test_a_retry_carries_its_failures_and_its_time() -> None:
    """The record travels in a header, so that the next owner goes on counting."""
    message = retried(delivery(), group="billing", failure=FAILURE, not_before=99)
    assert (InboxChannel("shop.order", "billing"), 99) == (message.to, message.not_before)
    assert FAILURE == failure_in(message.headers)
    assert (MESSAGE.id, MESSAGE.body, "acme") == (message.id, message.body, message.headers["tenant"])


def test_a_damaged_failure_header_counts_as_none() -> None:
    """Hostile bytes never stop a consumer."""
    assert failure_in({"tw-failure": "{"}) is None
    assert failure_in({"tw-failure": "[" * 100_000}) is None


def test_a_dead_letter_keeps_bytes_and_headers_and_says_why() -> None:
    """All that a person needs at night is in it; the event's own headers and body are untouched."""
    verdict = DeadLetter(Reason.EXHAUSTED, "failed 3 times")
    letter = dead_letter(
        delivery(foreign={"raw": b"\xff"}), verdict, group="billing", failure=FAILURE, member="billing-1"
    )
    headers = dict(letter.headers)
    assert DeadChannel("shop.order", "billing") == letter.to
    assert MESSAGE.body == letter.body
    assert HEADERS == {name: headers.pop(name) for name in HEADERS}
    assert base64.b64encode(b"\xff").decode() == headers.pop("dl-foreign-raw")
    assert {
        "dl-topic": "shop.order",
        "dl-group": "billing",
        "dl-key": "k",
        "dl-position": "shop.order/1:17",
        "dl-published": "1970-01-01T00:00:01+00:00",
        "dl-attempts": "3",
        "dl-first-failed": "1970-01-01T00:00:00.000001+00:00",
        "dl-last-failed": "1970-01-01T00:00:00.000002+00:00",
        "dl-reason": "exhausted",
        "dl-detail": "failed 3 times",
        "dl-first-error": "A: a",
        "dl-last-error": "B: b",
        "dl-error-counts": '{"A":1,"B":2}',
        "dl-consumer": "billing-1",
    } == headers


def test_a_redrive_keeps_the_id_and_begins_a_new_cycle() -> None:
    """Same id, no failures, the number of redrives; only its group will see it."""
    letter = dead_letter(
        delivery(), DeadLetter(Reason.EXHAUSTED, "x"), group="billing", failure=FAILURE, member="billing-1"
    )
    again = redriven(letter)
    assert (InboxChannel("shop.order", "billing"), "1") == (again.to, again.id)
    assert {**HEADERS, "tw-redriven": "1"} == again.headers
    assert "2" == redriven(msgspec.structs.replace(again, to=letter.to)).headers["tw-redriven"]


def test_only_a_dead_letter_is_redriven() -> None:
    """Anything else is a mistake of the caller."""
    with pytest.raises(ValueError, match="only a dead letter"):
        redriven(MESSAGE)


@pytest.mark.parametrize(
    "text",
    [
        '{"failures":2,"first_at":-99999999999999999}',
        '{"failures":2,"last_at":9223372036854775807}',
        '{"failures":-1}',
        '{"failures":99999999999}',
        '{"failures":1,"counts":{"x":-5}}',
        '{"failures":1,"last_error":"' + "x" * 70_000 + '"}',
        '{"failures":1,"last_error":"\ud800"}',
    ],
)
def test_a_failure_record_that_cannot_be_ours_counts_as_none(text: str) -> None:
    """Numbers and times that no run of ours writes are not believed, for a dead letter is made of them."""
    assert failure_in({"tw-failure": text}) is None


def test_a_dead_letter_of_an_error_that_is_no_text_can_be_stored() -> None:
    """An undecodable file name in an error is escaped: a header that cannot be written would hold the event."""
    failure = remember(None, FileNotFoundError("\udcff"), now_us=1)
    verdict = DeadLetter(Reason.EXHAUSTED, "no \ud800")
    headers = dead_letter(delivery(), verdict, group="g", failure=failure, member="m").headers
    assert ("no \\ud800", "FileNotFoundError: \\udcff") == (headers["dl-detail"], headers["dl-last-error"])
    assert retried(delivery(), group="g", failure=failure, not_before=None).headers["tw-failure"].isascii()
