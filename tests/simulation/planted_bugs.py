"""Bugs on purpose, keyed by the hazard they stand for: each makes one small change to the product.

`make planted` runs worlds with each of them and prints which check found it, in how many worlds.
`test_planted_bugs.py` does so for a share of them.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from datetime import timedelta
from typing import Any

import msgspec
import planted_below
import planted_files
import planted_logs
import planted_queues
from planting import PLANTS, Plant, large, patch, plant

from tidewire.model import Handled, Message, Pending, Receipt
from tidewire.operations import redrive
from tidewire.rules import lanes, letters, retry
from tidewire.runtime import consumer, holds, notes, pipeline, relay, serve, settler, watchdog, work, workers
from tidewire.stores.memory import outbox
from tidewire.testing.simulation import stores as simulated
from tidewire.transports.memory import transport

__all__ = ["PLANTS", "Plant"]

assert planted_below.__doc__, "its plants are registered by importing it"
assert planted_files.__doc__, "and so are these"
assert planted_queues.__doc__, "and these"
assert planted_logs.__doc__, "and those"


# --- watchdog -------------------------------------------------------------------------------------------------


@plant("C-02 R12", faults={"deaf": 0.5})
def nobody_watches() -> None:
    """A consumer to which the broker hands out nothing is never rebuilt."""

    async def until_deaf(self: Any, consumer: Any) -> None:
        await asyncio.Event().wait()

    patch(watchdog.Watchdog, "until_deaf", until_deaf)


# --- relay ----------------------------------------------------------------------------------------------------


@plant("PB-3 OB6")
def mark_sent_before_send() -> None:
    """Rows are deleted, then published."""

    fly: Any = relay.Relay._fly

    async def done_first(self: Any, flight: Any) -> None:
        await self._store.backlog.done(self._owner, [row.row for row in flight.rows])
        await fly(self, flight)

    patch(relay.Relay, "_fly", done_first)


@plant("PB-24 OB8")
def relay_deletes_everything() -> None:
    """Done means: the outbox is emptied, whatever was written meanwhile."""

    async def done(self: Any, owner: str, rows: Any) -> bool:
        self._outbox.ready.clear()
        return True

    patch(outbox.MemoryBacklog, "done", done)


@plant("PB-26 OB5")
def two_relays() -> None:
    """The relay's lease keeps nobody out, and each takes the newest rows first."""

    async def lease(self: Any, owner: str, duration: timedelta) -> bool:
        return True

    claim: Any = outbox.MemoryBacklog.claim

    async def some(self: Any, owner: str, **asked: Any) -> Any:
        rows = await claim(self, owner, **asked)
        return rows[-1:]

    patch(outbox.MemoryBacklog, "lease", lease)
    patch(outbox.MemoryBacklog, "_leads", lambda self, owner: True)
    patch(outbox.MemoryBacklog, "claim", some)


@plant("PB-28 R5")
def new_id_on_every_send() -> None:
    """An event that is sent again has another id."""
    claim: Any = outbox.MemoryBacklog.claim
    counter = iter(range(1_000_000))

    async def renamed(self: Any, owner: str, **asked: Any) -> Any:
        rows: Sequence[Pending] = await claim(self, owner, **asked)
        return [_renamed(row, f"new-{next(counter)}") for row in rows]

    patch(outbox.MemoryBacklog, "claim", renamed)


def _renamed(row: Pending, event_id: str) -> Pending:
    headers = {**row.message.headers, "ce-id": event_id}
    return msgspec.structs.replace(row, message=msgspec.structs.replace(row.message, id=event_id, headers=headers))


@plant("PB-32 OB17")
def outbox_in_another_order() -> None:
    """Rows leave newest first."""
    claim: Any = outbox.MemoryBacklog.claim

    async def reverse(self: Any, owner: str, **asked: Any) -> Any:
        return list(reversed(await claim(self, owner, **asked)))

    patch(outbox.MemoryBacklog, "claim", reverse)


@plant("PB-33 OB11")
def lost_wake_up_of_the_relay() -> None:
    """The relay waits for a signal that nobody gives, and does not look by itself."""

    async def wait(self: Any, longest: timedelta) -> bool:
        await asyncio.sleep(100_000)
        return True

    patch(outbox.MemoryOutbox, "wait", wait)


