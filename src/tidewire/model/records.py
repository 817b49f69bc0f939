"""What a store remembers, and what observers hear."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal, TypeAlias

import msgspec

from tidewire.model.messages import Message

__all__ = [
    "Fact",
    "FactKind",
    "Failure",
    "Guard",
    "Held",
    "InboxState",
    "Mark",
    "OutboxState",
    "Pending",
    "Stuck",
]


class Mark(msgspec.Struct, frozen=True, gc=False):
    """The key of an inbox mark: (group, handler, run, source, event id)."""

    group: str
    handler: str
    run: int
    source: str
    event_id: str


class Guard(msgspec.Struct, frozen=True, gc=False):
    """A lane that must still be owned under *epoch* when a unit commits."""

    group: str
    lane: str
    epoch: int


class Pending(msgspec.Struct, frozen=True):
    """An outbox row that waits to be published: of a key, *row* grows in commit order."""

    row: int
    message: Message
    attempts: int = 0


class Stuck(msgspec.Struct, frozen=True):
    """A quarantined outbox row: the broker refused it *attempts* times, or it waits behind one that was refused.

    *at* is when it was put there, in microseconds since 1970; *detail* is the broker's word.
    """

    row: int
    message: Message
    attempts: int
    detail: str
    at: int


class OutboxState(msgspec.Struct, frozen=True, kw_only=True):
    """How an outbox is: rows that are *ready* to leave, *delayed*, and *stuck* (*stuck_since*: when the oldest of those
    was put there, µs since 1970; *behind*: how many of them the broker has not refused, which wait behind one that it
    has), and whether the relay of a live process has its lease (None: nobody can tell). *next_due*: when the first
    delayed row may leave, µs since 1970. *oldest_write*: for how many µs the oldest transaction that has written
    something is open, where that is known."""

    ready: int
    delayed: int
    stuck: int
    stuck_since: int | None
    relayed: bool | None
    behind: int = 0
    next_due: int | None = None
    oldest_write: int | None = None


class InboxState(msgspec.Struct, frozen=True, kw_only=True):
    """How the inbox marks of one group are: how many, and when the oldest was stored, µs since 1970."""

    group: str
    marks: int
    oldest: int


class Held(msgspec.Struct, frozen=True):
    """One event of a held key: *state* says in which channel it waits; *due* (µs since 1970) while ``inbox``.

    Rows of a key are ordered by *sequence*, which the store gives at the first `put`; the key is free when no
    row is left.
    """

    group: str
    topic: str
    key: str
    source: str
    event_id: str
    state: Literal["inbox", "dead"]
    due: int | None = None
    sequence: int = 0


class Failure(msgspec.Struct, frozen=True):
    """What is remembered of an event's failed attempts: fixed size, whatever their number.

    *starts* counts recorded starts of a suspect that have not ended. *counts* is by error type.
    """

    failures: int = 0
    starts: int = 0
    first_error: str = ""
    last_error: str = ""
    first_at: int = 0
    last_at: int = 0
    counts: Mapping[str, int] = msgspec.field(default_factory=dict[str, int])


FactKind: TypeAlias = Literal[
    "published",
    "processed",
    "skipped",
    "known",
    "discarded",
    "retried",
    "dead_lettered",
    "settled",
    "lost",
    "rebuilt",
    "quarantined",
    "long_transaction",
]
"""What can have happened."""


class Fact(msgspec.Struct, frozen=True, gc=False):
    """Something that happened to an event: ``published``, ``processed``, ``skipped``, ``known`` (a duplicate that
    changed nothing), ``discarded`` (an operator gave it up), ``retried``, ``dead_lettered``, ``settled``, ``lost``,
    ``quarantined`` (its row in the outbox was put aside: the broker refuses it); or to a group's member: ``rebuilt``,
    with its topics and without an event; or to the store: ``long_transaction``, without an event.

    *at* is wall time in microseconds; *took_us* how long the handler ran, for ``processed``, or the transaction
    has been open, for ``long_transaction``.
    """

    kind: FactKind
    type: str
    event_id: str
    topic: str
    group: str = ""
    at: int = 0
    took_us: int = 0
    detail: str = ""
