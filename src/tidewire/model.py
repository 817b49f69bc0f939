"""The values everything else speaks in: frozen, typed, no behaviour beyond a property or two.

A *message* travels; a *delivery* is one handing-over of it; an *outcome* is what became of that; the three
ways to settle are *ack*, `Release` and `Move`. Words are fixed in ``docs/words.md``.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import datetime, timedelta
from enum import Enum
from typing import Literal, TypeAlias

import msgspec

__all__ = [
    "Act",
    "Address",
    "Browsed",
    "Capabilities",
    "Change",
    "DeadChannel",
    "DeadLetter",
    "Delivery",
    "Envelope",
    "Fact",
    "Found",
    "GroupInfo",
    "GroupSpec",
    "Guard",
    "Handled",
    "Held",
    "InboxChannel",
    "LaneEvent",
    "Mark",
    "Message",
    "Move",
    "Outcome",
    "Pending",
    "Receipt",
    "Release",
    "RetryLater",
    "Settlement",
    "Standing",
    "Stats",
    "Stuck",
    "Subscription",
    "Topic",
    "TopicInfo",
    "TopicSpec",
    "Unavailable",
]

ZERO = timedelta(0)


# --- where a message goes -------------------------------------------------------------------------------------


class Topic(msgspec.Struct, frozen=True, gc=False):
    """A named fan-out: each group on it gets its own copy."""

    name: str


class InboxChannel(msgspec.Struct, frozen=True, gc=False):
    """The private channel of (topic, group): retries, delays and redrives; no other group ever sees them."""

    topic: str
    group: str


class DeadChannel(msgspec.Struct, frozen=True, gc=False):
    """The dead letters of (topic, group), kept until a person redrives or discards them."""

    topic: str
    group: str


Address: TypeAlias = Topic | InboxChannel | DeadChannel


class Message(msgspec.Struct, frozen=True):
    """What travels: headers and bytes.

    *headers* carry the whole envelope in the core's spelling (see `tidewire.rules.cloudevents`): ``ce-id``,
    ``ce-source``, ``ce-type`` …, ``content-type``, ``traceparent``, and application headers; names are
    lower-case. *id*, *source* and *key* repeat what transports and stores need without parsing.
    *id* and *source* are empty for a foreign message that has none; *key* is None where nothing is to be ordered.
    *not_before* delays the hand-out: integer microseconds since 1970, or None for at once.
    """

    to: Address
    id: str
    source: str
    key: str | None
    headers: Mapping[str, str]
    body: bytes
    not_before: int | None = None


class Delivery(msgspec.Struct, frozen=True):
    """One handing-over of a message to one member of a group.

    *lane* and *epoch* say by what right this member has it; *position* is opaque to the core, unique within
    (message address, lane). *attempt* starts at 1 and grows by one per counted release and per redelivery after
    a crash. *suspect*: an earlier hand-out may have ended without settling. *foreign* holds header values that
    are not text; they travel on into a dead letter. *stored_at*: when the broker stored it, in microseconds
    since 1970, or None where the broker does not say.
    """

    message: Message
    lane: str
    epoch: int
    position: int | str
    attempt: int = 1
    suspect: bool = False
    foreign: Mapping[str, bytes] | None = None
    stored_at: int | None = None


class Envelope(msgspec.Struct, frozen=True):
    """An event's context attributes: those of CloudEvents 1.0, and what ties events together."""

    id: str
    source: str
    type: str
    time: datetime
    version: int = 1
    key: str | None = None
    subject: str | None = None
    dataschema: str | None = None
    datacontenttype: str = "application/json"
    correlationid: str | None = None
    causationid: str | None = None
    traceparent: str | None = None
    tracestate: str | None = None
    extensions: Mapping[str, str] = msgspec.field(default_factory=dict[str, str])


# --- lanes ----------------------------------------------------------------------------------------------------


class LaneEvent(msgspec.Struct, frozen=True, gc=False):
    """A change in who owns a lane.

    ``assigned``: hand-outs of this lane carry *epoch* from now on. ``revoking``: settle what is in progress
    before *deadline* (clock ticks), then say `Receiver.steer` ``drained``. ``lost``: somebody else owns it;
    whatever is unsettled will be redelivered there.
    """

    kind: Literal["assigned", "revoking", "lost"]
    lane: str
    epoch: int
    deadline: int | None = None


class Subscription(msgspec.Struct, frozen=True):
    """What a member asks of a transport.

    *ordering* ``key``: messages of a key are handed out in order and a key always maps to one lane.
    *prefetch* bounds what may be unsettled at a time. *member* is unique per process life. *lease* is how long
    a silent member keeps its lanes; *grace* is how long leaving waits for settles. *start* says where a group
    that never ran begins.
    """

    group: str
    topics: Sequence[str]
    member: str
    ordering: Literal["key", "none"] = "key"
    prefetch: int = 256
    lease: timedelta = timedelta(seconds=30)
    grace: timedelta = timedelta(seconds=10)
    start: Literal["earliest", "latest"] = "earliest"


# --- what became of it ----------------------------------------------------------------------------------------


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


class Settlement(msgspec.Struct, frozen=True):
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


# --- topology and inspection ----------------------------------------------------------------------------------


