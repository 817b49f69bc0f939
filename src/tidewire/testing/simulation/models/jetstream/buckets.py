"""Key-value buckets: entries with revisions, written only over the revision one has seen, some with a time to live."""

from __future__ import annotations

from collections.abc import Mapping

import msgspec

from tidewire.protocols import Clock
from tidewire.testing.simulation.models.intake import Bell
from tidewire.testing.simulation.models.links import Refusal

__all__ = ["Bucket", "Entry"]


class Entry(msgspec.Struct, frozen=True):
    """A value under a key, with the number of the write that put it there."""

    value: bytes
    revision: int


class Bucket:
    """A bucket. What was not written for *ttl* nanoseconds is gone; None: it stays."""

    def __init__(self, clock: Clock, *, ttl: int | None = None) -> None:
        self.ttl = ttl
        self._clock = clock
        self._entries: dict[str, tuple[Entry, int]] = {}
        self._revision = 0
        self._bells: dict[Bell, None] = {}

    def entries(self, bell: Bell | None = None) -> Mapping[str, Entry]:
        """Return what is there; *bell* rings once something comes or goes, or has another value."""
        now = self._clock.ticks()
        if self.ttl is not None:
            gone = [key for key, (_, at) in self._entries.items() if now - at > self.ttl]
            for key in gone:
                del self._entries[key]
        if bell is not None:
            self._bells[bell] = None
        return {key: entry for key, (entry, _) in self._entries.items()}

    def put(self, key: str, value: bytes, *, over: int | None = None) -> int:
        """Write a value and return its revision; *over*: only if the entry has this revision, 0 for none.

        Raises:
            Refusal: ``WRONG_LAST_SEQUENCE``, it has another one.
        """
        entry = self.entries().get(key)
        if over is not None and over != (0 if entry is None else entry.revision):
            raise Refusal("WRONG_LAST_SEQUENCE", key)
        self._revision += 1
        self._entries[key] = Entry(value, self._revision), self._clock.ticks()
        if entry is None or entry.value != value:
            self._ring()
        return self._revision

    def delete(self, key: str) -> None:
        """Remove an entry."""
        if self._entries.pop(key, None) is not None:
            self._ring()

    def _ring(self) -> None:
        bells, self._bells = self._bells, {}
        for bell in bells:
            bell.ring()
