"""What a broker with provisioned topics checks before it does anything."""

from __future__ import annotations

from collections.abc import Sequence

from tidewire.errors import ConfigurationError, TransportRefused
from tidewire.model import Address, GroupSpec, TopicSpec
from tidewire.rules.names import check_name

__all__ = ["check_address", "check_none_unknown", "check_specs"]


def check_specs(topics: Sequence[TopicSpec], groups: Sequence[GroupSpec]) -> None:
    """Check the names of what is to be provisioned.

    Raises:
        ConfigurationError: one breaks the grammar.
    """
    for topic in topics:
        check_name(topic.name, "topic")
    for group in groups:
        check_name(group.name, "group")


def check_none_unknown(group: str, unknown: Sequence[str]) -> None:
    """Check that *group* subscribes to no *unknown* topic.

    Raises:
        ConfigurationError: there are some; the text names them.
    """
    if unknown:
        raise ConfigurationError(
            f"group {group!r}: there is no topic {', '.join(map(repr, unknown))}",
            hint="provision it, or start the service with --provision",
        )


def check_address(given: object) -> None:
    """Check that *given* is an address, where a caller without a type checker may have given its name.

    Raises:
        TransportRefused: it is none.
    """
    if not isinstance(given, Address):
        hint = "Topic(name), InboxChannel(topic, group) or DeadChannel(topic, group), from tidewire.model"
        raise TransportRefused(f"{given!r} is no address", hint=hint)
