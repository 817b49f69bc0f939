"""Keeps one subscription alive: joins, notices when nothing moves, rebuilds from nothing, and says how it is."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from contextlib import AbstractAsyncContextManager

import msgspec

from tidewire.errors import ConfigurationError, StoreRefused, TransportRefused, TransportUnavailable
from tidewire.kit.groups import first_error
from tidewire.kit.waits import happens
from tidewire.model import Fact, Subscription
from tidewire.protocols import Receiver, Transport
from tidewire.rules.retry import outage_delay
from tidewire.runtime.consumer import Consumer
from tidewire.runtime.parts import Parts
from tidewire.runtime.watchdog import Patience, Watchdog

__all__ = ["Health", "Subscriber"]

_logger = logging.getLogger("tidewire.consumer")


class Health(msgspec.Struct, frozen=True, kw_only=True):
    """How one subscription is. *ready* is false exactly when it is deaf: not joined, stuck, or waiting for
    something that is down; *why* says which. *rebuilds* counts fresh starts after the first, *stalls* those that
    were made since nothing came although events waited."""

    ready: bool
    why: str
    rebuilds: int
    progress: int
    waiting: int
    stalls: int = 0


class Subscriber:
    """One subscription of one process, over as many memberships as it takes."""

    def __init__(
        self,
        *,
        transport: Transport,
        subscription: Subscription,
        make_consumer: Callable[[Receiver], Consumer],
        parts: Parts,
        patience: Patience,
    ) -> None:
        self._transport = transport
        self._subscription = subscription
        self._make_consumer = make_consumer
        self._parts = parts
        self._watchdog = Watchdog(transport, subscription, patience)
        self._consumer: Consumer | None = None
        self._stopping = asyncio.Event()
        self._failures = 0
        self._why = "not joined yet"
        self.joined = asyncio.Event()
        self.rebuilds = -1

    async def run(self) -> None:
        """Until `stop`: be a member of the group. An outage or a stall ends the membership and begins another.

        Raises:
            ConfigurationError, TransportRefused, StoreRefused: a person must change something first.
        """
        while not self._stopping.is_set():
            self.rebuilds += 1
            try:
                await self._membership()
            except* (ConfigurationError, TransportRefused, StoreRefused) as group:
                raise first_error(group) from None
            except* Exception as group:  # an outage, or a defect of ours: counted, told, and begun anew
                self._note_failure(first_error(group))
            if not self._stopping.is_set():
                await self._back_off()

    def stop(self) -> None:
        """End the membership gracefully; `run` returns when it has ended."""
        self._stopping.set()
        if self._consumer is not None:
            self._consumer.stop()

    def health(self) -> Health:
        """Say how this subscription is, now."""
        consumer = self._consumer
        why = self._why or self._watchdog.why(consumer)
        if consumer is not None and consumer.paused:
            why = "waiting for something that is down"
        return Health(
            ready=not why,
            why=why,
            rebuilds=max(self.rebuilds, 0),
            progress=0 if consumer is None else consumer.progress,
            waiting=0 if consumer is None else consumer.waiting,
            stalls=self._watchdog.stalls,
        )

    async def _membership(self) -> None:
        joining: AbstractAsyncContextManager[Receiver] = self._transport.subscribe(self._subscription)
        async with joining as receiver:
            consumer = self._consumer = self._make_consumer(receiver)
            self._why = ""
            self.joined.set()
            if self._stopping.is_set():
                consumer.stop()
            try:
                async with asyncio.TaskGroup() as tasks:
                    watch = tasks.create_task(self._watch(consumer))
                    await consumer.run()
                    watch.cancel()
            finally:
                self._consumer = None
                self._why = "not joined"
                if consumer.progress:
                    self._failures = 0

    async def _watch(self, consumer: Consumer) -> None:
        """Until cancelled, or *consumer* is deaf: then it ends, gives back what it has, and another one begins."""
        silent = await self._watchdog.until_deaf(consumer)
        group, topics = self._subscription.group, ", ".join(self._subscription.topics)
        fields = {"group": group, "topics": topics, "lag": self._watchdog.lag, "silent_s": silent}
        _logger.warning("tidewire.consumer.deaf", extra=fields)
        if self._parts.observer is not None:
            self._parts.observer.record([Fact("rebuilt", "", "", topics, group, self._parts.clock.now_us())])
        consumer.stop()

    def _note_failure(self, error: BaseException) -> None:
        self._failures += 1
        fields = {"group": self._subscription.group, "error_type": type(error).__name__, "failures": self._failures}
        if isinstance(error, TransportUnavailable):
            self._why = f"the broker is not there: {error.message}"
            _logger.warning("tidewire.consumer.unavailable", extra=fields)
        else:
            self._why = f"the consumer failed: {type(error).__name__}"
            _logger.error("tidewire.consumer.crashed", extra=fields, exc_info=error)

    async def _back_off(self) -> None:
        delay = outage_delay(min(self._failures, 8), self._parts.jitter).total_seconds()
        await happens(self._stopping, delay)
