"""How the adapters to brokers of logs name topics and channels, and keep to them; ``|`` is in no name of ours."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Set
from datetime import timedelta
from typing import Protocol, TypeVar

from tidewire.errors import ConfigurationError, TransportRefused
from tidewire.model import Address, Change, DeadChannel, GroupSpec, InboxChannel, Subscription, Topic
from tidewire.testing.simulation.models.links import Client

__all__ = [
    "AUDIT",
    "demand_group",
    "existing",
    "goes_until",
    "group_conflict",
    "groups_of",
    "name_of",
    "steer",
    "unknown_to",
]

AUDIT = "|audit"
T = TypeVar("T")


# --- names ------------------------------------------------------------------------------------------------------


def name_of(address: Address) -> str:
    """Return the name of the log at *address*."""
    match address:
        case Topic(name=name):
            return name
        case InboxChannel(topic=topic, group=group):
            return f"{topic}|{group}|inbox"
        case DeadChannel(topic=topic, group=group):
            return f"{topic}|{group}|dead"


def groups_of(names: Iterable[str], topic: str | None = None) -> list[tuple[str, str]]:
    """Return the topics and groups that there are, by the names of their inbox channels."""
    parts = [name.split("|") for name in names if name.endswith("|inbox")]
    return sorted((part[0], part[1]) for part in parts if topic in (None, part[0]))


def existing(there: Mapping[str, T], name: str) -> T:
    """Return what is *there* under this name; raise `TransportRefused` if nothing is."""
    if name not in there:
        raise TransportRefused(f"there is no {name}", hint="provision it first")
    return there[name]


# --- groups -----------------------------------------------------------------------------------------------------


class _Log(Protocol):
    """What the broker knows of a log; *start* is where the group begins whose inbox this is."""

    @property
    def start(self) -> str: ...


def group_conflict(spec: GroupSpec, there: Mapping[str, _Log], known: Set[str]) -> Change | None:
    """Return why a group cannot be as *spec* says, if so: a topic is not *known*, or it began somewhere else."""
    what = f"group {spec.name}"
    if missing := [topic for topic in spec.topics if topic not in known]:
        return Change("conflict", what, f"there is no topic {', '.join(missing)}")
    inboxes = {topic: name_of(InboxChannel(topic, spec.name)) for topic in spec.topics}
    other = [topic for topic, inbox in inboxes.items() if inbox in there and there[inbox].start != spec.start]
    if other:
        return Change("conflict", what, f"it began at {there[inboxes[other[0]]].start} of {', '.join(other)}")
    return None


def unknown_to(spec: GroupSpec, there: Mapping[str, _Log]) -> list[str]:
    """Return the topics on which the group has no inbox channel, by which it is known."""
    return [topic for topic in spec.topics if name_of(InboxChannel(topic, spec.name)) not in there]


async def demand_group(client: Client, subscription: Subscription) -> None:
    """Create the group on every topic where it is not.

    Raises:
        ConfigurationError: a topic is unknown.
    """
    spec = GroupSpec(subscription.group, subscription.topics, subscription.start)
    for change in await client.provision([], [spec]):
        if change.kind == "conflict" and "there is no topic" in change.detail:
            raise ConfigurationError(f"{subscription.group}: {change.detail}", hint="provision it first")


class _Lane(Protocol):
    """A lane as its owner has it; *deadline* is when it must have been let go of, while it is revoked."""

    paused: bool
    deadline: int | None
    drained: bool


def steer(lanes: Mapping[str, _Lane], pause: Iterable[str], resume: Iterable[str], *, drained: Iterable[str]) -> None:
    """Pause and resume lanes, and note which revoked ones are drained; names that are not ours are ignored."""
    for lane in (lanes[name] for name in pause if name in lanes):
        lane.paused = True
    for lane in (lanes[name] for name in resume if name in lanes):
        lane.paused = False
    for lane in (lanes[name] for name in drained if name in lanes):
        lane.drained = lane.deadline is not None


# --- retention --------------------------------------------------------------------------------------------------


def goes_until(retention: timedelta | None, now: int, *, early: bool) -> int | None:
    """Return the stamp up to which a topic lets go what is done with; None: of nothing. *early*: whatever its age."""
    if early:
        return now
    return None if retention is None else now - retention // timedelta(microseconds=1)
