"""What travels: addresses, messages, deliveries, and the lanes they come by."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import datetime, timedelta
from typing import Literal, TypeAlias

import msgspec

__all__ = [
    "ZERO",
    "Address",
    "DeadChannel",
    "Delivery",
    "Envelope",
    "InboxChannel",
    "LaneEvent",
    "Message",
    "Subscription",
    "Topic",
]

ZERO = timedelta(0)


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


class Message(msgspec.Struct, frozen=True, gc=False):
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


class Delivery(msgspec.Struct, frozen=True, gc=False):
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
    """An event's context attributes: those of CloudEvents 1.0, and what ties events together.

    *time* is None where the producer did not say when; tidewire's own always do.
    """

    id: str
    source: str
    type: str
    time: datetime | None = None
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
