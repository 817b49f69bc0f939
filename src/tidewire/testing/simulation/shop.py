"""The services of the built-in scenario: orders that are paid, shipped, counted and thanked for, some of them badly.

What an event's handlers do is written on it (*fate*), so that a seed decides it. Every handler writes a row into its
service's own database, in the transaction of the event; those rows are what really happened.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Sequence
from datetime import datetime, timedelta
from hashlib import blake2b
from typing import Any, Protocol

import msgspec

from tidewire.clock import microseconds
from tidewire.errors import Reject
from tidewire.rules.events import definition_of, domain_event, event
from tidewire.rules.recurrence import Every
from tidewire.rules.retry import Retry
from tidewire.runtime.context import Context
from tidewire.runtime.service import Service
from tidewire.testing.simulation.checkers import Audience, History, Op
from tidewire.testing.simulation.engine import dying
from tidewire.testing.simulation.loop import SimLoop, current_process

__all__ = ["Book", "Effect", "OrderPlaced", "Shop", "Tuning", "digest_of"]


@event("sim.order.placed", key="key")
class OrderPlaced(msgspec.Struct, frozen=True):
    """An order; *uid* is its identity whatever happens to it, *n* its place among those of its key."""

    uid: str
    key: str
    n: int
    stream: str
    fate: str


@event("sim.payment.taken", key="key")
class PaymentTaken(msgspec.Struct, frozen=True):
    """An order was paid."""

    uid: str
    key: str
    n: int
    stream: str
    fate: str


@event("sim.stock.moved", key="key")
class StockMoved(msgspec.Struct, frozen=True):
    """Goods have left the shelf; handled in batches."""

    uid: str
    key: str
    n: int
    stream: str
    fate: str


@event("sim.reminder.due", key="key")
class ReminderDue(msgspec.Struct, frozen=True):
    """Published with a delay."""

    uid: str
    key: str
    n: int
    stream: str
    fate: str


@event("sim.notice.sent")
class NoticeSent(msgspec.Struct, frozen=True):
    """Something without a key: nothing is ordered."""

    uid: str
    key: str
    n: int
    stream: str
    fate: str


@domain_event("ledger changed")
class LedgerChanged(msgspec.Struct, frozen=True):
    """Stays inside billing."""

    uid: str


class Effect(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """A row that a handler wrote. *number*: its turn among all of the store; *emits*: (uid, type) published with it."""

    number: int
    handler: str
    uid: str
    event_id: str
    source: str = ""
    key: str = ""
    n: int = -1
    stream: str = ""
    lane: str = ""
    epoch: int = 0
    digest: str = ""
    at: int = 0
    cycle: int = 0
    process: str = ""
    emits: tuple[tuple[str, str], ...] = ()


class Book(Protocol):
    """How rows are written and read in one kind of store."""

    async def begin(self, tx: Any) -> None:
        """Take the turn of the store."""
        ...

    async def write(self, tx: Any, row: Effect) -> None:
        """Write a row in the transaction."""
        ...


class Tuning(msgspec.Struct, frozen=True, kw_only=True):
    """How the services of a world are set."""

    attempts: int = 3
    first_delay: float = 1.0
    timeout: float = 5.0
    concurrency: int = 8
    prefetch: int = 32
    batch: int = 4
    batch_wait: float = 0.2
    mailer_store: bool = True
    think: float = 0.05
    recurring: bool = False
    reminder: float = 7.0
    tally: float = 10.0


class _Rule(msgspec.Struct, frozen=True):
    of: str
    group: str
    handler: str
    ordered: bool = True


_RULES = (
    _Rule("sim.order.placed", "billing", "charge"),
    _Rule("sim.order.placed", "billing", "audit"),
    _Rule("sim.payment.taken", "shipping", "ship"),
    _Rule("sim.stock.moved", "shipping", "count"),
    _Rule("sim.order.placed", "mailer", "thank", ordered=False),
    _Rule("sim.reminder.due", "mailer", "remind", ordered=False),
    _Rule("sim.notice.sent", "mailer", "file", ordered=False),
)


def audience(tuning: Tuning) -> list[Audience]:
    """Return who is to get what."""
    return [
        Audience(
            of=rule.of,
            group=rule.group,
            handler=rule.handler,
            once=rule.group != "mailer" or tuning.mailer_store,
            ordered=rule.ordered,
            attempts_max=tuning.attempts,
        )
        for rule in _RULES
    ]


class Shop:
    """The services of one world, and what its handlers share: the state of their health, and the history."""

    def __init__(self, loop: SimLoop, history: History, book: Book, *, tuning: Tuning, seed: int) -> None:
        self.loop = loop
        self.history = history
        self.book = book
        self.tuning = tuning
        self.seed = seed
        self.sick = True
        self.numbers = 0
        self.loose: list[Effect] = []
        self._tries: dict[tuple[str, str], int] = {}
        self._chance = random.Random(loop.chance.getrandbits(64))

    def number(self) -> int:
        """Return the next number of the world."""
        self.numbers += 1
        return self.numbers

    @property
    def at(self) -> int:
        """The virtual time in microseconds."""
        return round(self.loop.now * 1e6)

    def fate_of(self, uid: str) -> str:
        """Return what awaits the event *uid*: mostly nothing."""
        number = blake2b(f"{self.seed} {uid}".encode(), digest_size=2).digest()
        if number[0] >= 40:
            return "fine" if number[0] % 2 else "good"
        return _FATES[number[1] % len(_FATES)]

    async def think(self) -> None:
        """Take a while, as handlers do."""
        await asyncio.sleep(self._chance.expovariate(1.0 / self.tuning.think) if self._chance.random() < 0.5 else 0)

    # --- services ---------------------------------------------------------------------------------------------

    def _service(self, name: str) -> tuple[Service, dict[str, Any]]:
        tuning = self.tuning
        service = Service(name, concurrency=tuning.concurrency, prefetch=tuning.prefetch)
        retry = Retry(
            attempts=tuning.attempts, first_delay=timedelta(seconds=tuning.first_delay), factor=2.0,
            max_delay=timedelta(seconds=30),
        )  # fmt: skip
        return service, {"retry": retry, "timeout": timedelta(seconds=tuning.timeout)}

    def billing(self) -> Service:
        """Two handlers of one event, a domain event, a delayed event."""
        service, options = self._service("billing")

        @service.on(OrderPlaced, **options)
        async def charge(order: OrderPlaced, context: Context[Any]) -> list[Any]:
            payment = self._next(PaymentTaken, order, "pay")
            out: list[Any] = [payment]
            if order.n % 3 == 0:
                reminder = self._next(ReminderDue, order, "remind")
                out.append(reminder)
            row = await self._act(order, context, "charge", emits=out)
            await context.publish(LedgerChanged(order.uid))
            returned = [msgspec.structs.replace(payment, n=row.number)]
            if len(out) > 1:
                await context.publish(out[1], delay=timedelta(seconds=self.tuning.reminder))
                self._timer(out[1].uid, self.tuning.reminder)
            return returned

        @service.on(OrderPlaced, **options)
        async def audit(order: OrderPlaced, context: Context[Any]) -> None:
            await self._act(order, context, "audit")

        @service.on(LedgerChanged)
        async def book(changed: LedgerChanged, context: Context[Any]) -> None:
            await self._write(context, Effect(number=0, handler="book", uid=changed.uid, event_id=changed.uid))

        if self.tuning.recurring:

            @service.recur(Every(timedelta(seconds=self.tuning.tally)), missed="all")
            async def tally(due: datetime, context: Context[Any]) -> None:
                name = str(microseconds(due))
                await self._write(context, Effect(number=0, handler="tally", uid=name, event_id=name))

        return service

    def shipping(self) -> Service:
        """An event of an event, and a batch handler."""
        service, options = self._service("shipping")
        batch = min(self.tuning.batch, self.tuning.prefetch)

        @service.on(PaymentTaken, **options)
        async def ship(payment: PaymentTaken, context: Context[Any]) -> list[Any]:
            out = [self._next(StockMoved, payment, f"move{i}") for i in range(int(payment.fate.startswith("f")) + 1)]
            row = await self._act(payment, context, "ship", emits=out)
            return [msgspec.structs.replace(one, n=row.number * 4 + index) for index, one in enumerate(out)]

        @service.on(StockMoved, batch=batch, batch_wait=timedelta(seconds=self.tuning.batch_wait), **options)
        async def count(moved: list[StockMoved], context: Context[Any]) -> None:
            for index, one in enumerate(moved):
                await self._act(one, context, "count", index=index)

        return service

    def mailer(self) -> Service:
        """Nothing is ordered; in some worlds it has no store."""
        service, options = self._service("mailer")
        options |= {"ordering": "none"}

        @service.on(OrderPlaced, **options)
        async def thank(order: OrderPlaced, context: Context[Any]) -> list[Any]:
            out = [self._next(NoticeSent, order, "note")] if order.n % 2 else []
            await self._act(order, context, "thank", emits=out)
            return out

        @service.on(ReminderDue, **options)
        async def remind(reminder: ReminderDue, context: Context[Any]) -> None:
            await self._act(reminder, context, "remind")

        @service.on(NoticeSent, **options)
        async def file(notice: NoticeSent, context: Context[Any]) -> None:
            await self._act(notice, context, "file")

        return service

    # --- what a handler does ----------------------------------------------------------------------------------

    async def _act(
        self, event: Any, context: Context[Any], handler: str, *, emits: Sequence[Any] = (), index: int = 0
    ) -> Effect:
        message = context.messages[index]
        process = current_process()
        cycle = message.headers.get("tw-redriven", "0")
        op = Op(
            f="attempt",
            type="invoke",
            at=self.at,
            process=process.name if process else "",
            event=event.uid,
            of=message.headers.get("ce-type", ""),
            key=event.key,
            group=_GROUP_OF[handler],
            handler=handler,
            attempt=context.attempt,
            cycle=int(cycle) if cycle.isdigit() else 0,
        )
        self.history.add(op)
        try:
            await self.think()
            await self._meet(event, handler)
            row = self._row(event, context, handler, message=message, op=op, emits=emits)
            written = await self._write(context, row)
            await self.think()
        except asyncio.CancelledError:
            self._attempted(op, "info", detail="cut off" if self._cut_off(op) else "")
            raise
        except Exception:
            self._attempted(op, "info" if context.several else "fail")  # a batch that fails counts for none
            raise
        self._attempted(op, "ok")
        return written

    def _attempted(self, op: Op, outcome: Any, *, detail: str = "") -> None:
        self.history.add(msgspec.structs.replace(op, type=outcome, at=self.at, detail=detail))

    def _cut_off(self, op: Op) -> bool:
        """Whether an attempt was cancelled from outside long before its time was up: that is nobody's failure.

        Its time begins before the handler does: who waits for the turn of the database has less of it left.
        """
        task = asyncio.current_task()
        return task is not None and task.cancelling() > 0 and self.at - op.at < self.tuning.timeout * 0.5e6

    async def _meet(self, event: Any, handler: str) -> None:
        """Let the event's fate happen."""
        kind, _, number = event.fate.partition(":")
        tries = self._tries[handler, event.uid] = self._tries.get((handler, event.uid), 0) + 1
        if kind == "reject":
            raise Reject("not an order (simulated)")
        if kind == "flaky" and tries <= int(number):
            raise RuntimeError("flaky (simulated)")
        if not self.sick:
            return
        if kind == "sick":
            raise RuntimeError("out of order until the repair (simulated)")
        if kind == "slow" and tries == 1:
            await asyncio.sleep(self.tuning.timeout * 3)
        if kind == "lethal" and tries < 6:
            await dying()
        if kind == "stray" and tries == 1:
            raise asyncio.CancelledError("a handler's own (simulated)")

    def _row(
        self, event: Any, context: Context[Any], handler: str, *, message: Any, op: Op, emits: Sequence[Any]
    ) -> Effect:
        guard = getattr(context.unit, "guard", None)
        return Effect(
            number=0,
            handler=handler,
            uid=event.uid,
            event_id=message.id,
            source=message.source,
            key=event.key,
            n=event.n,
            stream=event.stream,
            lane=guard.lane if guard is not None else "",
            epoch=guard.epoch if guard is not None else 0,
            digest=digest_of(event, message.source),
            at=self.at,
            cycle=op.cycle,
            process=op.process,
            emits=tuple((str(one.uid), _type_of(one)) for one in emits),
        )

    async def _write(self, context: Context[Any], row: Effect) -> Effect:
        if context.unit is None:
            row = msgspec.structs.replace(row, number=self.number())
            self.loose.append(row)
            return row
        await self.book.begin(context.tx)
        row = msgspec.structs.replace(row, number=self.number())
        await self.book.write(context.tx, row)
        return row

    def _timer(self, uid: str, seconds: float) -> None:
        """A handler has asked for a delay; whether its unit commits is seen from its row."""
        self.history.add(Op(f="timer", type="info", at=self.at, group="mailer", event=uid, due=round(seconds * 1e6)))

    def _next(self, cls: Any, cause: Any, word: str) -> Any:
        uid = f"{cause.uid}>{word}"
        return cls(uid=uid, key=cause.key, n=-1, stream=_STREAM_OF[cls], fate=self.fate_of(uid))


_GROUP_OF = {rule.handler: rule.group for rule in _RULES}
_STREAM_OF = {PaymentTaken: "billing", ReminderDue: "reminders", StockMoved: "shipping", NoticeSent: "mailer"}
_FATES = ("flaky:1", "flaky:2", "sick", "slow", "stray", "reject", "lethal")


def digest_of(event: Any, source: str) -> str:
    """Return a digest of what an event says, and who says it, but for its number, which may be set late."""
    text = f"{event.uid}\0{event.key}\0{event.stream}\0{event.fate}\0{source}".encode()
    return blake2b(text, digest_size=8).hexdigest()


def _type_of(event: object) -> str:
    return definition_of(type(event)).type
