"""Creating streams, and for each group its channels and a consumer for each lane."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from tidewire.model import Change, DeadChannel, GroupSpec, InboxChannel, TopicSpec
from tidewire.testing.simulation.models.channels import group_conflict, name_of, unknown_to
from tidewire.testing.simulation.models.common import compared, settings_of
from tidewire.testing.simulation.models.jetstream.server import JetStreamServer
from tidewire.testing.simulation.models.jetstream.streams import Settings
from tidewire.testing.simulation.models.links import Link

__all__ = ["provision"]


async def provision(
    server: JetStreamServer, link: Link, topics: Sequence[TopicSpec], *, groups: Sequence[GroupSpec], dry_run: bool
) -> list[Change]:
    """Create what is missing; one change per topic and per group, in order."""
    there = dict(await link.call(server.describe))
    consumers: Mapping[str, frozenset[str]] = {}
    if groups:
        consumers = await link.call(server.consumers)
    changes = [await _topic(server, link, spec, there=there, dry_run=dry_run) for spec in topics]
    known = there.keys() | {spec.name for spec in topics}
    return changes + [
        await _group(server, link, spec, there=there, known=frozenset(known), dry_run=dry_run)
        if not _complete(spec, there, consumers)
        else Change("unchanged", f"group {spec.name}")
        for spec in groups
    ]


async def _topic(
    server: JetStreamServer, link: Link, spec: TopicSpec, *, there: dict[str, Settings], dry_run: bool
) -> Change:
    what = f"topic {spec.name}"
    wanted = Settings(lanes=spec.lanes, retention=spec.retention, size_max=spec.size_bytes_max)
    if spec.name in there:
        stream = there[spec.name]
        found = {"lanes": stream.lanes, "retention": stream.retention, "size_bytes_max": stream.size_max}
        return compared(what, found, settings_of(spec))
    if spec.lanes < 1:
        return Change("conflict", what, "a topic needs at least one lane")
    if not dry_run:
        there[spec.name] = wanted
        if not await link.call(server.create, spec.name, wanted):
            return Change("unchanged", what)
    return Change("create", what)


async def _group(
    server: JetStreamServer,
    link: Link,
    spec: GroupSpec,
    *,
    there: Mapping[str, Settings],
    known: frozenset[str],
    dry_run: bool,
) -> Change:
    if (conflict := group_conflict(spec, there, known)) is not None:
        return conflict
    what, new = f"group {spec.name}", unknown_to(spec, there)
    made = dry_run
    for topic in () if dry_run else spec.topics:
        made |= await _begin(server, link, topic, spec=spec, lanes=there[topic].lanes)
    if not new or not made:
        return Change("unchanged", what)
    return Change("create", what, f"reads {', '.join(new)}")


def _complete(spec: GroupSpec, there: Mapping[str, Settings], consumers: Mapping[str, frozenset[str]]) -> bool:
    """Whether the group has all that it needs on every topic, and began where it should."""
    for topic in spec.topics:
        inbox = name_of(InboxChannel(topic, spec.name))
        if topic not in there or inbox not in there or there[inbox].start != spec.start:
            return False
        wanted = {f"{spec.name}.{number}" for number in range(there[topic].lanes)}
        if not wanted <= consumers[topic] or not wanted <= consumers[inbox]:
            return False
    return True


async def _begin(server: JetStreamServer, link: Link, topic: str, *, spec: GroupSpec, lanes: int) -> bool:
    """Let a group begin on a topic, or go on with what somebody began who died of it; True if this made its inbox.

    Its consumers of the topic come first: who has an inbox channel, by which it is known, misses nothing.
    """
    inbox = name_of(InboxChannel(topic, spec.name))
    subjects = {f"{spec.name}.{number}": str(number) for number in range(lanes)}
    await link.call(server.ensure, topic, subjects, latest=spec.start == "latest")
    await link.call(server.create, name_of(DeadChannel(topic, spec.name)), Settings())
    made = await link.call(server.create, inbox, Settings(lanes=lanes, start=spec.start, work=True))
    await link.call(server.ensure, inbox, subjects, latest=False)
    return made
