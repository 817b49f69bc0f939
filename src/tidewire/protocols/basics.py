"""Time, bytes and ears: the seams that everything uses."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from typing import Any, Protocol

from tidewire.model import Fact

__all__ = ["Clock", "Codec", "Observer"]


class Clock(Protocol):
    """Wall time for stamps people read, ticks for leases. Waiting uses the event loop."""

    def now(self) -> datetime:
        """Return the wall time, aware, in UTC."""
        ...

    def now_us(self) -> int:
        """Return the wall time as integer microseconds since 1970."""
        ...

    def ticks(self) -> int:
        """Return nanoseconds that never jump and are comparable between the processes of one machine."""
        ...


class Codec(Protocol):
    """Turns one event type into bytes and back. Synchronous, pure, made once per type at registration."""

    @property
    def content_type(self) -> str:
        """The media type of what `encode` returns."""
        ...

    def encode(self, event: Any) -> bytes:
        """Return the body of *event*.

        Raises:
            ConfigurationError: the value cannot travel (NaN, Infinity, a naive datetime); names the path.
        """
        ...

    def decode(self, body: bytes) -> Any:
        """Return the event in *body*, its type's own validation included.

        Raises:
            DecodeError: and nothing else, whatever the bytes.
        """
        ...


class Observer(Protocol):
    """Hears what happened. Synchronous and cheap: called on the hot path, never awaited, must not raise."""

    def record(self, facts: Sequence[Fact]) -> None:
        """Take note of *facts*."""
        ...
