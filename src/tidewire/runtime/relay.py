"""The relay: committed outbox rows go to the broker, in order, at least once, and only then away.

One process at a time holds the store's lease and reads rows in commit order, so the order of a key needs no
further care: one publish call is in flight, and its receipts are awaited before the next. What the relay does in
one round: claim → publish → mark done what has a positive receipt. A crash in between repeats with the same ids.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Sequence
from datetime import timedelta

from tidewire.errors import StoreUnavailable, TransportUnavailable
from tidewire.model import Pending, Receipt
from tidewire.protocols import Store, Transport
from tidewire.rules.letters import DEDUP_WINDOW, topic_of
from tidewire.rules.retry import outage_delay
from tidewire.runtime.parts import Parts
from tidewire.runtime.producer import published
from tidewire.runtime.topology import Topology

__all__ = ["Relay"]

_logger = logging.getLogger("tidewire.relay")
_BATCH = 512
_REFUSALS_MAX = 5
_BEHIND_MAX = 64
_PRUNE_EVERY, _PRUNE_AGAIN, _PRUNE_ROWS = 10_000_000_000, 100_000_000, 1_000


class Relay:
    """Publishes the outbox of one store; several may run, the lease lets one work."""

    def __init__(
        self,
        *,
        store: Store,
        transport: Transport,
        topology: Topology,
        owner: str,
        lease: timedelta,
        parts: Parts,
    ) -> None:
        self._store = store
        self._transport = transport
        self._topology = topology
        self._owner = owner
        self._lease_for = lease
        self._clock = parts.clock
        self._jitter = parts.jitter
        self._observer = parts.observer
        self._stopping = asyncio.Event()
        self._outages = 0
        self._leased_until = 0
        self._prune_at = 0
        self._pruning = False
        self._waiting: asyncio.Task[None] | None = None

    async def run(self) -> None:
        """Until `stop`: relay. A store or broker that is down is waited for, longer each time."""
        try:
            while not self._stopping.is_set():
                try:
                    await self._round(self._lease_for / 4)
                    self._outages = 0
                except (StoreUnavailable, TransportUnavailable) as error:
                    await self._back_off(error)
        finally:
            self._leased_until = 0

    def stop(self) -> None:
        """Let `run` return after the round it is in; what is left, the next relay publishes."""
        self._stopping.set()
        if self._waiting is not None:
            self._waiting.cancel()

    async def flush(self, longest: timedelta) -> int:
        """Relay until nothing is due or *longest* has passed; return how many rows are still pending.

        Gives the lease back, so that another process can go on at once.
        """
        loop = asyncio.get_running_loop()
        deadline = loop.time() + longest.total_seconds()
        try:
            while loop.time() < deadline and await self._lease():
                if not await self._publish_due():
                    break
            await self._store.backlog.lease(self._owner, timedelta(0))
            pending, _ = await self._store.outbox.count()
        except (StoreUnavailable, TransportUnavailable) as error:
            _logger.warning("tidewire.relay.unavailable", extra={"error_type": type(error).__name__})
            return -1
        finally:
            self._leased_until = 0
        return pending

    async def _round(self, longest: timedelta) -> None:
        if not await self._lease():
            await self._pause((self._lease_for / 8).total_seconds())
            return
        pruning = await self._forget_old_marks()
        if not await self._publish_due():
            await self._wait(min(longest, timedelta(microseconds=_PRUNE_AGAIN // 1_000)) if pruning else longest)

    async def _forget_old_marks(self) -> bool:
        """Prune inbox marks beyond the dedup window, a bounded batch now and then: only the leaseholder does.

        However busy the relay is, and soon again while there are more (True), or they would grow for ever.
        """
        now = self._clock.ticks()
        if now >= self._prune_at:
            before = self._clock.now_us() - DEDUP_WINDOW // timedelta(microseconds=1)
            gone = await self._store.inbox.prune(before, _PRUNE_ROWS)
            self._prune_at = now + (_PRUNE_AGAIN if gone >= _PRUNE_ROWS else _PRUNE_EVERY)
            self._pruning = gone >= _PRUNE_ROWS
        return self._pruning

    async def _wait(self, longest: timedelta) -> None:
        """Wait for rows, or for `stop`, which cancels this and nothing else."""
        task = self._waiting = asyncio.current_task()
        try:
            if not self._stopping.is_set():
                await self._store.outbox.wait(longest)
        except asyncio.CancelledError:
            if not self._stopping.is_set() or task is None or task.uncancel() > 0:
                raise
        finally:
            self._waiting = None

    async def _lease(self) -> bool:
        """Take the lease, or extend it when half of it has passed (by ticks that never jump)."""
        now = self._clock.ticks()
        if now < self._leased_until:
            return True
        if not await self._store.backlog.lease(self._owner, self._lease_for):
            return False
        self._leased_until = now + int(self._lease_for.total_seconds() * 5e8)
        return True

    async def _publish_due(self) -> bool:
        """Publish what is due, a batch at a time; False if there was nothing.

        Raises:
            TransportUnavailable: some of it has to wait; what lies behind it for other topics has been tried.
        """
        rows = await self._store.backlog.claim(self._owner, after=0, limit=_BATCH)
        if not rows:
            return False
        waiting = await self._publish_rows(rows)
        for _ in range(_BEHIND_MAX if waiting else 0):
            rows = await self._store.backlog.claim(self._owner, after=rows[-1].row, limit=_BATCH)
            if not rows:
                break
            others = [row for row in rows if topic_of(row.message.to) not in waiting]
            if others:
                waiting |= await self._publish_rows(others)
        if waiting:
            raise TransportUnavailable("the broker did not store some events; they are sent again")
        return True

    async def _publish_rows(self, rows: Sequence[Pending]) -> set[str]:
        """Publish *rows*, mark what is stored, and return the topics that have to wait."""
        await self._topology.ensure(topic_of(row.message.to) for row in rows)
        receipts = await self._transport.publish([row.message for row in rows])
        stored = [row for row, receipt in zip(rows, receipts, strict=True) if receipt.ok]
        if stored:
            self._outages = 0
            if not await self._store.backlog.done(self._owner, [row.row for row in stored]):
                self._leased_until = 0  # somebody else relays now; the broker recognises what we sent twice
                return set()
            if self._observer is not None:
                now = self._clock.now_us()
                self._observer.record([published(row.message, now) for row in stored])
        return set() if len(stored) == len(rows) else await self._not_stored(rows, receipts)

    async def _not_stored(self, rows: Sequence[Pending], receipts: Sequence[Receipt]) -> set[str]:
        """Sort refusals: a row the broker will never take is quarantined, the rest is sent again with its id.

        Returns the topics of the rest.
        """
        waiting: set[str] = set()
        for row, receipt in zip(rows, receipts, strict=True):
            if receipt.ok or receipt.reason == "after_failure":
                continue
            if receipt.status == "unknown" or receipt.reason == "full":
                waiting.add(topic_of(row.message.to))
                continue
            detail = f"{receipt.reason}: {receipt.detail}"
            if await self._store.backlog.refused(self._owner, row.row, detail=detail, attempts_max=_REFUSALS_MAX):
                fields = {"event_id": row.message.id, "reason": receipt.reason}
                _logger.error("tidewire.relay.quarantined", extra=fields)
        return waiting

    async def _back_off(self, error: Exception) -> None:
        self._leased_until = 0
        delay = outage_delay(self._outages, self._jitter)
        self._outages += 1
        fields = {"error_type": type(error).__name__, "delay_s": delay.total_seconds()}
        _logger.warning("tidewire.relay.unavailable", extra=fields)
        await self._pause(delay.total_seconds())

    async def _pause(self, seconds: float) -> None:
        try:
            async with asyncio.timeout(seconds):
                await self._stopping.wait()
        except TimeoutError:
            return
