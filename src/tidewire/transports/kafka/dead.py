"""Which letters of a dead channel are there. A log does not forget: who removes one adds a tombstone with its key."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence

from tidewire.errors import TransportError
from tidewire.model import DeadChannel
from tidewire.transports.kafka.asking import Asker, Record, Span

__all__ = ["DeadLog", "look_into"]

_logger = logging.getLogger("tidewire.kafka")


class DeadLog:
    """The letters that are there, by offset, with the key of their record; read on from where the last look ended."""

    def __init__(self, log: str, address: DeadChannel) -> None:
        self.log = log
        self.live: dict[int, bytes] = {}
        self.address = address
        self._seen = 0

    def unread(self, begin: int, end: int) -> Span:
        """Return what was added since the last look, and forget what is no longer kept."""
        if end < self._seen:  # it was made anew
            self._seen, self.live = begin, {}
        self._seen = max(self._seen, begin)
        for offset in [offset for offset in self.live if offset < begin]:
            del self.live[offset]
        return Span(self._seen, end, 1 << 62)

    def take_in(self, records: Sequence[Record], end: int) -> None:
        """Note what was added, up to *end*."""
        for record in records:
            if record.removes is not None:
                self.live.pop(record.removes, None)
            elif record.key is not None:
                self.live[record.offset] = record.key
        self._seen = max(self._seen, end)

    async def removed(self, asker: Asker, letters: Mapping[int, bytes]) -> None:
        """Note that *letters* are gone; where nothing older is left, their bytes go now."""
        for offset in letters:
            self.live.pop(offset, None)
        place = (self.log, 0)
        first = min(self.live, default=None)
        if first is None:
            first = (await asker.ends([place]))[place]
        if min(letters) < first:
            try:
                await asker.let_go({place: first})
            except TransportError as error:  # compaction does it later; only the right to delete may be missing
                _logger.info(
                    "tidewire.kafka.not_trimmed", extra={"topic": self.log, "error_type": type(error).__name__}
                )


async def look_into(logs: Sequence[DeadLog], asker: Asker) -> None:
    """Read what was added to each of *logs* since the last look."""
    places = {(log.log, 0): log for log in logs}
    begins, ends = await asker.begins(places), await asker.ends(places)
    spans = {place: log.unread(begins[place], ends[place]) for place, log in places.items()}
    records = await asker.read({log.log: log.address for log in logs}, spans)
    for place, log in places.items():
        log.take_in(records[place], ends[place])
