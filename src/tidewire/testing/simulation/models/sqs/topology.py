"""What the adapter makes on an SQS-like broker, how it is called there, and how a message is made text.

A topic is a topic. A group has, for each of them, the queue that is subscribed to it, a standard queue for what has to
wait (a FIFO queue has no delays), a queue of dead letters, and a register: one message that whoever reads has locked.
"""

from __future__ import annotations

import base64
from collections.abc import Sequence
from datetime import timedelta
from hashlib import blake2b

import msgspec

from tidewire.errors import TransportRefused
from tidewire.model import (
    Address,
    Change,
    DeadChannel,
    GroupSpec,
    InboxChannel,
    Message,
    Stats,
    Topic,
    TopicInfo,
    TopicSpec,
)
from tidewire.testing.simulation.models.common import compared, lane_of, settings_of
from tidewire.testing.simulation.models.links import Refusal
from tidewire.testing.simulation.models.queues import topic_info
from tidewire.testing.simulation.models.sqs.server import Entry, SqsServer

__all__ = [
    "EXACTLY_ONE",
    "dead",
    "digest",
    "ensure_group",
    "ensure_lock",
    "groups_on",
    "lane_of_message",
    "main",
    "packed",
    "provision",
    "register",
    "stats_of",
    "topic_infos",
    "unpacked",
    "waiting",
]

EXACTLY_ONE = "all"


class Packed(msgspec.Struct, array_like=True, frozen=True):
    """A message as it travels. *spent*: attempts of earlier copies of it."""

    kind: str
    topic: str
    group: str
    id: str
    source: str
    key: str | None
    headers: list[tuple[str, str]]
    body: bytes
    not_before: int | None
    spent: int = 0


class Register(msgspec.Struct, frozen=True):
    """What a group's members tell each other: for messages by their ids, how many receives were given back unspent, and
    how many failures nobody else knows of."""

    notes: dict[str, tuple[int, int]] = {}


_pack = msgspec.msgpack.Encoder().encode
_unpack = msgspec.msgpack.Decoder(Packed).decode


def packed(message: Message, *, spent: int = 0) -> str:
    """Return a message as text: all its headers in one place, and bytes as letters."""
    to = message.to
    kind, topic, group = ("topic", to.name, "") if isinstance(to, Topic) else (_kind(to), to.topic, to.group)
    fields = (message.id, message.source, message.key, list(message.headers.items()), message.body, message.not_before)
    return base64.b64encode(_pack(Packed(kind, topic, group, *fields, spent))).decode()


def unpacked(text: str) -> tuple[Message, int]:
    """Return the message in a text, and the attempts of earlier copies."""
    one = _unpack(base64.b64decode(text))
    to: Address = Topic(one.topic)
    if one.kind != "topic":
        to = (InboxChannel if one.kind == "inbox" else DeadChannel)(one.topic, one.group)
    return Message(to, one.id, one.source, one.key, dict(one.headers), one.body, one.not_before), one.spent


def _kind(to: InboxChannel | DeadChannel) -> str:
    return "inbox" if isinstance(to, InboxChannel) else "dead"


def digest(*words: str) -> str:
    """Return what stands for *words* where few letters are allowed."""
    return blake2b("\0".join(words).encode(errors="surrogatepass"), digest_size=16).hexdigest()


def lane_of_message(message: Message, lanes: int) -> int:
    """Return the lane that a message is in here: the broker has none, and its groups are too many to be told of."""
    name = message.id if message.key is None else message.key
    return lane_of(name, lanes)


def _name(kind: str, *words: str, fifo: bool) -> str:
    return f"tw-{kind}-{digest(*words)}" + ".fifo" * fifo


def main(topic: str, group: str, *, fifo: bool) -> str:
    """Return the queue of a group."""
    return _name("main", topic, group, fifo=fifo)


def waiting(topic: str, group: str) -> str:
    """Return the queue of what waits for its time."""
    return _name("wait", topic, group, fifo=False)


def dead(topic: str, group: str) -> str:
    """Return the queue of dead letters."""
    return _name("dead", topic, group, fifo=True)


def register(topic: str, group: str) -> str:
    """Return the queue with the register."""
    return _name("note", topic, group, fifo=True)


# --- provisioning ---------------------------------------------------------------------------------------------


def provision(
    server: SqsServer, topics: Sequence[TopicSpec], groups: Sequence[GroupSpec], *, dry_run: bool, fifo: bool
) -> list[Change]:
    """Create what is missing and say, for each, what was done."""
    changes = [_provision_topic(server, spec, dry_run=dry_run) for spec in topics]
    known = {spec.name for spec in topics}
    return changes + [_provision_group(server, spec, known, dry_run=dry_run, fifo=fifo) for spec in groups]


