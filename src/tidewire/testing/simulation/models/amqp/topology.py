"""What the adapter declares on an AMQP-like broker, and how it is called there.

A topic is an exchange. A group has, for each lane of a topic, a queue bound to that exchange, a queue for its inbox
channel and one that holds the lane's token; and one queue for its dead letters. A delay is a way through queues in
which a message lives for 2ⁿ twentieths of a second each: one after the other, so that none waits behind a longer one.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import timedelta

import msgspec

from tidewire.errors import TransportRefused
from tidewire.model import Address, Change, GroupSpec, InboxChannel, Stats, Topic, TopicSpec
from tidewire.testing.simulation.models.amqp.server import AmqpServer, Arguments, Connection, Queue
from tidewire.testing.simulation.models.common import compared, settings_of
from tidewire.testing.simulation.models.links import Refusal

__all__ = [
    "Token",
    "dead",
    "declare_delay",
    "declare_group",
    "exchange",
    "groups_on",
    "inbox",
    "lane",
    "present",
    "provision",
    "stats_of",
    "tiers_for",
    "token",
]

TIERS = 24
TIER_SECONDS = 0.05
DELIVERIES_MAX = 1_000
"""The broker's own limit, far above any of ours; what reaches it all the same is a dead letter."""
_EVENTS = Arguments(exclusive=True)


class Token(msgspec.Struct, frozen=True):
    """A lane's token: who has it, has the lane. *epoch* grows with each owner; *notes*: for copies that were handed out
    before, how many returns were nobody's failure and how many failures the broker does not know of."""

    epoch: int = 0
    notes: dict[str, tuple[int, int]] = {}


def exchange(topic: str) -> str:
    """Return the exchange of a topic."""
    return f"t/{topic}"


def lane(topic: str, group: str, number: int) -> str:
    """Return the queue of a lane."""
    return f"l/{topic}/{group}/{number}"


def inbox(topic: str, group: str, number: int) -> str:
    """Return the queue of a lane's share of the inbox channel."""
    return f"i/{topic}/{group}/{number}"


def token(topic: str, group: str, number: int) -> str:
    """Return the queue of a lane's token."""
    return f"k/{topic}/{group}/{number}"


def dead(topic: str, group: str) -> str:
    """Return the queue of a group's dead letters."""
    return f"d/{topic}/{group}"


def present(group: str, name: str) -> str:
    """Return the exclusive queue by which a member shows that it is there."""
    return f"p/{group}/{name}"


def groups_on(server: AmqpServer, topic: str) -> list[str]:
    """Return the groups that have queues on a topic."""
    return sorted(queue.name.rpartition("/")[2] for queue in server.names_under(f"d/{topic}"))


# --- provisioning ---------------------------------------------------------------------------------------------


def provision(
    server: AmqpServer, topics: Sequence[TopicSpec], groups: Sequence[GroupSpec], *, dry_run: bool
) -> list[Change]:
    """Declare what is missing and say, for each, what was done."""
    changes = [_provision_topic(server, spec, dry_run=dry_run) for spec in topics]
    known = {spec.name for spec in topics}
    return changes + [_provision_group(server, spec, known, dry_run=dry_run) for spec in groups]


def _provision_topic(server: AmqpServer, spec: TopicSpec, *, dry_run: bool) -> Change:
    what = f"topic {spec.name}"
    arguments = settings_of(spec)
    there = server.exchanges.get(exchange(spec.name))
    if there is not None:
        return compared(what, there.arguments, arguments)
    if spec.lanes < 1:
        return Change("conflict", what, "a topic needs at least one lane")
    if not dry_run:
        server.declare_exchange(exchange(spec.name), arguments)
        # Mandatory publishes find a queue although nobody reads the topic yet.
        server.declare_queue(f"s/{spec.name}", Arguments(drops_all=True))
        server.bind(exchange(spec.name), "#", f"s/{spec.name}")
    return Change("create", what)


def _provision_group(server: AmqpServer, spec: GroupSpec, new_topics: set[str], *, dry_run: bool) -> Change:
    what = f"group {spec.name}"
    missing = [name for name in spec.topics if exchange(name) not in server.exchanges and name not in new_topics]
    if missing:
        return Change("conflict", what, f"there is no topic {', '.join(missing)}")
    there = [name for name in spec.topics if dead(name, spec.name) in server.queues]
    other = [name for name in there if server.queues[dead(name, spec.name)].arguments.notes != spec.start]
    if other:
        began = server.queues[dead(other[0], spec.name)].arguments.notes
        return Change("conflict", what, f"it began at {began} of {', '.join(other)}")
    new = [name for name in spec.topics if name not in there]
    if not new:
        return Change("unchanged", what)
    if not dry_run:
        for name in new:
            declare_group(server, name, spec.name, start=spec.start)
    return Change("create", what, f"reads {', '.join(new)}")


