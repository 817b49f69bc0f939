"""Who should own which lane: a pure decision that moves as little as it can."""

from __future__ import annotations

from collections.abc import Collection, Sequence

__all__ = ["plan"]


def plan(lanes: Sequence[tuple[str, int | None]], members: Sequence[Collection[str]]) -> dict[int, int]:
    """Return the new owner of each lane that should change hands, by index.

    *lanes* are (topic, owner or None), *members* the topics each one reads. Afterwards no member has two lanes
    of a topic more than another one that reads it, and few lanes spread over many topics are spread too. A
    lane whose topic nobody reads stays out.
    """
    total = [0] * len(members)
    loads: dict[str, list[int]] = {topic: [0] * len(members) for topic, _ in lanes}
    readers = {topic: [index for index, topics in enumerate(members) if topic in topics] for topic in loads}
    for topic, owner in lanes:
        if owner is not None:
            total[owner] += 1
            loads[topic][owner] += 1
    changes: dict[int, int] = {}
    for free_only in (True, False):
        for index, (topic, owner) in enumerate(lanes):
            if (owner is None) is not free_only or not readers[topic]:
                continue
            load = loads[topic]
            best = min(readers[topic], key=lambda member: (load[member], total[member], member))
            if owner is not None and not _worth(load[owner] - load[best], total[owner] - total[best]):
                continue
            if owner is not None:
                total[owner] -= 1
                load[owner] -= 1
            total[best] += 1
            load[best] += 1
            changes[index] = best
    return changes


def _worth(topic_gap: int, total_gap: int) -> bool:
    return topic_gap >= 2 or (topic_gap == 1 and total_gap >= 2)
