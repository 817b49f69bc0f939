"""Notices that a consumer is alive but deaf: it asks for deliveries, they wait at the broker, and none comes."""

from __future__ import annotations

import asyncio
from datetime import timedelta
from typing import Protocol, runtime_checkable

import msgspec

from tidewire.errors import TransportUnavailable
from tidewire.model import GroupInfo, Subscription
from tidewire.protocols import Lagging, Transport
from tidewire.rules.stalls import Finding, Seen, Stalls
from tidewire.runtime.consumer import Consumer

__all__ = ["Patience", "Watchdog"]

_LOOKS = 4
_WHY: dict[Finding, str] = {
    "unknown": "the broker does not say whether events wait",
    "doubtful": "no progress: events wait, and none comes",
}


class Patience(msgspec.Struct, frozen=True, kw_only=True):
    """How long (*after*) a consumer may ask in vain although *lag* messages or more wait, before it is rebuilt."""

    after: timedelta = timedelta(seconds=60)
    lag: int = 1


@runtime_checkable
class HasGroups(Protocol):
    """A transport that can say what waits for a group, and who has its lanes."""

    async def groups(self, topic: str | None = None) -> list[GroupInfo]:
        """See `tidewire.protocols.Inspector`."""
        ...


class Watchdog:
    """Looks at one subscription's consumer a few times in each window; asks the broker only if nothing has come."""

    def __init__(self, transport: Transport, subscription: Subscription, patience: Patience) -> None:
        self._transport = transport
        self._subscription = subscription
        self._stalls = Stalls(patience.after, lag_min=patience.lag)
        self._lag_min = patience.lag
        self._interval = patience.after.total_seconds() / _LOOKS
        self._finding: Finding = "quiet"
        self._unproven = False
        self.lag = 0
        self.stalls = 0

    def why(self, consumer: Consumer | None) -> str:
        """Return why the subscription is not ready as far as this has seen, or nothing.

        One that was rebuilt has to prove that it hears: something was received, or nothing waits.
        """
        if self._unproven and (consumer is None or not consumer.received):
            return "no progress: it was rebuilt, and nothing has come yet"
        return _WHY.get(self._finding, "")

    async def until_deaf(self, consumer: Consumer) -> float:
        """Return when *consumer* has asked in vain for the whole window, and how many seconds that was."""
        loop = asyncio.get_running_loop()
        stalls = self._stalls
        stalls.begin(consumer.mark)
        self._finding = "quiet"
        while True:  # until cancelled, or it is deaf
            await asyncio.sleep(self._interval)
            window = stalls.window.total_seconds()
            mark, asks, lag = consumer.mark, consumer.asks, None
            if stalls.needs_lag(mark, asks=asks):
                lag = await self._lag(consumer)
                if (consumer.mark, consumer.asks) != (mark, asks):
                    continue  # something came while we asked
            self.lag = lag or 0
            self._finding = stalls.judge(Seen(now=loop.time(), mark=mark, asks=asks, lag=lag))
            if consumer.received or not asks or (lag is not None and lag < self._lag_min):
                self._unproven = False  # without lanes there is nothing to hear
            if self._finding == "deaf":
                self._unproven = True
                self.stalls += 1
                return window

    async def _lag(self, consumer: Consumer) -> int | None:
        """Return how many messages wait for this member, or None if the broker did not say so in time."""
        try:
            async with asyncio.timeout(self._interval):
                if isinstance(self._transport, Lagging):
                    return await self._transport.lag(self._subscription.group, consumer.lanes)
                if isinstance(self._transport, HasGroups):
                    return await self._lag_of_group(consumer, self._transport)
        except (TimeoutError, TransportUnavailable):
            return None
        return 0

    async def _lag_of_group(self, consumer: Consumer, transport: HasGroups) -> int:
        """Return what waits for the whole group, if that can only be for this member: it has every lane that anybody
        has, and nothing in hand that others of a key may wait behind."""
        if consumer.waiting:
            return 0
        lag = 0
        for topic in self._subscription.topics:
            for info in await transport.groups(topic):
                if info.group != self._subscription.group:
                    continue
                owners = info.owners
                if owners is None or (owners and set(owners.values()) <= {self._subscription.member}):
                    lag += info.stats.ready or 0
        return lag
