"""Defects on purpose, so that everybody can see the books not balance. Each wraps a seam; none is in the product."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Awaitable, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from datetime import timedelta
from typing import Any

from tidewire.model import Delivery, Guard, LaneEvent, Mark, Message, Move, Receipt, Release, Settlement, Subscription
from tidewire.protocols import Receiver, Unit

__all__ = ["PLANTS", "plant"]

_LATE = 0.05
PLANTS = ("ack-before-commit", "publish-before-commit", "no-inbox")


def plant(defect: str, transport: Any, store: Any) -> tuple[Any, Any]:
    """Return *transport* and *store* with *defect* in one of them."""
    if defect == "ack-before-commit":
        return AcksFirst(transport), store
    if defect == "publish-before-commit":
        return transport, PublishesFirst(store, transport)
    if defect == "no-inbox":
        return transport, ForgetsMarks(store)
    return transport, store


class Wrapped:
    """Passes on whatever it does not replace."""

    def __init__(self, inner: Any) -> None:
        self.inner = inner

    def __getattr__(self, name: str) -> Any:
        return getattr(self.inner, name)


class AcksFirst(Wrapped):
    """A transport that tells the broker "done" when it hands out; what the process dies with is lost."""

    def subscribe(self, subscription: Subscription) -> AbstractAsyncContextManager[Receiver]:
        """Join as always, with a receiver that acks first."""

        @asynccontextmanager
        async def joined() -> AsyncGenerator[Receiver]:
            async with self.inner.subscribe(subscription) as receiver:
                acking: Any = AckingReceiver(receiver, self.inner)
                yield acking

        return joined()


class AckingReceiver(Wrapped):
    """Acks in `receive`; what is settled later has nothing left to do."""

    def __init__(self, inner: Any, transport: Any) -> None:
        super().__init__(inner)
        self._transport = transport

    async def receive(self, limit: int, wait: timedelta) -> Sequence[Delivery | LaneEvent]:
        """Hand out what the broker believes to be done."""
        items: Sequence[Delivery | LaneEvent] = await self.inner.receive(limit, wait)
        await self.inner.settle(ack=[item for item in items if isinstance(item, Delivery)])
        return items

    async def settle(
        self, *, ack: Sequence[Delivery] = (), release: Sequence[Release] = (), move: Sequence[Move] = ()
    ) -> Sequence[Settlement]:
        """Publish what is moved, and say that all is well."""
        messages = [message for moved in move for message in moved.messages]
        if messages:
            await self._transport.publish(messages)
        everything = [*ack, *(one.delivery for one in release), *(one.delivery for one in move)]
        return [Settlement(delivery, "settled") for delivery in everything]


class PublishesFirst(Wrapped):
    """A store whose outbox sends at once: what is rolled back, or dies before its commit, has been sent."""

    def __init__(self, inner: Any, transport: Any) -> None:
        super().__init__(inner)
        self.outbox = SendingOutbox(inner.outbox, transport)


class SendingOutbox(Wrapped):
    """An outbox that is none."""

    def __init__(self, inner: Any, transport: Any) -> None:
        super().__init__(inner)
        self._transport = transport

    async def put(self, unit: Unit, messages: Sequence[Message]) -> None:
        """Send now."""
        receipts: Sequence[Receipt] = await self._transport.publish(messages)
        assert all(receipt.ok for receipt in receipts)


class ForgetsMarks(Wrapped):
    """A store that does not remember what has taken effect, and so lets it happen again."""

    def __init__(self, inner: Any) -> None:
        super().__init__(inner)
        self.inbox = NoInbox(inner.inbox)

    def unit(self, guard: Guard | None = None, *, label: str = "") -> Unit:
        """Return a unit whose commit is acked late, so that a crash in between is likely."""
        late: Any = LateUnit(self.inner.unit(guard, label=label))
        unit: Unit = late
        return unit


class NoInbox(Wrapped):
    """Knows nothing, marks nothing."""

    async def known(self, marks: Sequence[Mark]) -> Sequence[bytes | None]:
        """Nothing is known."""
        return [None] * len(marks)

    async def mark(self, unit: Unit, mark: Mark, digest: bytes) -> None:
        """Nothing is marked."""


class LateUnit(Wrapped):
    """Reports its commit a little late, as a busy machine would, so that a crash in between is likely."""

    async def seal(self) -> Awaitable[None]:
        """Seal as always."""
        durable: Awaitable[None] = await self.inner.seal()
        loop = asyncio.get_running_loop()
        later: asyncio.Future[None] = loop.create_future()
        loop.call_later(_LATE, _resolve, later)
        return _both(durable, later)


async def _both(durable: Awaitable[None], later: Awaitable[None]) -> None:
    await durable
    await later


def _resolve(future: asyncio.Future[None]) -> None:
    if not future.done():
        future.set_result(None)
