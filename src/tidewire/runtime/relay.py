"""The relay: committed outbox rows go to the broker, in order, at least once, and only then away.

Whoever holds the store's lease on a part of the outbox reads that part in row order. What leaves together is a
flight: claim → publish → mark done what has a positive receipt. Several flights may be on their way, never two with
rows of one key, so a slow broker delays nobody who does not wait for it. A crash repeats with the same ids.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Sequence
from contextlib import suppress
from datetime import timedelta

from tidewire.errors import ConfigurationError, StoreUnavailable, TransportUnavailable
from tidewire.kit.groups import first_error
from tidewire.kit.looks import Identified, SeesRelays
from tidewire.kit.waits import happens
from tidewire.model import Pending, Receipt
from tidewire.protocols import Store, Transport
from tidewire.rules.letters import topic_of
from tidewire.rules.relaying import Flight, Place, Traffic, last_page, places_of, relay_name, strangers
from tidewire.rules.retry import outage_delay
from tidewire.runtime.cleaner import Cleaner
from tidewire.runtime.parts import Parts
from tidewire.runtime.producer import published, quarantined
from tidewire.runtime.subscriber import Health
from tidewire.runtime.topology import Topology

__all__ = ["Relay"]

_logger = logging.getLogger("tidewire.relay")
_BATCH = 512
_ROWS_MAX, _FLIGHTS_MAX = 2_048, 16
_REFUSALS_MAX = 5
_AHEAD_MAX, _BEHIND_MAX = 4, 64
_LEAST = timedelta(milliseconds=1)
_BREATH_MAX = 0.005


class Relay:
    """Publishes the outbox of one store; several may run, the store's leases divide the work."""

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
        self._cleaner = Cleaner(store, owner=owner, lease=lease, parts=parts)
        self._traffic = Traffic(rows_max=_ROWS_MAX, flights_max=_FLIGHTS_MAX)
        self._stopping = asyncio.Event()
        self._moved = asyncio.Event()
        self._trouble: Exception | None = None
        self._outages = 0
        self._outages_of: dict[str, int] = {}
        self._strange: set[str] = set()
        self._leased_until = 0
        self._leads = False
        self._broker: str | None = None
        self._published = 0
        self._left_over = False
        self._waiting: asyncio.Task[None] | None = None
        self._woken = False

    async def look_around(self) -> None:
        """Make sure that other live relays of this outbox publish to our broker; nothing where nobody can tell.

        Raises:
            ConfigurationError: one publishes to another: whose events leave where would be chance.
            StoreUnavailable, TransportUnavailable: they cannot be asked now.
        """
        broker: object = self._transport
        if not isinstance(broker, Identified) or not isinstance(self._store, SeesRelays):
            return
        if self._broker is None:
            self._broker = await broker.identity()
            self._owner = relay_name(self._owner, self._broker)
        if not self._broker:
            return
        live = await self._store.relays()
        others = strangers(live, self._owner)
        # Of two that have begun at the same moment, one goes on.
        if others and not (self._owner in live and self._owner < min(others)):
            raise ConfigurationError(
                f"a live relay of this outbox publishes to another broker: {others[0]}; this one is {self._owner}",
                hint="give each service a store, a schema or a prefix of its own; or, to move to another broker, stop "
                "every process of the service first (one that was killed counts until its lease ends, after 10 s)",
            )

    async def run(self) -> None:
        """Until `stop`: relay. A store or broker that is down is waited for, longer each time."""
        try:
            async with asyncio.TaskGroup() as flights:
                while not self._stopping.is_set():
                    try:
                        await self._round(flights)
                    except (StoreUnavailable, TransportUnavailable) as error:
                        await self._back_off(error)
        except BaseExceptionGroup as group:
            raise first_error(group) from None
        finally:
            self._leased_until = 0

    def stop(self) -> None:
        """Let `run` return once what is on its way has landed; what is left, the next relay publishes."""
        self._stopping.set()
        self._wake()

    def health(self) -> Health:
        """Say how the relay is: deaf while the store or the broker is away. One that stands by is well, too."""
        why = "waiting for something that is down" if self._outages or self._trouble is not None else ""
        if self._strange:
            why = self._no_topics()
        return Health(ready=not why, why=why, rebuilds=0, progress=self._published, waiting=len(self._traffic.rows))

    async def flush(self, longest: timedelta) -> int:
        """Relay until nothing is due or *longest* has passed; return how many rows are still pending.

        -1: the store or the broker was not there for some of them. Gives the lease back, so that another process can
        go on at once.

        Raises:
            ConfigurationError: the broker has none of the topics, or is not that of another live relay; nothing was
                changed.
        """
        self._trouble = None
        try:
            await self.look_around()
            with suppress(TimeoutError):  # what is on its way then is cut off, and sent again by the next relay
                async with asyncio.timeout(longest.total_seconds()), asyncio.TaskGroup() as flights:
                    await self._empty(flights)
            await self._store.backlog.lease(self._owner, timedelta(0))
            pending, _ = await self._store.outbox.count()
            self._raise_trouble()
        except (StoreUnavailable, TransportUnavailable) as error:
            if self._strange:
                hint = "is it another broker that is meant? --provision creates topics"
                raise ConfigurationError(self._no_topics(), hint=hint) from error
            _logger.warning("tidewire.relay.unavailable", extra={"error_type": type(error).__name__})
            return -1
        except BaseExceptionGroup as group:
            raise first_error(group) from None
        finally:
            self._leased_until = 0
        return pending

    async def _empty(self, flights: asyncio.TaskGroup) -> None:
        """Let everything leave that is due, and wait for it."""
        while self._trouble is None and await self._lease():
            self._moved.clear()
            await self._send(flights)
            rests = self._traffic.resting(self._now())
            if not self._traffic.rows:
                if rests is None and not self._left_over:
                    return
                if self._outages_of:
                    self._trouble = TransportUnavailable("the broker did not store some events; they are sent again")
                    return
            await happens(self._moved, None if rests is None else max(_LEAST.total_seconds(), rests))

    async def _round(self, flights: asyncio.TaskGroup) -> None:
        self._raise_trouble()
        if not await self._lease():
            await self._pause((self._lease_for / 8).total_seconds())
            return
        longest = await self._cleaner.clean() or self._lease_for / 4
        self._moved.clear()
        began = self._now()
        await self._send(flights)
        took = self._now() - began
        if not self._traffic.rows:
            self._outages = 0
        if not self._left_over:  # to look costs the store the same for one row as for many: it gets as long a rest
            await self._pause(min(took, _BREATH_MAX))
        rests = self._traffic.resting(self._now())
        # Never no time at all: of what ends within less than the clocks can tell, only time makes an end.
        await self._wait(max(_LEAST, longest if rests is None else min(longest, timedelta(seconds=rests))))

    async def _send(self, flights: asyncio.TaskGroup) -> None:
        """Let everything leave that may, a batch at a time.

        What lies behind rows that wait is looked for, too: far behind those of a topic that rests, and a little way
        ahead of a key that is on its way.
        """
        look = self._traffic.look(self._now())
        after, pages = 0, 0
        while self._traffic.room >= _BATCH and pages < (_BEHIND_MAX if self._outages_of else _AHEAD_MAX):
            rows = await self._store.backlog.claim(
                self._owner, after=after, limit=_BATCH, without=frozenset(self._traffic.rows)
            )
            chosen = look.choose(rows)
            if chosen:
                look.depart(chosen)
                flights.create_task(self._fly(self._traffic.depart(chosen)))
            if last_page(rows, _BATCH):
                self._left_over = look.passed_over
                return
            pages = 0 if len(chosen) == len(rows) else pages + 1
            after = rows[-1].row
        self._left_over = True

    async def _fly(self, flight: Flight) -> None:
        """Publish the rows of *flight* and mark what is stored. What is down is told to the next round."""
        rows = flight.rows
        try:
            await self._topology.ensure(topic_of(row.message.to) for row in rows)
            receipts = await self._transport.publish([row.message for row in rows])
            stored = [row for row, receipt in zip(rows, receipts, strict=True) if receipt.ok]
            if len(stored) == len(rows):
                self._traffic.answered(flight)
                self._movement()
            if stored:
                await self._mark_done(stored)
            if len(stored) < len(rows):
                await self._not_stored(rows, receipts)
        except (StoreUnavailable, TransportUnavailable) as error:
            self._trouble = error
        finally:
            self._traffic.landed(flight)
            self._movement()

    async def _mark_done(self, stored: Sequence[Pending]) -> None:
        self._outages = 0
        self._published += len(stored)
        self._strange.clear()
        for topic in {topic_of(row.message.to) for row in stored} if self._outages_of else ():
            self._outages_of.pop(topic, None)
        if not await self._store.backlog.done(self._owner, [row.row for row in stored]):
            self._leased_until = 0  # somebody else relays these now; the broker recognises what we sent twice
            self._left_over = True
        elif self._observer is not None:
            now = self._clock.now_us()
            self._observer.record([published(row.message, now) for row in stored])

    async def _not_stored(self, rows: Sequence[Pending], receipts: Sequence[Receipt]) -> None:
        """Sort refusals: a row the broker will never take is quarantined, the rest is sent again with its id.

        A broker that has taken nothing yet and does not know the topics is more likely the wrong one than the rows are.
        """
        self._left_over = True
        waiting: dict[str, str] = {}
        for row, receipt in zip(rows, receipts, strict=True):
            if receipt.ok or receipt.reason == "after_failure":
                continue
            is_strange = receipt.reason == "unknown_topic" and not self._published
            if is_strange:
                self._strange.add(topic_of(row.message.to))
            if is_strange or receipt.status == "unknown" or receipt.reason == "full":
                waiting[topic_of(row.message.to)] = receipt.reason or receipt.status
                continue
            self._rest(places_of(row)[1], row.attempts)
            detail = f"{receipt.reason}: {receipt.detail}"
            if await self._store.backlog.refused(self._owner, row.row, detail=detail, attempts_max=_REFUSALS_MAX):
                fields = {"event_id": row.message.id, "reason": receipt.reason}
                _logger.error("tidewire.relay.quarantined", extra=fields)
                if self._observer is not None:
                    self._observer.record([quarantined(row.message, self._clock.now_us(), reason=receipt.reason)])
        for topic, reason in waiting.items():
            if self._traffic.rests(topic, self._now()):
                continue  # a flight that was on its way with the first one says the same
            outages = self._outages_of.get(topic, 0)
            self._outages_of[topic] = outages + 1
            delay = self._rest(topic, outages)
            if topic in self._strange:
                _logger.error("tidewire.relay.no_topics", extra={"topic": topic, "delay_s": delay})
            else:
                _logger.warning("tidewire.relay.waiting", extra={"topic": topic, "reason": reason, "delay_s": delay})

    def _no_topics(self) -> str:
        names = sorted(self._strange)
        more = f" and {len(names) - 3} more" if len(names) > 3 else ""
        return f"the broker has taken nothing and has none of the topics: {', '.join(names[:3])}{more}"

    def _rest(self, place: Place, before: int) -> float:
        """Let nothing of *place* leave for a while, the longer the more often that happened *before*."""
        delay = outage_delay(before, self._jitter).total_seconds()
        self._traffic.rest(place, self._now() + delay)
        return delay

    async def _lease(self) -> bool:
        """Take the lease, or extend it when half of it has passed (by ticks that never jump)."""
        now = self._clock.ticks()
        if now >= self._leased_until:
            self._leads = await self._store.backlog.lease(self._owner, self._lease_for)
            if self._leads:
                self._leased_until = now + int(self._lease_for.total_seconds() * 5e8)
            await self.look_around()
        return self._leads

    async def _wait(self, longest: timedelta) -> None:
        """Wait for rows, for a flight that others wait for, or for `stop`; these two cancel it and nothing else."""
        task = asyncio.current_task()
        assert task is not None
        if self._stopping.is_set() or (self._moved.is_set() and self._wanted()):
            return
        self._waiting, self._woken = task, False
        try:
            await self._store.outbox.wait(longest)
        except asyncio.CancelledError:
            if not self._woken or task.uncancel() > 0:
                raise
        finally:
            self._waiting = None

    def _wanted(self) -> bool:
        """Whether somebody waits for a flight to land."""
        return self._left_over or self._trouble is not None

    def _movement(self) -> None:
        self._moved.set()
        if self._wanted():
            self._wake()

    def _wake(self) -> None:
        if self._waiting is not None and not self._woken:
            self._woken = True
            self._waiting.cancel()

    def _raise_trouble(self) -> None:
        trouble, self._trouble = self._trouble, None
        if trouble is not None:
            raise trouble

    async def _back_off(self, error: Exception) -> None:
        self._leased_until = 0
        delay = outage_delay(self._outages, self._jitter)
        self._outages += 1
        fields = {"error_type": type(error).__name__, "delay_s": delay.total_seconds()}
        _logger.warning("tidewire.relay.unavailable", extra=fields)
        await self._pause(delay.total_seconds())

    async def _pause(self, seconds: float) -> None:
        if seconds > 0.0:
            await happens(self._stopping, seconds)

    def _now(self) -> float:
        return asyncio.get_running_loop().time()
