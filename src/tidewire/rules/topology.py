"""What a service asks of the topics it reads."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from tidewire.model import TopicInfo, TopicSpec

__all__ = ["wanted_topics"]


def wanted_topics(names: Iterable[str], *, lanes: int, there: Sequence[TopicInfo | TopicSpec] = ()) -> list[TopicSpec]:
    """Return the topics *names* as a service wants them: with so many *lanes*, since they decide about order.

    How long, and up to which size, one of those that are *there* is kept is its own affair.
    """
    kept = {topic.name: topic for topic in there}
    return [
        TopicSpec(name, lanes=lanes, retention=kept[name].retention, size_bytes_max=kept[name].size_bytes_max)
        if name in kept
        else TopicSpec(name, lanes=lanes)
        for name in names
    ]
