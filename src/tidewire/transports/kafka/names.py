"""What things are called on the broker. Upper case separates what our own names, all lower case, cannot hold."""

from __future__ import annotations

from tidewire.model import Address, DeadChannel, InboxChannel, Topic
from tidewire.rules.names import is_topic_name

__all__ = ["address_of", "dead_topic", "inbox_topic", "lane_name", "log_of", "partition_of"]

_INBOX = ".INBOX."
_DEAD = ".DEAD."


def inbox_topic(topic: str, group: str) -> str:
    """Return the log of a group's inbox channel."""
    return f"{topic}{_INBOX}{group}"


def dead_topic(topic: str, group: str) -> str:
    """Return the log of a group's dead channel."""
    return f"{topic}{_DEAD}{group}"


def log_of(address: Address) -> str:
    """Return the log in which an address's messages lie."""
    match address:
        case Topic(name=topic):
            return topic
        case InboxChannel(topic=topic, group=group):
            return inbox_topic(topic, group)
        case DeadChannel(topic=topic, group=group):
            return dead_topic(topic, group)


def address_of(log: str) -> Address | None:
    """Return the address whose messages lie in *log*, or None: it is none of ours."""
    for word, kind in ((_INBOX, InboxChannel), (_DEAD, DeadChannel)):
        topic, found, group = log.partition(word)
        if found:
            return kind(topic, group) if is_topic_name(topic) and is_topic_name(group) else None
    return Topic(log) if is_topic_name(log) else None


def lane_name(topic: str, partition: int) -> str:
    """Return the lane that a partition of a topic, and that of each inbox channel of it, are."""
    return f"{topic}/{partition}"


def partition_of(lane: str) -> tuple[str, int]:
    """Return the topic and the partition of a lane."""
    topic, _, partition = lane.rpartition("/")
    return topic, int(partition)
