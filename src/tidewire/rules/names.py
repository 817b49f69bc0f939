"""The one grammar for names of topics, groups, services, handlers and headers."""

from __future__ import annotations

import re

from tidewire.errors import ConfigurationError

__all__ = ["check_name", "has_control", "is_header_name", "is_topic_name"]

_TOPIC = re.compile(r"[a-z][a-z0-9.-]{0,62}\Z")
_HANDLER = re.compile(r"[A-Za-z_][A-Za-z0-9_.-]{0,127}\Z")
_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029\ud800-\udfff]")
_HEADER = re.compile(r"[a-z][a-z0-9-]{0,62}\Z")


def check_name(name: str, what: str) -> None:
    """Check the name of a ``service``, ``topic`` or ``handler``.

    Raises:
        ConfigurationError: it breaks the grammar; the hint states it.
    """
    grammar, words = _HANDLER, "a letter or _, then letters, digits, '_', '-', '.'; at most 128"
    if what != "handler":
        grammar, words = _TOPIC, "a-z first, then a-z, 0-9, '.', '-'; at most 63"
    if not grammar.match(name):
        raise ConfigurationError(f"{name[:80]!r} cannot name a {what}", hint=f"{what} names: {words}")


def is_topic_name(name: str) -> bool:
    """Whether *name* can be a topic on every broker."""
    return _TOPIC.match(name) is not None


def is_header_name(name: str) -> bool:
    """Whether *name* can be a header on every broker."""
    return _HEADER.match(name) is not None


def has_control(text: str) -> bool:
    """Whether *text* holds a character that no header may: controls, line separators, lone surrogates."""
    return not text.isprintable() and _CONTROL.search(text) is not None