@plant("PB-25 KA13")
def unknown_rows_are_dropped() -> None:
    """A row whose publish had no answer counts as sent, and the broker has lost it."""

    async def drop(self: Any, rows: Any, receipts: Any) -> None:
        await self._store.backlog.done(self._owner, [row.row for row in rows])

    patch(relay.Relay, "_not_stored", drop)
    publish: Any = transport.MemoryTransport.publish

    async def refuse(self: Any, messages: Any) -> Any:
        self.calls = getattr(self, "calls", 0) + 1
        if self.calls % 5 == 0:
            return [Receipt(message.id, "unknown") for message in messages]
        return await publish(self, messages)

    patch(transport.MemoryTransport, "publish", refuse)


# --- consumer -------------------------------------------------------------------------------------------------


@plant("PB-50 RT9")
def key_goes_on_while_its_head_waits() -> None:
    """A failing event lets the next of its key pass."""
    hold: Any = lanes.Schedule.hold

    def pass_on(self: Any, one: Any) -> None:
        hold(self, one)
        queue = self._taken.get(one.key)
        if queue:
            self._offer(queue.popleft())

    patch(lanes.Schedule, "hold", pass_on)


@plant("R8")
def keys_do_not_wait() -> None:
    """Events of one key run beside each other."""
    add: Any = lanes.Schedule.add

    def alone(self: Any, one: Any) -> None:
        one.key = None
        add(self, one)

    patch(lanes.Schedule, "add", alone)


@plant(
    "PB-19 R2",
    faults={"stop_every": 0.5, "crash_every": 0.0},
    tuning={"think": 0.5, "attempts": 1},
    world={"grace": 0.05},
)
def cancellation_counts_as_failure() -> None:
    """A handler that a stop cuts off has failed."""

    def own(one: Any, error: BaseException) -> BaseException:
        return RuntimeError("cut off") if isinstance(error, asyncio.CancelledError) else error

    patch(pipeline, "_own_failure", own)


@plant("PB-47 RT11")
def an_outage_is_poison() -> None:
    """A database that is down is the handler's failure."""
    patch(retry, "_OTHERS_FAULT", ())


@plant("RT1")
def one_attempt_too_few() -> None:
    """The last attempt is not made."""
    decide: Any = retry.decide

    def early(error: Any, *, failures: int, **options: Any) -> Any:
        return decide(error, failures=failures + 1, **options)

    patch(pipeline, "decide", early)


@plant("PB-43 RT4")
def failures_are_forgotten() -> None:
    """Every failure is the first."""
    remember: Any = retry.remember
    patch(pipeline, "remember", lambda failure, error, *, now_us: remember(None, error, now_us=now_us))


@plant("RT6")
def dead_letters_are_dropped() -> None:
    """What is given up is acked and nothing else."""

    async def give_up(self: Any, one: Any, verdict: Any, *, hold: bool) -> None:
        self._settler.ack(one)
        self.confirmed(one)

    patch(consumer.Consumer, "_give_up", give_up)


@plant("R13")
def what_cannot_be_read_is_skipped() -> None:
    """An undecodable event counts as handled."""
    process: Any = pipeline.Pipeline.process

    async def skip(self: Any, one: Any) -> Any:
        ran = await process(self, one)
        unreadable = getattr(ran.outcome, "reason", None) is not None and ran.outcome.reason.value == "undecodable"
        return work.Ran(Handled()) if unreadable else ran

    patch(pipeline.Pipeline, "process", skip)


@plant("batch")
def a_failed_batch_is_handled() -> None:
    """A batch that fails counts as handled."""

    async def swallow(self: Any, works: Any) -> Any:
        return work.Ran(Handled())

    patch(pipeline.Pipeline, "process_batch", swallow)


@plant("PB-53 AS2")
def settles_wait_for_ever() -> None:
    """The settler misses its wake-up."""

    def ack(self: Any, one: Any) -> None:
        self._acks.append(one)

    patch(settler.Settler, "ack", ack)