def declare_group(server: AmqpServer, topic: str, group: str, *, start: str) -> None:
    """Declare the queues of a group on a topic, and bind them; what is there stays.

    Raises:
        Refusal: there is no such topic.
    """
    if exchange(topic) not in server.exchanges:
        raise Refusal("NOT_FOUND", f"{group}: there is no topic {topic}")
    if dead(topic, group) in server.queues:
        return
    cap = server.exchanges[exchange(topic)].arguments["size_bytes_max"]
    plain = Arguments(
        single_active=True, delivery_limit=DELIVERIES_MAX, dead_letters_to="", dead_letter_key=dead(topic, group)
    )
    server.declare_queue(dead(topic, group), Arguments(notes=start))
    for number in range(lanes_of(server, topic)):
        server.declare_queue(lane(topic, group, number), msgspec.structs.replace(plain, bytes_max=cap))
        server.declare_queue(inbox(topic, group, number), plain)
        server.declare_queue(token(topic, group, number), Arguments(single_active=True))
        server.put(token(topic, group, number), Token())
        server.bind(exchange(topic), f"#.{number}", lane(topic, group, number))


def lanes_of(server: AmqpServer, topic: str) -> int:
    """Return how many lanes a topic has; 0 if there is none."""
    found = server.exchanges.get(exchange(topic))
    lanes = found.arguments["lanes"] if found is not None else 0
    assert isinstance(lanes, int), "we have declared it"
    return lanes


# --- delays ---------------------------------------------------------------------------------------------------


def tiers_for(wait: timedelta) -> tuple[int, str, bool]:
    """Return the tier at which a message begins that is to wait so long, the words of its key, and whether more
    waiting is left than all tiers together give."""
    most = (1 << TIERS) - 1
    units = max(1, -(-wait // timedelta(seconds=TIER_SECONDS)))
    bits = f"{min(units, most):0{TIERS}b}"
    return TIERS - 1 - bits.index("1"), ".".join(bits), units > most


def delayed(target: str, tier: int) -> str:
    """Return the name of a tier, both of its exchange and of its queue."""
    return f"w/{target}/{tier}"


def declare_delay(server: AmqpServer, to: Address) -> bool:
    """Declare the tiers that lead to a topic, or to an inbox channel; False if there is no such channel."""
    if isinstance(to, Topic):
        target, last = f"{to.name}/", exchange(to.name)
    else:
        assert isinstance(to, InboxChannel), "a dead channel has no delays"
        target, last = f"{to.topic}/{to.group}", f"x/{to.topic}/{to.group}"
        if dead(to.topic, to.group) not in server.queues:
            return False
        if server.declare_exchange(last, {}):
            for number in range(lanes_of(server, to.topic)):
                server.bind(last, f"#.{number}", inbox(to.topic, to.group, number))
    for tier in range(TIERS):
        name = delayed(target, tier)
        server.declare_exchange(name, {})
        server.declare_queue(name + "q", Arguments(ttl=TIER_SECONDS * (1 << tier), dead_letters_to=last))
        before = "*." * (TIERS - 1 - tier)
        server.bind(name, f"{before}1.#", name + "q")
        server.bind(name, f"{before}0.#", last)
        last = name
    return True


def _waiting(server: AmqpServer, target: str) -> int:
    names = (delayed(target, tier) + "q" for tier in range(TIERS))
    return sum(len(server.queues[name].ready) for name in names if name in server.queues)


# --- management -----------------------------------------------------------------------------------------------


def stats_of(server: AmqpServer, topic: str, group: str) -> Stats:
    """Return the counts of (topic, group)."""
    letters = server.queues.get(dead(topic, group))
    if letters is None:
        raise TransportRefused(f"{topic}: there is no group {group}", hint="provision it first")
    queues: list[Queue] = [
        server.queues[name(topic, group, number)] for number in range(lanes_of(server, topic)) for name in (lane, inbox)
    ]
    heads = [queue.ready[0].at for queue in queues if queue.ready]
    return Stats(
        ready=sum(len(queue.ready) for queue in queues),
        in_flight=sum(queue.unacked for queue in queues),
        delayed=_waiting(server, f"{topic}/") + _waiting(server, f"{topic}/{group}"),
        dead=len(letters.ready) + letters.unacked,
        oldest_ready=min(heads, default=None),
    )


def join(server: AmqpServer, connection: Connection, name: str, topics: Sequence[str]) -> None:
    """Show that a member is there, by the queue *name*."""
    server.declare_queue(name, msgspec.structs.replace(_EVENTS, notes=" ".join(topics)), owner=connection)


def members_of(server: AmqpServer, group: str) -> list[tuple[str, list[str]]]:
    """Return the queues of the members that are there, oldest first, and what they read."""
    queues = server.names_under(f"p/{group}")
    return [(queue.name, queue.arguments.notes.split(" ")) for queue in queues]


def owners_of(server: AmqpServer, topic: str, group: str) -> dict[str, str]:
    """Return who has which lane."""
    owners: dict[str, str] = {}
    for number in range(lanes_of(server, topic)):
        channels = [channel for channel, _ in server.queues[lane(topic, group, number)].consumers if channel.open]
        if channels:
            owners[f"{topic}/{number}"] = channels[0].connection.member
    return owners
