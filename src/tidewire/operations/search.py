"""Finding events by any id, and what belongs to them: by the broker's own search, or by reading everything."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import msgspec

from tidewire.model import DeadChannel, Found, InboxChannel, Standing, Topic
from tidewire.protocols import Finder, Inspector

__all__ = ["Node", "cause_tree", "find_by_id", "find_related", "states", "summary"]

_PAGE = 1_000


class Node(msgspec.Struct):
    """An event in the tree of what caused what; *found* is every place where it lies, None where it is gone."""

    event_id: str
    found: list[Found]
    effects: list[Node]


async def find_by_id(
    inspector: Inspector, finder: Finder | None, event_id: str, *, progress: Callable[[int], None] = lambda count: None
) -> Sequence[Found]:
    """Return every place where a message with *event_id* lies. *progress* hears how many messages were read."""
    if finder is not None:
        return await finder.find(event_id)
    return await _read_all(inspector, lambda one: one.message.id == event_id, progress)


async def find_related(
    inspector: Inspector,
    finder: Finder | None,
    correlation_id: str,
    *,
    progress: Callable[[int], None] = lambda count: None,
) -> Sequence[Found]:
    """Return the messages with *correlation_id* as id or correlation id, oldest first."""
    if finder is not None:
        return await finder.related(correlation_id)

    def belongs(one: Found) -> bool:
        return correlation_id in (one.message.id, one.message.headers.get("ce-correlationid"))

    found = await _read_all(inspector, belongs, progress)
    return sorted(found, key=lambda one: one.stored_at or 0)


def cause_tree(found: Sequence[Found]) -> list[Node]:
    """Return the roots of what caused what among *found*; an event whose cause is not there is a root."""
    nodes: dict[str, Node] = {}
    for one in found:
        nodes.setdefault(one.message.id, Node(one.message.id, [], [])).found.append(one)
    roots: list[Node] = []
    for node in nodes.values():
        cause = node.found[0].message.headers.get("ce-causationid", "")
        parent = nodes.get(cause)
        if parent is None or _leads_to(node, parent):
            roots.append(node)
        else:
            parent.effects.append(node)
    return roots


def states(found: Sequence[Found]) -> dict[str, str]:
    """Return how far each group is with the event that lies at all of *found*.

    A group settles an event on its topic when it puts it aside, so its inbox or dead channel has the last word.
    """
    seen: dict[str, list[str]] = {}
    for one in found:
        for standing in one.standings:
            seen.setdefault(standing.group, []).append(standing.state)
    return {
        group: " and ".join(dict.fromkeys(state for state in all_of_it if state != "settled")) or "settled"
        for group, all_of_it in seen.items()
    }


def summary(found: Found) -> dict[str, object]:
    """Return *found* as ``--json`` prints it: where it lies, its envelope, and how far each group is."""
    to = found.message.to
    place = {"topic": to.name if isinstance(to, Topic) else to.topic}
    if not isinstance(to, Topic):
        place["group"] = to.group
    kind = "topic" if isinstance(to, Topic) else "dead" if isinstance(to, DeadChannel) else "inbox"
    headers = found.message.headers
    return {
        "place": kind,
        **place,
        "position": found.position,
        "stored_at": found.stored_at,
        "id": found.message.id,
        "source": found.message.source,
        "type": headers.get("ce-type", ""),
        "key": found.message.key,
        "correlation_id": headers.get("ce-correlationid", ""),
        "causation_id": headers.get("ce-causationid", ""),
        "reason": headers.get("dl-reason", ""),
        "groups": {standing.group: standing.state for standing in found.standings},
    }


def _leads_to(node: Node, other: Node) -> bool:
    """Whether *other* is *node* or lies below it: ids that form a circle must not hide the whole tree."""
    todo = [node]
    while todo:
        one = todo.pop()
        if one is other:
            return True
        todo += one.effects
    return False


async def _read_all(
    inspector: Inspector, accept: Callable[[Found], bool], progress: Callable[[int], None]
) -> list[Found]:
    """Read every topic and channel, a page at a time; standings are not known then, so there are none."""
    found: list[Found] = []
    count = 0
    groups = await inspector.groups()
    places: list[Topic | InboxChannel | DeadChannel] = [Topic(topic.name) for topic in await inspector.topics()]
    places += [InboxChannel(group.topic, group.group) for group in groups]
    places += [DeadChannel(group.topic, group.group) for group in groups if group.stats.dead != 0]
    for place in places:
        after: int | str | None = None
        while page := await inspector.browse(place, after=after, limit=_PAGE):
            after = page[-1].position
            count += len(page)
            progress(count)
            dead = [Standing(place.group, "dead")] if isinstance(place, DeadChannel) else []
            candidates = (Found(one.message, one.position, one.stored_at, dead) for one in page)
            found += [one for one in candidates if accept(one)]
    return found