def _provision_topic(server: SqsServer, spec: TopicSpec, *, dry_run: bool) -> Change:
    what = f"topic {spec.name}"
    tags = settings_of(spec)
    if (there := server.topics.get(spec.name)) is not None:
        return compared(what, there.tags, tags)
    if spec.lanes < 1:
        return Change("conflict", what, "a topic needs at least one lane")
    if spec.size_bytes_max is not None:
        return Change("conflict", what, "this broker has no size at which it refuses")
    if not dry_run:
        server.create_topic(spec.name, tags)
    return Change("create", what)


def _provision_group(server: SqsServer, spec: GroupSpec, new_topics: set[str], *, dry_run: bool, fifo: bool) -> Change:
    what = f"group {spec.name}"
    missing = [name for name in spec.topics if name not in server.topics and name not in new_topics]
    if missing:
        return Change("conflict", what, f"there is no topic {', '.join(missing)}")
    there = {name: server.queues.get(dead(name, spec.name)) for name in spec.topics}
    other = [name for name, queue in there.items() if queue is not None and queue.tags["start"] != spec.start]
    if other:
        return Change("conflict", what, f"it began elsewhere than at {spec.start} of {', '.join(other)}")
    new = [name for name, queue in there.items() if queue is None]
    if not new:
        return Change("unchanged", what)
    if not dry_run:
        for name in new:
            ensure_group(server, name, spec.name, start=spec.start, fifo=fifo)
    return Change("create", what, f"reads {', '.join(new)}")


def ensure_group(server: SqsServer, topic: str, group: str, *, start: str, fifo: bool) -> int:
    """Create the queues of a group on a topic, and subscribe; return how many lanes the topic has.

    Raises:
        Refusal: there is no such topic.
    """
    if topic not in server.topics:
        raise Refusal("NotFound", f"there is no topic {topic}")
    tags = {"topic": topic, "group": group, "start": start}
    if server.create_queue(dead(topic, group), tags):
        server.create_queue(main(topic, group, fifo=fifo), tags)
        server.create_queue(waiting(topic, group), tags)
        server.create_queue(register(topic, group), tags)
        server.send(register(topic, group), [register_entry(Register(), "first")])
        server.subscribe(topic, main(topic, group, fifo=fifo))
    lanes = server.topics[topic].tags["lanes"]
    assert isinstance(lanes, int), "it was created here"
    return lanes


def ensure_lock(server: SqsServer, name: str) -> None:
    """Create a queue with one message, which whoever hides it has."""
    if server.create_queue(name, {}):
        server.send(name, [Entry(body="lock", group=EXACTLY_ONE, dedup="lock")])


def register_entry(state: Register, name: str) -> Entry:
    """Return the message that is a register's new state."""
    return Entry(body=base64.b64encode(msgspec.msgpack.encode(state)).decode(), group=EXACTLY_ONE, dedup=name)


def register_in(body: str) -> Register:
    """Return the state in a register's message."""
    return msgspec.msgpack.decode(base64.b64decode(body), type=Register)


# --- looking --------------------------------------------------------------------------------------------------


def topic_infos(server: SqsServer) -> list[TopicInfo]:
    """Return every topic; what was published to it, the broker does not keep."""
    return [topic_info(name, topic.tags) for name, topic in sorted(server.topics.items())]


def groups_on(server: SqsServer, topic: str) -> list[str]:
    """Return the groups that have queues on a topic."""
    return sorted(
        queue.tags["group"]
        for queue in server.queues.values()
        if queue.name.startswith("tw-dead-") and queue.tags.get("topic") == topic
    )


def stats_of(server: SqsServer, topic: str, group: str, *, fifo: bool) -> Stats:
    """Return the counts of (topic, group)."""
    if dead(topic, group) not in server.queues:
        raise TransportRefused(f"{topic}: there is no group {group}", hint="provision it first")
    ready, in_flight, _, oldest = server.counts(main(topic, group, fifo=fifo))
    due, moving, delayed, first = server.counts(waiting(topic, group))
    return Stats(
        ready=ready + due + moving,
        in_flight=in_flight,
        delayed=delayed,
        dead=sum(server.counts(dead(topic, group))[:3]),
        oldest_ready=min((at for at in (oldest, first) if at is not None), default=None),
    )


def due_in(message: Message, now_us: int) -> timedelta:
    """Return how long a message has to wait."""
    return timedelta(microseconds=(message.not_before or 0) - now_us)
