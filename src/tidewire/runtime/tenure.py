"""Which lanes are ours: adopted in the store before the first hand-out, and known by the epoch we have them with."""

from __future__ import annotations

import logging
from collections.abc import Callable

from tidewire.errors import LaneFenced, StoreUnavailable
from tidewire.model import Delivery, Guard
from tidewire.protocols import Store
from tidewire.runtime.holds import Holds
from tidewire.runtime.outage import Outage

__all__ = ["Tenure"]

_logger = logging.getLogger("tidewire.consumer")


class Tenure:
    """The lanes of one membership. *guards* hears of each that the store has adopted; with *fencing* units use it."""

    def __init__(
        self,
        group: str,
        store: Store | None,
        *,
        fencing: bool,
        guards: dict[str, Guard],
        holds: Holds,
        outage: Outage,
    ) -> None:
        self._group = group
        self._store = store
        self._fencing = fencing
        self._guards = guards
        self._holds = holds
        self._outage = outage
        self._epochs: dict[str, int] = {}
        self._revoking: set[str] = set()

    @property
    def lanes(self) -> list[str]:
        """The lanes that are ours, by name; those that are to go are still among them."""
        return sorted(self._epochs)

    @property
    def drains(self) -> bool:
        """Whether a lane is to go, and something of it may still be here."""
        return bool(self._revoking)

    def knows(self, delivery: Delivery) -> bool:
        """Whether *delivery* is of a lane that is ours, with the epoch it was handed out with."""
        return not self._fencing or self._epochs.get(delivery.lane) == delivery.epoch

    async def adopt(self, lane: str, epoch: int) -> None:
        """Record our epoch in the store before the first hand-out, and learn which keys are held."""
        self._revoking.discard(lane)
        while self._store is not None:
            try:
                if self._fencing:
                    await self._store.lanes.adopt(self._group, lane, epoch)
                    self._guards[lane] = Guard(self._group, lane, epoch)
                await self._holds.load()
                break
            except LaneFenced:  # the broker was made anew or its clock went back: the store knows a later epoch
                _logger.error(
                    "tidewire.consumer.lane_fenced", extra={"group": self._group, "lane": lane, "epoch": epoch}
                )
                return
            except StoreUnavailable as error:
                self._outage.begin(error)
                await self._outage.over()
                if self._outage.stopped:
                    return
        self._epochs[lane] = epoch

    def revoke(self, lane: str) -> None:
        """*lane* is to go once nothing of it is here."""
        self._revoking.add(lane)

    def fenced(self, lane: str) -> None:
        """The store knows a newer owner of *lane*; the broker has not told us, and may wait until it is drained."""
        self._epochs.pop(lane, None)

    def forget(self, lane: str) -> None:
        """*lane* is not ours any more, says the broker."""
        self._epochs.pop(lane, None)
        self._revoking.discard(lane)

    def drained(self, empty: Callable[[str], bool]) -> list[str]:
        """Forget the lanes that are to go and are *empty*, and return them."""
        lanes = sorted(lane for lane in self._revoking if empty(lane))
        for lane in lanes:
            self.forget(lane)
        return lanes
