"""Messages that the runtime itself writes: retries and dead letters. The event's own headers and body travel on
untouched; what is added has the prefixes ``tw-`` (while it may still succeed) and ``dl-`` (given up)."""

from __future__ import annotations

import base64
from collections.abc import Mapping
from datetime import timedelta

import msgspec

from tidewire.clock import moment
from tidewire.model import (
    Address,
    DeadChannel,
    DeadLetter,
    Delivery,
    Failure,
    InboxChannel,
    Message,
    Topic,
)

__all__ = [
    "DEDUP_WINDOW",
    "DISCARDED",
    "EDITED_FROM",
    "FAILURE",
    "dead_letter",
    "discarded",
    "failure_in",
    "redriven",
    "retried",
    "topic_of",
]

FAILURE = "tw-failure"
DISCARDED = "tw-discarded"
EDITED_FROM = "tw-edited-from"
DEDUP_WINDOW = timedelta(days=35)
"""How long inbox marks live; what is older may take effect again."""
_FAILURE_MAX = 65_536  # characters; ours are far smaller, even with every character escaped
_AT_MAX = 253_402_300_800_000_000  # µs to the end of the year 9999
_encode = msgspec.json.Encoder().encode
_decode_failure = msgspec.json.Decoder(Failure).decode


def topic_of(address: Address) -> str:
    """Return the topic that an address belongs to."""
    return address.name if isinstance(address, Topic) else address.topic


def failure_in(headers: Mapping[str, str]) -> Failure | None:
    """Return the failure record that a moved message carries, or None; a damaged or forged one counts as none."""
    text = headers.get(FAILURE)
    if text is None or len(text) > _FAILURE_MAX:
        return None
    try:
        failure = _decode_failure(text)
    except (msgspec.MsgspecError, RecursionError, UnicodeEncodeError):
        return None
    numbers = (failure.failures, failure.starts, *failure.counts.values())
    sound = all(0 <= number < 1 << 31 for number in numbers)
    return failure if sound and all(0 <= at < _AT_MAX for at in (failure.first_at, failure.last_at)) else None


def retried(delivery: Delivery, *, group: str, failure: Failure | None, not_before: int | None) -> Message:
    """Return the message that brings a delivery back through its group's inbox channel, not before its time."""
    message = delivery.message
    headers = {name: value for name, value in message.headers.items() if name != FAILURE}
    if failure is not None:
        headers[FAILURE] = _encode(failure).decode()
    return msgspec.structs.replace(
        message, to=InboxChannel(topic_of(message.to), group), headers=headers, not_before=not_before
    )


def dead_letter(
    delivery: Delivery,
    verdict: DeadLetter,
    *,
    group: str,
    failure: Failure | None,
    member: str,
    event_type: str = "",
) -> Message:
    """Return the dead letter of a delivery: original bytes and headers, and a failure record of fixed size.

    *event_type*: what it was read as, where its own headers do not say so.
    """
    message = delivery.message
    headers = {name: value for name, value in message.headers.items() if name != FAILURE}
    for name, raw in (delivery.foreign or {}).items():
        headers[f"dl-foreign-{name}"] = base64.b64encode(raw).decode()
    failures = 0 if failure is None else failure.failures
    headers["dl-topic"] = topic_of(message.to)
    headers["dl-group"] = group
    headers["dl-reason"] = verdict.reason.value
    headers["dl-detail"] = verdict.detail[:1_024].encode("utf-8", "backslashreplace").decode()
    headers["dl-position"] = f"{delivery.lane}:{delivery.position}"
    headers["dl-attempts"] = str(max(delivery.attempt + failures - (1 if failures else 0), 1))
    headers["dl-consumer"] = member
    if event_type and "ce-type" not in headers:
        headers["dl-type"] = event_type
    if message.key is not None:
        headers["dl-key"] = message.key
    if delivery.stored_at is not None:
        headers["dl-published"] = moment(delivery.stored_at).isoformat()
    if failure is not None and failures:
        headers["dl-first-failed"] = moment(failure.first_at).isoformat()
        headers["dl-last-failed"] = moment(failure.last_at).isoformat()
        headers["dl-first-error"] = failure.first_error
        headers["dl-last-error"] = failure.last_error
        headers["dl-error-counts"] = _encode(failure.counts).decode()
    return msgspec.structs.replace(
        message, to=DeadChannel(topic_of(message.to), group), headers=headers, not_before=None
    )


def redriven(letter: Message) -> Message:
    """Return a dead letter as it goes back to its group: same id, a new cycle of attempts, the count of redrives."""
    if not isinstance(letter.to, DeadChannel):
        raise ValueError(f"only a dead letter can be redriven, not a message at {letter.to}")
    times = letter.headers.get("tw-redriven", "0")
    headers = {name: value for name, value in letter.headers.items() if not name.startswith("dl-") and name != FAILURE}
    headers["tw-redriven"] = str(int(times) + 1 if times.isdigit() else 1)
    return msgspec.structs.replace(
        letter, to=InboxChannel(letter.to.topic, letter.to.group), headers=headers, not_before=None
    )


def discarded(letter: Message, reason: str) -> Message:
    """Return the note that tells a group to wait no longer for a dead letter of a held key: no handler runs.

    Only the group knows its held keys, so a discard goes the way of a redrive; it carries no body.
    """
    headers = {**redriven(letter).headers, DISCARDED: reason}
    return msgspec.structs.replace(redriven(letter), headers=headers, body=b"")
