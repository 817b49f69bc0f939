"""One membership in a group: receive in batches, run one event per key, settle in batches.

The trip of a message: `Workers._work` → `isolated` → `Pipeline.process` → the handler. Only this file and its
`Settler` settle. Everything here runs on the event loop; what is bounded: deliveries by ``prefetch``, handlers
by ``concurrency``, holds by ``max_hold``.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Sequence
from datetime import timedelta

from tidewire.errors import PublishRejected, StoreUnavailable, TransactionLost, TransportUnavailable
from tidewire.model import (
    DeadLetter,
    Delivery,
    LaneEvent,
    Message,
    Reason,
    RetryLater,
    Subscription,
    Unavailable,
)
from tidewire.protocols import Receiver, Store
from tidewire.rules.lanes import Schedule
from tidewire.rules.letters import dead_letter, retried
from tidewire.runtime.holds import Holds
from tidewire.runtime.intake import Intake
from tidewire.runtime.limits import Limits
from tidewire.runtime.notes import Notes
from tidewire.runtime.outage import Outage
from tidewire.runtime.parts import Parts
from tidewire.runtime.pipeline import Pipeline
from tidewire.runtime.records import Records
from tidewire.runtime.settler import Settler
from tidewire.runtime.tenure import Tenure
from tidewire.runtime.work import Ran, Work
from tidewire.runtime.workers import Workers, taken_in

__all__ = ["Consumer"]

_logger = logging.getLogger("tidewire.consumer")
_STARTS_MAX, _PASSED_MAX = 3, 64
_LATE = timedelta(milliseconds=100)


class Consumer:
    """Everything between `Receiver.receive` and `Receiver.settle` for one membership."""

    def __init__(
        self,
        *,
        receiver: Receiver,
        subscription: Subscription,
        pipeline: Pipeline,
        store: Store | None,
        limits: Limits,
        parts: Parts,
    ) -> None:
        self._receiver = receiver
        self._subscription = subscription
        self._ordered = subscription.ordering == "key"
        self._group = subscription.group
        self._pipeline = pipeline
        self._store = store
        self._limits = limits
        self._clock = parts.clock
        self._outage = Outage(subscription.group, parts.jitter, self._resume)
        self._schedule: Schedule[Work] = Schedule()
        self._holds = Holds(store, self._group, subscription.topics, shared=not limits.lanes)
        self._records = Records(store, self._group, self._holds)
        self._settler = Settler(receiver, self, self._records.finish)
        self._notes = Notes(parts.observer, parts.clock, self._group)
        self._tenure = Tenure(
            self._group,
            store,
            fencing=limits.fencing,
            guards=pipeline.guards,
            holds=self._holds,
            outage=self._outage,
        )
        self._intake = Intake(receiver)
        self._workers = Workers(
            self._schedule,
            self,
            process=pipeline.process,
            process_batch=pipeline.process_batch,
            concurrency=limits.concurrency,
            saturated=None if store is None else store.saturated,
        )
        self._tasks: asyncio.TaskGroup | None = None
        self._loop = asyncio.get_running_loop()
        self._stopping = asyncio.Event()
        self._changed = asyncio.Event()
        self.progress = self.received = 0

    # --- life -------------------------------------------------------------------------------------------------

    async def run(self) -> None:
        """Receive, process and settle until `stop`; then drain within the grace time.

        Raises:
            TransportUnavailable: the broker is gone; what is unsettled comes back.
        """
        try:
            async with asyncio.TaskGroup() as tasks:
                self._tasks = tasks
                stages = [tasks.create_task(self._settler.confirm()), tasks.create_task(self._settler.settle())]
                self._workers.start(tasks)
                try:
                    await tasks.create_task(self._receive_all())
                    await self._drain()
                finally:
                    self._workers.end()  # the timers of holds and outages may outlive this membership
                self._workers.cancel()
                for stage in stages:
                    stage.cancel()
        finally:
            self._tasks = None
            left = [work for work in self._schedule.of(None) if not work.gone]
            await self._settler.let_go(left, self._records.forget)

    def stop(self) -> None:
        """Take in nothing more; `run` returns when what is running has been settled, or at the end of the grace."""
        self._stopping.set()
        self._intake.interrupt()
        self._outage.stop()
        self._workers.hurry()

    @property
    def paused(self) -> bool:
        """Whether a database, registry or broker that is down keeps this subscription waiting."""
        return self._outage.paused

    @property
    def waiting(self) -> int:
        """How many deliveries are here, unsettled."""
        return self._schedule.outstanding

    @property
    def lanes(self) -> Sequence[str]:
        """The lanes that the broker has given this member."""
        return self._tenure.lanes

    @property
    def asks(self) -> bool:
        """Whether the broker is asked for deliveries now, and something of its lanes could be given."""
        return self._intake.asks and not self._outage.paused and bool(self._tenure.lanes)

    @property
    def mark(self) -> object:
        """What changes whenever something was received, or could not be asked for."""
        return self.received, self._outage.count

    async def _drain(self) -> None:
        """Give back what has not started, let the rest end and settle. What outlasts the grace stays unsettled."""
        self._settler.release([work.delivery for work in self._schedule.withdraw()])
        deadline = self._loop.time() + self._limits.grace.total_seconds()
        while (self._schedule.running or not self._settler.idle) and self._loop.time() < deadline:
            self._changed.clear()
            try:
                async with asyncio.timeout_at(min(deadline, self._loop.time() + 0.05)):
                    await self._changed.wait()
            except TimeoutError:
                self._settler.release([work.delivery for work in self._schedule.withdraw()])

    # --- intake -----------------------------------------------------------------------------------------------

    async def _receive_all(self) -> None:
        try:
            self._pipeline.run = 0 if self._store is None else await self._store.inbox.run_of(self._group)
        except StoreUnavailable as error:
            raise TransportUnavailable(f"the store cannot be read: {error.message}") from error
        while not self._stopping.is_set():
            items = await self._intake.receive(self._credit())
            if items:
                await self._take_in(items)

    def _credit(self) -> int:
        """How many more deliveries to ask for: nothing while paused, and no dribbles."""
        if self._outage.paused:
            return 0
        prefetch = self._subscription.prefetch
        credit = prefetch - self._schedule.outstanding
        if credit <= 0:
            self._relieve()
        return credit if credit * 4 >= prefetch else 0

    async def _take_in(self, items: Sequence[Delivery | LaneEvent]) -> None:
        works: list[Work] = []
        for item in items:
            if isinstance(item, LaneEvent):
                await self._lane_event(item)
                continue
            if not self._tenure.knows(item):
                if self._stopping.is_set():  # it was not adopted in time
                    self._settler.release([item])
                continue  # a lane that was fenced or lost meanwhile: its next owner gets this one
            works.append(Work(item, None))
        if works:
            self.progress += len(works)
            self.received += len(works)
            await self._admit(works)

    async def _admit(self, works: Sequence[Work]) -> None:
        while True:
            try:
                if self._ordered:
                    await self._holds.refresh(works)
                skipped = await self._pipeline.admit(works)
                break
            except StoreUnavailable as error:
                self._outage.begin(error)
                await self._outage.over()
                if self._stopping.is_set():
                    self._settler.release([work.delivery for work in works])
                    return
        for work in skipped:
            self._notes.note("skipped", work)
            self._settler.ack(work)
        left_out = set(map(id, skipped))
        for work in works:
            if not left_out or id(work) not in left_out:
                key = work.delivery.message.key  # which may have been found inside the message
                work.key = f"{work.delivery.lane}\0{key}" if self._ordered and key is not None else None
                self._schedule.add(work)
        self._workers.wake()

    async def _lane_event(self, event: LaneEvent) -> None:
        lane = event.lane
        if event.kind == "assigned":
            self._schedule.abandon(lane)
            await self._tenure.adopt(lane, event.epoch)
        elif event.kind == "revoking":
            self._tenure.revoke(lane)
            self._settler.release([work.delivery for work in self._schedule.withdraw(lane)])
            self._check_drained()
        else:
            self._schedule.abandon(lane)
            self._tenure.forget(lane)
            _logger.info("tidewire.consumer.lane_lost", extra={"group": self._group, "lane": lane})

    # --- what the workers ask ---------------------------------------------------------------------------------

    def halted(self) -> bool:
        """Whether nothing may start: something is down, or we are stopping."""
        return self._outage.paused or self._outage.stopped

    def special(self, work: Work) -> bool:
        """Whether *work* needs more than its handlers: it ran before, a suspect, known, a verdict, or keys are held."""
        return work.ran or work.alone or work.verdict is not None or not work.todo or bool(self._holds.keys)

    async def prepare(self, work: Work) -> bool:
        """Deal with what needs more than a handler; True if *work* is to be run."""
        try:
            verdict = await self._verdict_before_running(work)
            if verdict is None and work.todo:
                return True
            if verdict is None:
                await self._records.finish(work)
        except StoreUnavailable as error:
            self._schedule.conclude(work)
            self._unavailable(work, error)
            return False
        self._schedule.conclude(work)
        if verdict is None:
            self._notes.note("discarded" if work.discarded else "known", work)
            self._settler.ack(work)
            self.confirmed(work)
        elif isinstance(verdict, Message):
            self._settler.move(work, [verdict])
        else:
            await self._give_up(work, verdict, hold=self._holds_by_default(work))
        return False

    async def _verdict_before_running(self, work: Work) -> DeadLetter | Message | None:
        """Return what becomes of *work* without its handler, or None: run it (or it happened before)."""
        if work.discarded:
            work.held_row = work.delivery.message.id if self._store is not None and work.key is not None else ""
            return None
        if work.ran or self._holds.holds(work):  # what has taken effect since is not to run, to wait, or to be held
            await self._pipeline.look_again(work)
        follow = await self._holds.follow(work, soonest=self._due_after(_LATE))
        if follow is not None:
            return follow
        if work.verdict is not None or not work.todo:
            return work.verdict
        if work.delivery.suspect and not work.started and await self._records.starts(work) > _STARTS_MAX:
            return DeadLetter(Reason.POISON, f"{_STARTS_MAX} starts of this event ended with the death of the process")
        return None

    # --- outcomes ---------------------------------------------------------------------------------------------

    def handled(self, work: Work, ran: Ran, seconds: float) -> None:
        """Its handlers ended well: ack it once their unit is durable."""
        if self._notes.wanted:
            self._notes.note("processed", work, seconds=seconds)
        if work.gone:
            self._forget(work)
        elif ran.durable is not None:
            self._settler.provisional(work, ran.durable)
        elif ran.messages:
            work.outgoing = ran.messages
            self._settler.move(work, ran.messages)
        else:
            self._settler.ack(work)
            self._outage.forget()
            self._schedule.free(work)  # what may start now is taken by the worker that has just ended this one

    async def not_handled(self, work: Work, ran: Ran) -> None:
        """Its handlers failed, it cannot be read, or something is down: decide what becomes of it."""
        outcome = ran.outcome
        if work.gone:
            self._forget(work)
        elif isinstance(outcome, RetryLater):
            await self._retry(work, outcome)
        elif isinstance(outcome, Unavailable):
            self._unavailable(work, outcome.error)
        elif isinstance(outcome, DeadLetter):
            bound = ran.failed
            hold = bound.on_dead_letter == "hold_key" if bound is not None else self._holds_by_default(work)
            await self._give_up(work, outcome, hold=hold)

    async def _retry(self, work: Work, outcome: RetryLater) -> None:
        work.ran = True
        self._notes.retried(work, outcome)
        now = self._loop.time()
        seconds = outcome.delay.total_seconds()
        if work.key is None:
            await self._records.forget(work)  # a suspect's start has ended; its failures travel in the header
            self._postpone(work, self._due_after(outcome.delay))
            return
        work.held_since = work.held_since or now
        longest = self._limits.max_hold.total_seconds()
        if self._store is not None and now - work.held_since + seconds > longest:
            await self._move_key(work, outcome.delay)
            return
        work.retry_at = now + seconds
        work.passed = work.passed or self.progress
        self._schedule.hold(work)
        self._loop.call_at(work.retry_at, self._unhold, work)
        if self._intake.starved:
            self._relieve()
        self._workers.wake()

    def _unhold(self, work: Work) -> None:
        if self._schedule.resume(work):
            self._workers.wake()

    def _due_after(self, delay: timedelta) -> int:
        return self._clock.now_us() + delay // timedelta(microseconds=1)

    def _postpone(self, work: Work, due: int) -> None:
        """Send *work* through the inbox channel, to come back when it is due."""
        message = retried(work.original, group=self._group, failure=work.failure, not_before=due)
        self._settler.move(work, [message])

    async def _move_key(self, work: Work, delay: timedelta) -> None:
        """A hold that has become too long: note it, then send the event through the inbox channel.

        Both say the same time: what follows it gets the head's own, and must not come before it.
        """
        due = self._due_after(delay)
        try:
            await self._holds.note(work, "inbox", due)
        except StoreUnavailable as error:
            self._unavailable(work, error)
            return
        self._postpone(work, due)

    async def _give_up(self, work: Work, verdict: DeadLetter, *, hold: bool) -> None:
        """Make a dead letter of *work*; with *hold*, what follows of its key waits with it."""
        if hold and work.key is not None and work.delivery.message.id:
            try:
                await self._holds.note(work, "dead", None)
            except StoreUnavailable as error:
                self._unavailable(work, error)
                return
        failure = work.failure
        self._notes.dead_lettered(work, verdict)
        letter = dead_letter(
            work.original,
            verdict,
            group=self._group,
            failure=failure,
            member=self._subscription.member,
            event_type=work.delivery.message.headers.get("ce-type", ""),
        )
        await self._records.forget(work)
        self._settler.move(work, [letter])

    def _holds_by_default(self, work: Work) -> bool:
        """Whether an event that no handler of ours decided about holds its key."""
        if self._store is None or work.key is None:
            return False
        return all(bound.on_dead_letter == "hold_key" for bound in (work.route.handlers if work.route else ()))

    def _unavailable(self, work: Work, error: BaseException) -> None:
        self.again(work, error, alone=isinstance(error, TransactionLost))

    def down(self, error: BaseException) -> None:
        """Something that everybody needs is down: pause."""
        self._outage.begin(error)

    def _resume(self) -> None:
        self._workers.wake_all()
        self._changed.set()
        self._interrupt_if_starved()

    def _relieve(self) -> None:
        """The lane's bookkeeping is full of waiting keys: send the one held longest through the inbox channel."""
        idle = not self._schedule.running and not self._schedule.has_ready and self._settler.idle
        held = self._schedule.held
        if idle and held and self._store is not None and not self._outage.paused:
            self._lift(held[0])

    def _lift(self, work: Work) -> None:
        """Send a held one through the inbox channel before its time has come."""
        if self._tasks is not None and self._schedule.lift(work):
            left = timedelta(seconds=max(0.0, work.retry_at - self._loop.time()))
            taken_in(self._tasks, self._move_key(work, left))

    def _forget(self, work: Work) -> None:
        """Somebody else owns its lane now."""
        self._schedule.settled([work])
        self._notes.note("lost", work)
        self._after_settle()

    # --- what the settler tells -----------------------------------------------------------------------------------

    def confirmed(self, work: Work) -> None:
        """The effect is durable: the next event of its key may start."""
        self._outage.forget()
        self._schedule.free(work)
        if self._schedule.has_ready:
            self._workers.wake()

    def again(self, work: Work, error: BaseException, *, alone: bool) -> None:
        """Nothing of the work is stored, as far as we know: run it again, uncounted."""
        work.ran = True
        work.alone = work.alone or alone
        self._schedule.back(work)
        self._workers.wake() if alone else self._outage.begin(error)

    def fenced(self, work: Work) -> None:
        """A unit met a newer epoch: the lane is not ours any more, whatever the broker has told us so far."""
        self._schedule.abandon(work.delivery.lane)
        self._tenure.fenced(work.delivery.lane)
        self._forget(work)

    def settled(self, works: Sequence[Work], lost: Sequence[Work]) -> None:
        """The broker knows of *works*; *lost* ones are not ours any more."""
        self._schedule.settled(works)  # a move frees its key when it is stored; the rest has been freed before
        for work in lost:
            self._forget(work)
        if any(work.outgoing for work in works):  # without a store the move is what confirms
            self._outage.forget()
        self.progress += len(works)
        self._pipeline.earned(len(works))
        self._notes.settled(works)
        self._after_settle()

    def refused(self, work: Work, error: PublishRejected) -> None:
        """The broker will never take what its handlers returned: their failure."""
        work.outgoing = ()
        if self._tasks is not None:
            self._tasks.create_task(self._refused(work, error))

    async def _refused(self, work: Work, error: PublishRejected) -> None:
        await self.not_handled(work, await self._pipeline.failed(work, error))

    def _after_settle(self) -> None:
        self._changed.set()
        if self._store is not None and not self._outage.paused:
            for work in self._schedule.held:  # what has passed a held one is remembered until it is gone
                if self.progress - work.passed > _PASSED_MAX * self._subscription.prefetch:
                    self._lift(work)
        self._interrupt_if_starved()
        if self._tenure.drains:
            self._check_drained()
        if self._schedule.has_ready:
            self._workers.wake()

    def _interrupt_if_starved(self) -> None:
        """Credit is back: a receive that asked for none must be asked anew."""
        prefetch = self._subscription.prefetch
        enough = (prefetch - self._schedule.outstanding) * 4 >= prefetch
        if enough and self._intake.starved and not self._outage.paused:
            self._intake.interrupt()

    def _check_drained(self) -> None:
        for lane in self._tenure.drained(lambda lane: not self._schedule.of(lane)):
            self._settler.drained(lane)
