"""Creating topics, and for each group its channels and the offsets at which it begins."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from tidewire.model import Change, DeadChannel, GroupSpec, InboxChannel, TopicSpec
from tidewire.testing.simulation.models.channels import group_conflict, name_of, unknown_to
from tidewire.testing.simulation.models.common import compared, settings_of
from tidewire.testing.simulation.models.kafka.logs import Topic
from tidewire.testing.simulation.models.kafka.server import KafkaServer
from tidewire.testing.simulation.models.links import Link

__all__ = ["provision"]


async def provision(
    server: KafkaServer, link: Link, topics: Sequence[TopicSpec], *, groups: Sequence[GroupSpec], dry_run: bool
) -> list[Change]:
    """Create what is missing; one change per topic and per group, in order."""
    there = dict(await link.call(server.describe))
    changes = [await _topic(server, link, spec, there=there, dry_run=dry_run) for spec in topics]
    known = there.keys() | {spec.name for spec in topics}
    return changes + [
        await _group(server, link, spec, there=there, known=frozenset(known), dry_run=dry_run) for spec in groups
    ]


async def _topic(server: KafkaServer, link: Link, spec: TopicSpec, *, there: dict[str, Topic], dry_run: bool) -> Change:
    what = f"topic {spec.name}"
    if spec.name in there:
        topic = there[spec.name]
        found = {"lanes": len(topic.partitions), "retention": topic.retention, "size_bytes_max": topic.cap}
        return compared(what, found, settings_of(spec))
    if spec.lanes < 1:
        return Change("conflict", what, "a topic needs at least one lane")
    if not dry_run:
        topic = Topic(spec.lanes, retention=spec.retention, cap=spec.size_bytes_max)
        made = await link.call(server.create, spec.name, topic)
        there[spec.name] = topic
        if not made:
            return Change("unchanged", what)
    return Change("create", what)


async def _group(
    server: KafkaServer,
    link: Link,
    spec: GroupSpec,
    *,
    there: Mapping[str, Topic],
    known: frozenset[str],
    dry_run: bool,
) -> Change:
    if (conflict := group_conflict(spec, there, known)) is not None:
        return conflict
    what, new = f"group {spec.name}", unknown_to(spec, there)
    made = not new
    for topic in [] if dry_run else new:
        made |= await _begin(server, link, topic, spec=spec, partitions=len(there[topic].partitions))
    if not new or (not dry_run and not made):
        return Change("unchanged", what)
    return Change("create", what, f"reads {', '.join(new)}")


async def _begin(server: KafkaServer, link: Link, topic: str, *, spec: GroupSpec, partitions: int) -> bool:
    """Let a group begin on a topic: offsets first, so that retention spares what it has to read; channels last."""
    ends = await link.call(server.ends, topic)
    offsets = {
        (topic, number): (start if spec.start == "earliest" else end, "") for number, (start, end) in enumerate(ends)
    }
    await link.call(server.coordinator.begin, spec.name, offsets)
    await link.call(server.create, name_of(DeadChannel(topic, spec.name)), Topic(1))
    return await link.call(server.create, name_of(InboxChannel(topic, spec.name)), Topic(partitions, start=spec.start))
