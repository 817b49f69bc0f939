"""Settling in batches: wait until effects are durable, then tell the broker. Only here is anything settled."""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress
from typing import Protocol, TypeVar

from tidewire.errors import (
    AlreadyMarked,
    LaneFenced,
    PublishRejected,
    StoreError,
    StoreRefused,
    StoreUnavailable,
    TransactionLost,
    TransportError,
    TransportUnavailable,
)
from tidewire.model import Delivery, Message, Move, Release, Settlement
from tidewire.protocols import Receiver
from tidewire.runtime.work import Work

__all__ = ["Settler"]

T = TypeVar("T")
_BATCH_MAX = 1_024
_PAUSE_FIRST, _PAUSE_MAX = 0.05, 5.0
_LET_GO_MAX = 2.0
_logger = logging.getLogger("tidewire.consumer")


class Owner(Protocol):
    """What the settler tells the consumer."""

    def confirmed(self, work: Work) -> None:
        """The work's effect is durable."""

    def again(self, work: Work, error: Exception, *, alone: bool) -> None:
        """The work's effect is not durable: nothing of it is stored, run it again."""

    def fenced(self, work: Work) -> None:
        """Another member owns the lane: forget it."""

    def refused(self, work: Work, error: PublishRejected) -> None:
        """The broker will never store what the work's handlers returned; nothing of it is stored."""

    def settled(self, works: Sequence[Work], lost: Sequence[Work]) -> None:
        """The broker knows of *works*; *lost* ones belong to somebody else now."""