@plant("R1 before durable")
def ack_before_durable() -> None:
    """An ack does not wait for the commit, which is taken back now and then."""

    def provisional(self: Any, one: Any, durable: Any) -> None:
        self._confirmed(one)

    patch(settler.Settler, "provisional", provisional)
    seal: Any = simulated.SimUnit.seal

    async def lost(self: Any) -> Any:
        self.inner.store.lost = getattr(self.inner.store, "lost", 0) + 1
        if self.inner.store.lost % 7 == 0:
            await self.inner.rollback()
            return asyncio.sleep(0)
        return await seal(self)

    patch(simulated.SimUnit, "seal", lost)


@plant("PB-56 R12", faults={"outage_every": 2.0, "pause_max": 20.0, "crash_every": 0.0}, world={"seconds": 15.0})
def always_ready() -> None:
    """Health says ready whatever happens."""
    patch(serve.Running, "ready", property(lambda self: True))


@plant("PB-68")
def facts_are_not_told() -> None:
    """Every third settle is not told to the observer."""
    settled: Any = notes.Notes.settled

    def some(self: Any, works: Any) -> None:
        self.told = getattr(self, "told", 0) + 1
        if self.told % 3:
            settled(self, works)

    patch(notes.Notes, "settled", some)


@plant("RL-5")
def successors_do_not_follow() -> None:
    """What follows a dead letter of its key goes on."""

    async def follow(self: Any, one: Any) -> None:
        return None

    patch(holds.Holds, "follow", follow)


# --- operators ------------------------------------------------------------------------------------------------


@plant("PB-10 RT7")
def redrive_with_a_new_id() -> None:
    """A redriven event has another id."""
    redriven: Any = letters.redriven
    counter = iter(range(1_000_000))

    def renamed(letter: Message) -> Message:
        message: Message = redriven(letter)
        event_id = f"redriven-{next(counter)}"
        return msgspec.structs.replace(message, id=event_id, headers={**message.headers, "ce-id": event_id})

    patch(redrive, "redriven", renamed)


@plant(
    "PB-51 RT7",
    faults={"crash_every": 400.0},
    tuning={"attempts": 1},
    world={"operators": True, "operate_every": 0.5, "seconds": 8.0, "orders": 10},
)
def redrive_removes_first() -> None:
    """Dead letters are removed before they are published."""

    async def wrong(self: Any, channel: Any, batch: Any, convert: Any) -> None:
        self._moved += await self._inspector.remove(channel, [letter.position for letter in batch])
        await asyncio.sleep(0.05)
        made = [message for letter in batch if (message := convert(letter)) is not None]
        await self._transport.publish(made)

    patch(redrive._Act, "_hand_over", wrong)


# --- what the simulation itself has found ---------------------------------------------------------------------


@plant(
    "found by seed",
    faults={"refused": 0.05, "store_down": 0.02, "crash_every": 0.0},
    tuning={"attempts": 4, "first_delay": 0.5, "concurrency": 8},
    world={"max_hold": 60.0, "orders": 10, "seconds": 8.0, "copies": 1},
)
def timers_outlive_the_membership() -> None:
    """A held event's timer starts a worker in a group that has finished."""
    patch(workers.Workers, "end", lambda self: None)
    patch(workers, "taken_in", lambda tasks, work: tasks.create_task(work))


@plant(
    "found by seed",
    rare=large(79, 116),
    tuning={"attempts": 1, "batch": 3, "batch_wait": 0.0, "concurrency": 8, "think": 0.05},
    world={"orders": 10, "seconds": 5.0, "copies": 1},
)
def a_batch_of_one_is_called_twice() -> None:
    """A batch handler that was given one event and failed is called again for the same attempt."""
    work_batch: Any = workers.Workers._work_batch
    gather: Any = workers.Workers._gather

    async def never_alone(self: Any, first: Any) -> Any:
        works = await gather(self, first)
        if len(works) == 1:
            await work_batch(self, self._beginner, works)
            return []
        return works

    begin: Any = workers.Workers._work

    async def remember(self: Any, worker: Any) -> None:
        self._beginner = worker
        await begin(self, worker)

    patch(workers.Workers, "_gather", never_alone)
    patch(workers.Workers, "_work", remember)
