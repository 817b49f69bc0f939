"""The cleaner: inbox marks beyond the dedup window go, a bounded batch at a time, by one process at a time; and it
warns of a transaction that keeps the database from cleaning up."""

from __future__ import annotations

import logging
from datetime import timedelta

from tidewire.errors import AlreadyMarked
from tidewire.kit.looks import SeesWriters
from tidewire.model import Fact
from tidewire.protocols import Store
from tidewire.rules.letters import DEDUP_WINDOW
from tidewire.runtime.parts import Parts

__all__ = ["Cleaner"]

_NAME, _RULE = "tidewire.cleaner", "every minute"
_EVERY, _IDLE, _AGAIN = timedelta(minutes=1), timedelta(hours=1), timedelta(milliseconds=100)
_ROWS = 1_000
_LONG = timedelta(minutes=1)
_logger = logging.getLogger("tidewire.store")


class Cleaner:
    """Cleans one store from time to time; the store's timetable says when, and whose turn it is."""

    def __init__(self, store: Store, *, owner: str, lease: timedelta, parts: Parts) -> None:
        self._store = store
        self._owner = owner
        self._lease = lease
        self._clock = parts.clock
        self._observer = parts.observer
        self._at = 0
        self._more = False

    async def clean(self) -> timedelta | None:
        """Prune one batch if that is due and nobody else does it. Nobody needs to come back for more, or, while there
        are more, as soon as is returned: they would grow for ever.

        Raises:
            StoreUnavailable: nothing was pruned, or it is not written down that it was.
        """
        ticks = self._clock.ticks()
        if ticks >= self._at:
            wait = min(await self._turn(), _IDLE)
            self._more = wait <= _AGAIN
            self._at = ticks + wait // timedelta(microseconds=1) * 1_000
        return _AGAIN if self._more else None

    async def _looked_for_writers(self) -> bool:
        """Warn of a transaction that has been open for long: behind it, everybody gets slower. False: not here."""
        if not isinstance(self._store, SeesWriters):
            return False
        age = await self._store.oldest_write()
        if age is not None and age > _LONG:
            _logger.warning("tidewire.store.long_transaction", extra={"age_s": round(age.total_seconds(), 1)})
            if self._observer is not None:
                took = age // timedelta(microseconds=1)
                self._observer.record([Fact("long_transaction", "", "", "", at=self._clock.now_us(), took_us=took)])
        return True

    async def _turn(self) -> timedelta:
        now = self._clock.now_us()
        due, mine = await self._store.timetable.claim(
            _NAME, _RULE, first=now, now=now, owner=self._owner, lease=self._lease
        )
        if due > now or not mine:
            return timedelta(microseconds=max(due - now, 0)) or _EVERY
        gone = await self._store.inbox.prune(now - DEDUP_WINDOW // timedelta(microseconds=1), _ROWS)
        wait = _AGAIN if gone >= _ROWS else _EVERY if await self._looked_for_writers() or gone else _IDLE
        unit = self._store.unit(label=_NAME)
        try:
            to = now + wait // timedelta(microseconds=1)
            await self._store.timetable.advance(unit, _NAME, owner=self._owner, due=due, to=to)
            await (await unit.seal())
        except AlreadyMarked:
            return wait  # it took longer than the lease, and somebody else goes on
        finally:
            await unit.rollback()  # harmless where it is sealed
        return wait
