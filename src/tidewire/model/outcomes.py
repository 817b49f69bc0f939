"""What became of a message: receipts, settlements, outcomes, and why a group gave up."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import timedelta
from enum import Enum
from typing import Literal, TypeAlias

import msgspec

from tidewire.model.messages import ZERO, Delivery, Message

__all__ = [
    "DeadLetter",
    "Handled",
    "Move",
    "Outcome",
    "Reason",
    "Receipt",
    "Release",
    "RetryLater",
    "Settlement",
    "Unavailable",
]


class Receipt(msgspec.Struct, frozen=True, gc=False):
    """What the broker says of one published message.

    ``stored`` · ``duplicate``: the broker recognised the id (success) · ``rejected``: certainly not stored ·
    ``unknown``: may be stored; publish again with the same id. *reason* is a short stable word for a rejection:
    ``too_large``, ``unknown_topic``, ``full``, ``after_failure`` (an earlier message of its key in the same call
    was not stored), ``invalid``. *detail* is for people.
    """

    id: str
    status: Literal["stored", "duplicate", "rejected", "unknown"]
    reason: str = ""
    detail: str = ""

    @property
    def ok(self) -> bool:
        """Whether the broker has the message for certain."""
        return self.status == "stored" or self.status == "duplicate"


class Release(msgspec.Struct, frozen=True):
    """Give a delivery back.

    With ordering by key *delay* must be zero, and the caller releases with it every later unsettled delivery of
    its key. *counted* False spends no attempt (graceful stop).
    """

    delivery: Delivery
    delay: timedelta = ZERO
    counted: bool = True


class Move(msgspec.Struct, frozen=True):
    """Hand on: *messages* become durable, *then* the delivery is acked. If they do not, it stays unsettled."""

    delivery: Delivery
    messages: Sequence[Message]


class Settlement(msgspec.Struct, frozen=True, gc=False):
    """What became of one settled delivery.

    ``settled`` · ``lost``: another owner has it, nothing was changed · ``failed``: a move whose messages were
    not all stored (*receipts* say which); the delivery is still ours and unsettled.
    """

    delivery: Delivery
    status: Literal["settled", "lost", "failed"]
    receipts: Sequence[Receipt] = ()


class Reason(Enum):
    """Why a group gave up on a message; the value is the ``dl-reason`` header."""

    PERMANENT = "permanent"
    EXHAUSTED = "exhausted"
    UNDECODABLE = "undecodable"
    UNKNOWN_TYPE = "unknown-type"
    UNKNOWN_VERSION = "unknown-version"
    CONFLICT = "conflict"
    POISON = "poison"
    HELD = "held"
    EXPIRED = "expired"
    LOST_LEASE = "lost-lease"


class Handled(msgspec.Struct, frozen=True):
    """The event took effect, or had done so before, or concerns nobody here."""


class RetryLater(msgspec.Struct, frozen=True):
    """The handler failed; try again after *delay*."""

    delay: timedelta
    error: BaseException


class Unavailable(msgspec.Struct, frozen=True):
    """Nobody's failure: a database, registry or broker is down. Never counted; the subscription pauses."""

    delay: timedelta
    error: BaseException


class DeadLetter(msgspec.Struct, frozen=True):
    """The group gives up on the event, for *reason*; *detail* is the sentence a person reads."""

    reason: Reason
    detail: str
    error: BaseException | None = None


Outcome: TypeAlias = Handled | RetryLater | Unavailable | DeadLetter
