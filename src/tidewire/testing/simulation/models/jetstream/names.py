"""How streams, subjects and consumers are named; ``|`` is in no name of ours."""

from __future__ import annotations

from tidewire.model import Address, DeadChannel, InboxChannel, Topic

__all__ = ["AUDIT", "groups_of", "stream_of", "wait_of"]

AUDIT = "|audit"


def stream_of(address: Address) -> str:
    """Return the name of the stream."""
    match address:
        case Topic(name=name):
            return name
        case InboxChannel(topic=topic, group=group):
            return f"{topic}|{group}|inbox"
        case DeadChannel(topic=topic, group=group):
            return f"{topic}|{group}|dead"


def wait_of(lane: str) -> str:
    """Return the subject in which a lane's messages wait for their time."""
    return f"wait.{lane}"


def groups_of(names: list[str], topic: str | None = None) -> list[tuple[str, str]]:
    """Return the topics and groups that there are, by the names of their inbox channels."""
    parts = [name.split("|") for name in names if name.endswith("|inbox")]
    return sorted((part[0], part[1]) for part in parts if topic in (None, part[0]))
