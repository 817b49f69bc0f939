"""What things are called on the broker. Upper case separates what our own names, all lower case, cannot hold.

A topic is an exchange of its name. A group has for each lane of a topic a queue bound to it, one for its share of the
inbox channel and one for the lane's token; and one queue for its dead letters.
"""

from __future__ import annotations

import zlib

from tidewire.model import InboxChannel, Topic

__all__ = [
    "AUDIT",
    "CATALOGUE",
    "LOCK",
    "MEMBERS",
    "NOBODY",
    "dead_queue",
    "foreign_exchange",
    "inbox_exchange",
    "inbox_queue",
    "lane_name",
    "lane_of",
    "lane_queue",
    "member_queue",
    "tier_of",
    "token_queue",
]

CATALOGUE = "tidewire.CATALOGUE"
"""A queue whose messages stay: the topics and groups that were made, since the protocol has no way to ask for them."""
AUDIT = "tidewire.AUDIT"
"""A queue whose messages stay: what operators did."""
MEMBERS = "tidewire.MEMBERS"
"""An exchange by which the members of a group, its routing key, hear of each other."""
NOBODY = "tidewire.NOBODY"
"""A queue that keeps nothing: where a topic leads that no group reads yet."""
LOCK = "tidewire.MEMBER.LOCK"
"""An exclusive queue: who has it, provisions."""


def foreign_exchange(topic: str) -> str:
    """Return the exchange where messages of a topic go whose routing key is no lane's number."""
    return f"{topic}.FOREIGN"


def lane_queue(topic: str, group: str, number: int) -> str:
    """Return the queue of a lane."""
    return f"{topic}.LANE.{group}.{number}"


def inbox_queue(topic: str, group: str, number: int) -> str:
    """Return the queue of a lane's share of the inbox channel."""
    return f"{topic}.INBOX.{group}.{number}"


def inbox_exchange(topic: str, group: str) -> str:
    """Return the exchange that leads delayed messages to the inbox channel."""
    return f"{topic}.INBOX.{group}"


def token_queue(topic: str, group: str, number: int) -> str:
    """Return the queue of a lane's token."""
    return f"{topic}.TOKEN.{group}.{number}"


def dead_queue(topic: str, group: str) -> str:
    """Return the queue of a group's dead letters."""
    return f"{topic}.DEAD.{group}"


def tier_of(to: Topic | InboxChannel, milliseconds: int) -> str:
    """Return a tier of the delays that lead to *to*, both its exchange and its queue."""
    if isinstance(to, Topic):
        return f"{to.name}.LATER.{milliseconds}"
    return f"{to.topic}.LATER.{to.group}.{milliseconds}"


def member_queue(id_: str) -> str:
    """Return the exclusive queue by which a member, or one who asks members, is there."""
    return f"tidewire.MEMBER.{id_}"


def lane_name(topic: str, number: int) -> str:
    """Return the name of a lane."""
    return f"{topic}/{number}"


def lane_of(key: str, lanes: int) -> int:
    """Return the lane of a key."""
    return zlib.crc32(key.encode("utf-8", "surrogatepass")) % lanes
