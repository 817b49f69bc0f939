"""Publishing: into the caller's transaction, or straight to the broker."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Mapping, Sequence
from contextlib import asynccontextmanager
from datetime import datetime, timedelta
from typing import Any

from tidewire.errors import ConfigurationError, PublishRejected, PublishUnknown
from tidewire.kit.handles import describe, sync_handle
from tidewire.model import ZERO, Fact, Message, Receipt
from tidewire.protocols import Store, Transport, Unit
from tidewire.rules.letters import topic_of
from tidewire.rules.outgoing import NO_CAUSE, Cause
from tidewire.runtime.parts import Parts
from tidewire.runtime.stamping import Stamping
from tidewire.runtime.topology import Topology

__all__ = ["Publisher", "transaction"]


class Publisher:
    """Gives events to the system. Made by the runtime; shared by all tasks of a process.

    Concurrent calls share the broker's batches: 64 tasks that each await one `publish` cost little more than one.
    """

    def __init__(
        self,
        *,
        source: str,
        transport: Transport,
        topology: Topology,
        store: Store | None,
        parts: Parts,
    ) -> None:
        self._transport = transport
        self._topology = topology
        self._store = store
        self._stamping = Stamping(source, parts)
        self._clock = parts.clock
        self._observer = parts.observer

    async def publish(
        self,
        event: object,
        *,
        tx: Any = None,
        id: str = "",
        delay: timedelta = ZERO,
        at: datetime | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> str:
        """Publish one event and return its id.

        With *tx*, a transaction of the service's store, the event is an outbox row in it: it leaves if and only
        if that commits. That is `transaction`'s, ``context.tx``, or the caller's own to the store's database: a
        SQLAlchemy ``AsyncSession`` or ``AsyncConnection``, a connection of asyncpg, an ``AsyncConnection`` of psycopg.
        Without, it is on the broker (durable as the broker declares) when this returns.
        *id* makes a repeat recognisable: publishing again with the same id is always right. *delay* or *at* keep
        the event back; *headers* are application headers and ``ce-`` extensions.

        Raises:
            PublishRejected: certainly not stored; the reason is in the message.
            PublishUnknown: it may be stored; publish again with ``id=error.event_id``.
            TransportUnavailable: nothing was handed over.
            ConfigurationError: not an event, a value that cannot travel, a *tx* of another database or one that is
                in no transaction, or a delay that this broker cannot keep without a store.
        """
        not_before = self.not_before(delay, at)
        message = self.message(event, event_id=id, not_before=not_before, headers=headers)
        if tx is None:
            await self.send([message])
        else:
            await self._put(tx, [message])
        return message.id

    async def publish_all(self, events: Sequence[object], *, tx: Any = None) -> Sequence[str]:
        """Publish *events* in order as one batch and return their ids; the rest is as `publish`."""
        messages = [self.message(event) for event in events]
        if tx is None:
            await self.send(messages)
        else:
            await self._put(tx, messages)
        return [message.id for message in messages]

    def message(
        self,
        event: object,
        *,
        event_id: str = "",
        cause: Cause = NO_CAUSE,
        not_before: int | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> Message:
        """Return the message that would carry *event*, without publishing it. Makes an id where none is given."""
        return self._stamping.message(event, event_id=event_id, cause=cause, not_before=not_before, headers=headers)

    async def send(self, messages: Sequence[Message]) -> None:
        """Hand finished messages to the broker and return when all are stored.

        Raises:
            PublishRejected, PublishUnknown: about the first message that was not stored; those before it are.
            TransportUnavailable: none was handed over.
        """
        await self.ensure_topics(messages)
        receipts = await self._transport.publish(messages)
        for message, receipt in zip(messages, receipts, strict=True):
            if not receipt.ok:
                raise _refusal(message, receipt)
        if self._observer is not None:
            self._observer.record([published(message, self._clock.now_us()) for message in messages])

    async def ensure_topics(self, messages: Sequence[Message]) -> None:
        """Create the topics of *messages* that are missing, where this process may."""
        await self._topology.ensure(topic_of(message.to) for message in messages)

    async def _put(self, tx: Any, messages: Sequence[Message]) -> None:
        unit = self.unit_of(tx)
        if self._store is None:
            raise ConfigurationError("publish(tx=…) needs a store", hint="open the publisher with one")
        await self._store.outbox.put(unit, messages)

    def unit_of(self, tx: Any) -> Unit:
        """Return the unit that *tx* belongs to.

        Raises:
            ConfigurationError: it is not a transaction of this service's store.
        """
        unit = None if self._store is None else self._store.adopt_tx(tx)
        if unit is not None:
            return unit
        if self._store is not None and sync_handle(tx) is not None:
            raise ConfigurationError(
                f"publish(tx=…): a {describe(tx)} is not awaited, and would keep the event loop waiting",
                hint="in synchronous code publish with tidewire.config.sync_publisher(…).publish(event, tx=…)",
            )
        raise ConfigurationError(
            f"publish(tx=…): {type(tx).__name__} is not a transaction of this service's store",
            hint="use `async with transaction(store) as tx`, context.tx inside a handler, or a session or connection "
            "of SQLAlchemy, asyncpg or psycopg to the store's database",
        )

    def not_before(self, delay: timedelta, at: datetime | None) -> int | None:
        """Return when an event may leave, in microseconds since 1970, or None: at once.

        Raises:
            ConfigurationError: a negative *delay*, an *at* without a time zone, or both.
        """
        return self._stamping.not_before(delay, at)


def quarantined(message: Message, now_us: int, *, reason: str) -> Fact:
    """Return the fact that the row of *message* was put aside, which the broker refuses for *reason*."""
    type_ = message.headers.get("ce-type", "")
    return Fact("quarantined", type_, message.id, topic_of(message.to), at=now_us, detail=reason)


def published(message: Message, now_us: int) -> Fact:
    """Return the fact that *message* reached the broker."""
    return Fact("published", message.headers.get("ce-type", ""), message.id, topic_of(message.to), at=now_us)


def _refusal(message: Message, receipt: Receipt) -> PublishRejected | PublishUnknown:
    what = f"{message.headers.get('ce-type', 'message')} {message.id}"
    if receipt.status == "unknown":
        return PublishUnknown(
            f"{what}: the broker may have it ({receipt.detail or 'no answer'})",
            event_id=message.id,
            hint="publish again with the same id: that is always right",
        )
    return PublishRejected(
        f"{what}: not stored, {receipt.reason or 'refused'}{': ' + receipt.detail if receipt.detail else ''}",
        event_id=message.id,
        hint="provisioning makes what is missing: --provision, or the setting provision"
        if receipt.reason == "unknown_topic"
        else "",
    )


@asynccontextmanager
async def transaction(store: Store) -> AsyncGenerator[Any]:
    """Open a transaction of *store* for code outside a handler (an HTTP route, a script) and yield its ``tx``.

    On leaving, it is committed and durable; an exception rolls it back and rises. Events published with
    ``tx=`` leave if and only if it commits. Keep it short: a SQLite store has one writer.
    """
    unit = store.unit()
    await unit.begin()
    try:
        yield unit.tx
        durable = await unit.seal()
    except BaseException:
        await unit.rollback()
        raise
    await durable