class TopicSpec(msgspec.Struct, frozen=True):
    """A topic as it should be. *lanes* is fixed at creation: changing it is a migration.

    *retention* bounds how long settled messages stay for replay; what a group has not settled always stays.
    *size_bytes_max* is the cap at which `publish` is refused, or None.
    """

    name: str
    lanes: int = 8
    retention: timedelta | None = timedelta(days=7)
    size_bytes_max: int | None = None


class GroupSpec(msgspec.Struct, frozen=True):
    """A group as it should be: from when `provision` returns, every publish on *topics* reaches it."""

    name: str
    topics: Sequence[str]
    start: Literal["earliest", "latest"] = "earliest"


class Change(msgspec.Struct, frozen=True):
    """One line of what provisioning did, would do, or refuses to do (``conflict``: *detail* says why)."""

    kind: Literal["create", "unchanged", "conflict"]
    what: str
    detail: str = ""


class Capabilities(msgspec.Struct, frozen=True, kw_only=True):
    """What a broker honestly promises. Tests are skipped, and guarantees computed, from these alone.

    *order* by key · *fencing*: lane epochs are comparable, so that a store can refuse a zombie · *atomic*: a
    settle call is one transaction · *dedup*: the window in which an id is recognised, None for none ·
    *native_attempts*: the broker counts hand-outs itself · *replay* of what is settled · *delay_max*: longest
    native delay, None for any · *lease*: a silent member loses its lanes after a finite time · *batch_max*: most
    messages of a native call, None for any · *durability* of ``stored`` · *message_bytes_max*: body and headers ·
    *settle_window*: how long a delivery may stay unsettled, None for ever.
    """

    order: bool
    fencing: bool
    atomic: bool
    dedup: timedelta | None
    native_attempts: bool
    replay: bool
    delay_max: timedelta | None
    lease: bool
    batch_max: int | None
    durability: Literal["none", "os", "fsync", "replicated"]
    message_bytes_max: int
    settle_window: timedelta | None


class Stats(msgspec.Struct, frozen=True, kw_only=True):
    """Counts for one (topic, group); None where the broker cannot tell, never a guess, never negative.

    *ready*: may be handed out now · *in_flight*: handed out, unsettled · *delayed*: waiting for their time ·
    *dead*: dead letters · *oldest_ready*: when the oldest ready one was stored, microseconds since 1970.
    """

    ready: int | None
    in_flight: int | None
    delayed: int | None
    dead: int | None
    oldest_ready: int | None


class Browsed(msgspec.Struct, frozen=True):
    """A message seen without consuming it. *position* is what `Inspector` takes to continue after it."""

    message: Message
    position: int | str
    stored_at: int | None = None


class TopicInfo(msgspec.Struct, frozen=True, kw_only=True):
    """A topic as it is. *first* and *last* are the positions of the oldest and newest message kept, *oldest_at* and
    *newest_at* when they were stored (µs since 1970); None where there is no message, or the broker cannot tell."""

    name: str
    lanes: int
    messages: int | None
    size_bytes: int | None
    retention: timedelta | None
    first: int | str | None = None
    last: int | str | None = None
    oldest_at: int | None = None
    newest_at: int | None = None


class GroupInfo(msgspec.Struct, frozen=True, kw_only=True):
    """A group on one topic as it is. *owners* names the live member that has each lane, by the lane's name; lanes
    that nobody has are absent, and the mapping is None where the broker cannot tell."""

    topic: str
    group: str
    stats: Stats
    owners: Mapping[str, str] | None


class Standing(msgspec.Struct, frozen=True):
    """How far one group is with one message: ``settled``, ``waiting`` (handed out or not), ``delayed`` or ``dead``."""

    group: str
    state: Literal["settled", "waiting", "delayed", "dead"]


class Found(msgspec.Struct, frozen=True):
    """A message that was looked for: where it lies (``message.to``), since when, and who has dealt with it.

    *standings* has every group of the topic for a message in a topic, its one group for one in a channel.
    """

    message: Message
    position: int | str
    stored_at: int | None
    standings: Sequence[Standing]


class Act(msgspec.Struct, frozen=True, kw_only=True):
    """What an operator did, for the audit: *verb* (``redrive``, ``discard``, ``edit``, ``import``, ``replay`` …) to
    whose messages, why, and with what result.

    *id* groups the acts of one command: a redrive writes one act when it begins (*state* ``begun``), and one when
    it ends (``done``, ``failed``); one that has begun and not ended was interrupted. *detail* is JSON.
    """

    id: str
    at: int
    who: str
    verb: str
    topic: str = ""
    group: str = ""
    state: Literal["begun", "done", "failed"] = "done"
    reason: str = ""
    count: int = 0
    detail: str = "{}"


# --- the store ------------------------------------------------------------------------------------------------


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
    """An outbox row that waits to be published: *row* grows in commit order."""

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


# --- what observers hear --------------------------------------------------------------------------------------


class Fact(msgspec.Struct, frozen=True, gc=False):
    """Something that happened to an event: ``published``, ``received``, ``processed``, ``skipped``, ``known``
    (a duplicate that changed nothing), ``discarded`` (an operator gave it up), ``retried``, ``dead_lettered``,
    ``settled``, ``lost``.

    *at* is wall time in microseconds; *took_us* how long the handler ran, for ``processed``.
    """

    kind: str
    type: str
    event_id: str
    topic: str
    group: str = ""
    at: int = 0
    took_us: int = 0
    detail: str = ""