class Settler:
    """Two stages, each its own task: `confirm` waits for commits, `settle` talks to the broker."""

    def __init__(self, receiver: Receiver, owner: Owner, finish: Callable[[Work], Awaitable[None]]) -> None:
        self._receiver = receiver
        self._owner = owner
        self._finish = finish
        self._provisional: deque[tuple[Work, Awaitable[None]]] = deque()
        self._acks: deque[Work] = deque()
        self._moves: deque[tuple[Work, Sequence[Message]]] = deque()
        self._releases: deque[Delivery] = deque()
        self._drained: deque[str] = deque()
        self._to_confirm = asyncio.Event()
        self._to_settle = asyncio.Event()
        self._busy = False

    @property
    def idle(self) -> bool:
        """Whether nothing waits to be confirmed or settled."""
        return not self._provisional and not self._queued and not self._busy

    @property
    def _queued(self) -> bool:
        return bool(self._acks or self._moves or self._releases or self._drained)

    def provisional(self, work: Work, durable: Awaitable[None]) -> None:
        """Ack *work* once *durable* resolves."""
        self._provisional.append((work, durable))
        self._to_confirm.set()

    def ack(self, work: Work) -> None:
        """Ack *work*; its effect is certain."""
        self._acks.append(work)
        self._to_settle.set()

    def move(self, work: Work, messages: Sequence[Message]) -> None:
        """Store *messages*, then ack *work*."""
        self._moves.append((work, messages))
        self._to_settle.set()

    def release(self, deliveries: Sequence[Delivery]) -> None:
        """Give *deliveries* back, uncounted."""
        if deliveries:
            self._releases.extend(deliveries)
            self._to_settle.set()

    def drained(self, lane: str) -> None:
        """Say that *lane*, which is being revoked, is settled as far as it will be."""
        self._drained.append(lane)
        self._to_settle.set()

    async def confirm(self) -> None:
        """Until cancelled: pass on what has become durable, in the order it ran."""
        queue = self._provisional
        while True:
            await self._to_confirm.wait()
            self._to_confirm.clear()
            while queue:
                work, durable = queue[0]
                try:
                    with suppress(AlreadyMarked):  # another delivery of it took effect: it is as durable as ours
                        await durable
                    if work.stored or work.held_row:
                        await self._finish(work)
                except LaneFenced:
                    self._owner.fenced(work)
                except (StoreUnavailable, StoreRefused, TransactionLost) as error:
                    self._owner.again(work, error, alone=isinstance(error, TransactionLost))
                else:
                    self._confirmed(work)
                queue.popleft()

    def _confirmed(self, work: Work) -> None:
        self._owner.confirmed(work)
        self.ack(work)

    async def settle(self) -> None:
        """Until cancelled: settle what has piled up, in one call at a time."""
        pause = _PAUSE_FIRST
        while True:
            await self._to_settle.wait()
            self._to_settle.clear()
            self._busy = True
            try:
                complete = await self._settle_batch()
            except TransportUnavailable as error:
                _logger.warning("tidewire.consumer.settle_unavailable", extra={"error_type": type(error).__name__})
                complete = False
            finally:
                self._busy = False
            if complete:
                pause = _PAUSE_FIRST
            else:  # what is queued stays queued; a broker that is down is asked less and less often
                await asyncio.sleep(pause)
                pause = min(pause * 2, _PAUSE_MAX)
            if self._queued:
                self._to_settle.set()

    async def let_go(self, works: Sequence[Work], forget: Callable[[Work], Awaitable[None]]) -> None:
        """Give back, uncounted, what was cut off: both stages and the handlers have ended, nobody else settles it.

        A suspect among it has not killed anybody: its start does not count. What cannot be done in time is done by
        the end of the lease.
        """
        with suppress(TimeoutError, TransportError, StoreError):
            async with asyncio.timeout(_LET_GO_MAX):
                if works:
                    await self._receiver.settle(release=[Release(work.delivery, counted=False) for work in works])
                for work in works:
                    if work.started:
                        await forget(work)

    async def _settle_batch(self) -> bool:
        """Settle up to a batch and drop it from the queues; False if a move failed and is still queued."""
        acked, moved, releases = _first(self._acks), _first(self._moves), _first(self._releases)
        acks = [work for work in acked if not work.gone]
        moves = [(work, messages) for work, messages in moved if not work.gone]
        failed: list[tuple[Work, Sequence[Message]]] = []
        if acks or moves or releases:
            settlements = await self._receiver.settle(
                ack=[work.delivery for work in acks],
                release=[Release(delivery, counted=False) for delivery in releases],
                move=[Move(work.delivery, messages) for work, messages in moves],
            )
            failed = self._report(acks, moves, settlements)
        _drop(self._acks, len(acked))
        _drop(self._moves, len(moved))
        _drop(self._releases, len(releases))
        gone = [work for work in acked if work.gone] + [work for work, _ in moved if work.gone]
        if gone:
            self._owner.settled((), gone)
        self._moves.extendleft(reversed(failed))
        await self._let_go_of_drained()
        return not failed

    async def _let_go_of_drained(self) -> None:
        """Say which lanes are drained, but for those of which something is still to be given back.

        The broker would take that for something whose handler may have started.
        """
        unsaid = {delivery.lane for delivery in self._releases}
        drained = [lane for lane in self._drained if lane not in unsaid]
        if drained:
            await self._receiver.steer(drained=drained)  # a broker that is away hears of them when it is back
            for lane in drained:
                self._drained.remove(lane)

    def _report(
        self, acks: Sequence[Work], moves: Sequence[tuple[Work, Sequence[Message]]], settlements: Sequence[Settlement]
    ) -> list[tuple[Work, Sequence[Message]]]:
        """Tell the owner what became of a batch and return the moves that failed."""
        settled: list[Work] = []
        lost: list[Work] = []
        failed: list[tuple[Work, Sequence[Message]]] = []
        for work, settlement in zip(acks, settlements, strict=False):
            (settled if settlement.status == "settled" else lost).append(work)
        for (work, messages), settlement in zip(moves, settlements[len(settlements) - len(moves) :], strict=True):
            refusal = _refusal(work, settlement)
            if refusal is not None:
                self._owner.refused(work, refusal)
            elif settlement.status == "failed":
                failed.append((work, messages))
                reasons = [receipt.reason for receipt in settlement.receipts if not receipt.ok]
                fields = {"event_id": work.delivery.message.id, "reason": ", ".join(reasons)}
                _logger.error("tidewire.consumer.move_failed", extra=fields)
            else:
                (settled if settlement.status == "settled" else lost).append(work)
        self._owner.settled(settled, lost)
        return failed


def _first(queue: deque[T]) -> list[T]:
    return list(queue) if len(queue) <= _BATCH_MAX else [queue[index] for index in range(_BATCH_MAX)]


def _drop(queue: deque[T], count: int) -> None:
    if count == len(queue):
        queue.clear()
        return
    for _ in range(count):
        queue.popleft()


def _refusal(work: Work, settlement: Settlement) -> PublishRejected | None:
    """Return why what handlers returned can never be stored, or None: it was, or it may be another time."""
    if settlement.status != "failed" or not work.outgoing:
        return None
    for receipt in settlement.receipts:
        if receipt.status == "rejected" and receipt.reason not in ("full", "after_failure"):
            what = f"what was returned: not stored, {receipt.reason}: {receipt.detail}"
            return PublishRejected(what, event_id=receipt.id)
    return None
