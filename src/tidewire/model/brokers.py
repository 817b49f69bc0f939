"""What a broker has and can: topics, groups, counts, searches, acts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import timedelta
from typing import Literal

import msgspec

from tidewire.model.messages import Message

__all__ = [
    "Act",
    "Browsed",
    "Capabilities",
    "Change",
    "Found",
    "GroupInfo",
    "GroupSpec",
    "Standing",
    "Stats",
    "TopicInfo",
    "TopicSpec",
]


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

    *order* by key · *lanes*: a lane has one owner at a time, who hears when it is to go; else (message groups) each
    member has every lane for itself, and of a key no more is out than one receive gave · *fencing*: lane epochs are
    comparable, so that a store can refuse a zombie · *atomic*: a settle call is one transaction · *dedup*: the window
    in which an id is recognised, None for none · *native_attempts*: the broker counts hand-outs itself · *replay* of
    what is settled · *delay_max*: longest native delay, None for any · *lease*: a silent member loses its lanes after a
    finite time · *batch_max*: most messages of a native call, None for any · *durability* of ``stored`` ·
    *message_bytes_max*: body and headers · *settle_window*: how long a delivery may stay unsettled, None for ever ·
    *size_cap*: a topic can have a size at which publishes are refused; else a `TopicSpec` with one is a conflict.
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
    size_cap: bool = True
    lanes: bool = True


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
    """A topic as it is; *retention* and *size_bytes_max* are what it was made with. *first* and *last* are the
    positions of the oldest and newest message kept, *oldest_at* and *newest_at* when they were stored (µs since 1970);
    None where there is no message, or the broker cannot tell."""

    name: str
    lanes: int
    messages: int | None
    size_bytes: int | None
    retention: timedelta | None
    first: int | str | None = None
    last: int | str | None = None
    oldest_at: int | None = None
    newest_at: int | None = None
    size_bytes_max: int | None = None


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
