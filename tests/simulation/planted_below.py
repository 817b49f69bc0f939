"""Bugs on purpose in the broker and the store."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from datetime import timedelta
from typing import Any

import msgspec
from planting import patch, plant

from tidewire.model import Mark, Message, Receipt, Settlement
from tidewire.rules import letters
from tidewire.runtime import consumer, pipeline
from tidewire.stores.memory import outbox, records, unit
from tidewire.testing.simulation import stores as simulated
from tidewire.transports.memory import groups, log, transport
from tidewire.transports.memory.broker import MemoryBroker

# --- broker ---------------------------------------------------------------------------------------------------


@plant("PB-1 R1")
def ack_first() -> None:
    """What is received is acked at once."""
    receive: Any = transport.MemoryReceiver.receive

    async def acked(self: Any, limit: int, wait: timedelta) -> Any:
        items = await receive(self, limit, wait)
        await self.settle(ack=[item for item in items if hasattr(item, "message")])
        return items

    patch(transport.MemoryReceiver, "receive", acked)


@plant("PB-8 RT6")
def dead_letter_after_the_ack() -> None:
    """A move acks first and stores its messages a moment later."""
    settle: Any = transport.MemoryReceiver.settle

    async def split(self: Any, *, ack: Any = (), release: Any = (), move: Any = ()) -> Any:
        done = await settle(self, ack=[*ack, *(one.delivery for one in move)], release=release)
        kept = [*done[: len(ack)], *done[len(ack) + len(move) :]]
        await asyncio.sleep(0.05)
        self._broker.publish([message for one in move for message in one.messages])
        return [*kept, *(Settlement(one.delivery, "settled") for one in move)]

    patch(transport.MemoryReceiver, "settle", split)


@plant("PB-11 R3")
def stale_epoch_settles() -> None:
    """A settle is accepted whoever owns the lane now."""

    def find(self: Any, delivery: Any) -> Any:
        return next((lane for lane in self._group._all_lanes() if lane.name == delivery.lane), None)

    def settled(self: Any, feed: Any, delivery: Any) -> Any:
        feed.settle(delivery.position)
        return Settlement(delivery, "settled")

    patch(transport.MemoryReceiver, "_find", find)
    patch(transport.MemoryReceiver, "_settled", settled)


@plant("BA-13 KA gap commit")
def gap_commit() -> None:
    """Settling one position settles all below it."""
    settle: Any = log.Feed.settle

    def commit(self: Any, position: Any) -> bool:
        for lower in [one for one in self.in_flight if one < position]:
            settle(self, lower)
        self.returned = [one for one in self.returned if one[0] > position]
        answer: bool = settle(self, position)
        return answer

    patch(log.Feed, "settle", commit)


@plant("BA-1")
def released_is_dropped() -> None:
    """What is given back is gone."""

    def give_back(self: Any, entry: Any, *, counted: bool) -> None:
        del self.in_flight[entry.position]

    patch(log.Feed, "give_back", give_back)


@plant("BA-2 RT9")
def returned_comes_last() -> None:
    """What comes back is handed out behind what is new."""

    def take(self: Any, limit: int) -> Any:
        found = self.source.read(limit)
        while self.returned and len(found) < limit:
            found.append(self.returned.pop()[1])
        for entry in found:
            self.in_flight[entry.position] = entry
        return found

    patch(log.Feed, "take", take)


@plant("BA-20 R12")
def lease_never_ends() -> None:
    """The lanes of a silent member are never given to another."""
    patch(groups.Group, "expire", lambda self, member, life: None)


@plant("BA-23 C17")
def prefetch_without_limit() -> None:
    """The broker hands out what it is asked for and more."""
    take: Any = groups.Member.take

    def more(self: Any, limit: int) -> Any:
        self.in_flight = -1_000
        return take(self, limit + 3 if limit else 0)

    patch(groups.Member, "take", more)


@plant("BA-9 R5")
def unknown_counts_as_stored() -> None:
    """A publish without an answer is taken for stored, and lost now and then."""
    publish: Any = MemoryBroker.publish

    def lossy(self: Any, messages: Sequence[Message]) -> Any:
        self.lossy = getattr(self, "lossy", 0) + 1
        if self.lossy % 11 == 0:
            return [Receipt(message.id, "stored") for message in messages]
        return publish(self, messages)

    patch(MemoryBroker, "publish", lossy)


@plant("C13 RE8")
def epoch_given_twice() -> None:
    """A new owner gets the epoch of the last one."""
    assign: Any = groups.Group._assign

    def same(self: Any, lane: Any, member: Any) -> None:
        if lane.epoch:
            self._epochs = iter([lane.epoch] * 1_000_000)
        assign(self, lane, member)

    patch(groups.Group, "_assign", same)


@plant("C14 SQ7")
def body_changes_on_its_way() -> None:
    """A retry carries another body."""
    retried: Any = letters.retried

    def changed(delivery: Any, **options: Any) -> Message:
        message: Message = retried(delivery, **options)
        return msgspec.structs.replace(message, body=message.body.replace(b'"fate":"', b'"fate":"x'))

    patch(consumer, "retried", changed)


# --- store ----------------------------------------------------------------------------------------------------


@plant("PB-2 IN1")
def no_inbox_mark() -> None:
    """Marks are neither written nor read."""

    async def nothing(self: Any, *args: Any) -> None:
        return None

    async def unknown(self: Any, marks: Any) -> Any:
        return [None] * len(marks)

    patch(records.MemoryInbox, "mark", nothing)
    patch(records.MemoryInbox, "known", unknown)


@plant("PB-9 IN3")
def mark_without_handler() -> None:
    """All handlers of a group share one mark."""

    def mark(self: Any, message: Message, bound: Any) -> Mark:
        return Mark(self._group, "", self.run, message.source, message.id)

    patch(pipeline.Pipeline, "_mark", mark)


@plant("PB-4 OB15")
def outbox_row_after_the_commit() -> None:
    """Outgoing events are written a moment after the business rows."""
    seal: Any = simulated.SimUnit.seal

    async def late(self: Any) -> Any:
        inner = self.inner
        messages, inner.messages = list(inner.messages), []
        durable = await seal(self)
        await asyncio.sleep(0.02)
        inner.store.outbox.append(messages)
        return durable

    patch(simulated.SimUnit, "seal", late)


@plant("PB-16 IN8")
def mark_in_the_next_transaction() -> None:
    """The effect is committed, its mark a moment later."""
    seal: Any = simulated.SimUnit.seal

    async def late(self: Any) -> Any:
        inner = self.inner
        marks, inner.marks = dict(inner.marks), {}
        durable = await seal(self)
        await asyncio.sleep(0.02)
        inner.store.inbox.marks.update({mark: (digest, 0) for mark, digest in marks.items()})
        return durable

    patch(simulated.SimUnit, "seal", late)


@plant(
    "PB-13 R3",
    faults={"pause_every": 0.7, "pause_max": 4.0, "crash_every": 0.0},
    tuning={"think": 0.3, "timeout": 20.0},
    world={"copies": 2, "lease": 0.4, "seconds": 8.0, "orders": 8},
)
def units_are_not_guarded() -> None:
    """A unit commits whoever owns its lane by now."""
    init: Any = unit.MemoryUnit.__init__
    patch(unit.MemoryUnit, "__init__", lambda self, store, guard: init(self, store, None))


@plant("PB-30 OB10")
def rolled_back_events_leave() -> None:
    """What a unit wanted to publish leaves although it was rolled back."""
    rollback: Any = unit.MemoryUnit.rollback

    async def leak(self: Any) -> None:
        if self._state == "open":
            self.store.outbox.append(self.messages)
        await rollback(self)

    patch(unit.MemoryUnit, "rollback", leak)


@plant("IN9")
def commit_of_a_failed_handler() -> None:
    """A handler that fails commits all the same."""

    async def commit(self: Any) -> None:
        if self._state == "open":
            self.store.apply(self)
            self.store.end_turn()
        self._state = "ended"

    patch(unit.MemoryUnit, "rollback", commit)


@plant("RL-4")
def hold_is_not_written_down() -> None:
    """That a key is held is known to the process alone."""

    async def put(self: Any, rows: Any) -> Any:
        return rows

    patch(records.MemoryHeldKeys, "put", put)


@plant("C16 OB delays")
def delays_are_forgotten() -> None:
    """A delayed event leaves at once."""
    append: Any = outbox.MemoryOutbox.append

    def at_once(self: Any, messages: Any) -> None:
        append(self, [msgspec.structs.replace(message, not_before=None) for message in messages])

    patch(outbox.MemoryOutbox, "append", at_once)


@plant("C16 SA3")
def recurring_runs_are_not_fenced() -> None:
    """Whoever looks runs what is due, whoever runs it already."""

    async def claim(self: Any, name: str, rule: str, *, first: int, now: int, owner: str, lease: timedelta) -> Any:
        run = self._runs.get(name)
        if run is None:
            run = self._runs[name] = records.Run(rule, first)
        run.owner = owner
        return run.due, run.due <= now

    async def advance(self: Any, unit: Any, name: str, *, owner: str, due: int, to: int) -> None:
        self._runs[name].due = max(to, self._runs[name].due)

    patch(records.MemoryTimetable, "claim", claim)
    patch(records.MemoryTimetable, "advance", advance)
