"""What the store remembers of events that did not go well: starts of suspects, failures, rows of held keys."""

from __future__ import annotations

import logging

from tidewire.errors import StoreUnavailable
from tidewire.protocols import Store
from tidewire.runtime.holds import Holds
from tidewire.runtime.work import Work

__all__ = ["Records"]

_logger = logging.getLogger("tidewire.consumer")


class Records:
    """Starts and failures of one group's events; *holds* are its held keys."""

    def __init__(self, store: Store | None, group: str, holds: Holds) -> None:
        self._store = store
        self._group = group
        self._holds = holds
        self._first_suspect = True

    async def starts(self, work: Work) -> int:
        """Write down the start of a suspect and return how many have not ended, this one included.

        Without a store the broker's own count has to do. It counts whatever was in flight when a process died,
        so it convicts only the first suspect of a life: suspects run alone and in order, hence the one that
        kills comes first again.
        """
        message = work.delivery.message
        work.started = True
        if self._store is None or not message.id:
            first, self._first_suspect = self._first_suspect, False
            return work.delivery.attempt if first else 1
        work.stored = True
        return await self._store.attempts.begin(self._group, message.source, message.id)

    async def finish(self, work: Work) -> None:
        """Its effect is durable: drop what is remembered of its failures, and its row among the held.

        Raises:
            StoreUnavailable: the held row is still there; the key would wait for ever, so it must be tried again.
        """
        if work.held_row:
            await self._holds.free(work)
        if work.stored or await self._left_behind(work):
            await self.forget(work)

    async def _left_behind(self, work: Work) -> bool:
        """Whether an earlier life has left something: it died between the commit and this, or moved the event."""
        message = work.delivery.message
        if self._store is None or not message.id or not (work.delivery.suspect or work.failure is not None):
            return False
        work.stored = await self._store.attempts.get(self._group, message.source, message.id) is not None
        return work.stored

    async def forget(self, work: Work) -> None:
        """Drop its starts and failures. A row that cannot be dropped now is one too many; nothing depends on it."""
        message = work.delivery.message
        if self._store is None or not work.stored:
            return
        try:
            await self._store.attempts.forget(self._group, message.source, message.id)
        except StoreUnavailable as error:
            _logger.warning("tidewire.consumer.attempts_left", extra={"error_type": type(error).__name__})
        work.stored = False
