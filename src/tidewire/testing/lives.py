"""One life of a service in a test: what it reaches goes through here, so that a crash can cut it off."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Awaitable, Callable, Generator, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager, suppress
from datetime import timedelta
from typing import Any

from tidewire.model import (
    DeadChannel,
    Delivery,
    Guard,
    LaneEvent,
    Message,
    Move,
    Receipt,
    Release,
    Settlement,
    Subscription,
    Topic,
)
from tidewire.protocols import Receiver, Store, Transport, Unit
from tidewire.runtime.serve import Running

__all__ = ["Fuse", "Life", "Record"]


class Died(BaseException):
    """What a crashed life meets wherever it turns; nothing catches it but the harness."""


class Record:
    """What a world's services have stored on its broker, in order."""

    def __init__(self) -> None:
        self.published: list[Message] = []
        self.dead: list[Message] = []

    def note(self, messages: Sequence[Message]) -> None:
        """Keep what was stored in topics and in dead channels."""
        for message in messages:
            if isinstance(message.to, Topic):
                self.published.append(message)
            elif isinstance(message.to, DeadChannel):
                self.dead.append(message)


class Fuse:
    """Whether a life still reaches anything, and what is to be undone when it does not."""

    def __init__(self) -> None:
        self.blown = False
        self.blow_after_commit = False
        self.on_blow: Callable[[], None] = lambda: None
        self.open_units: dict[int, Unit] = {}
        self.receivers: list[Any] = []
        self.kept: list[Any] = []

    def check(self) -> None:
        """Let nothing pass once the life has ended.

        Raises:
            Died: it has.
        """
        if self.blown:
            raise Died

    async def blow(self) -> None:
        """End the life: its members fall silent, its open units are rolled back."""
        self.blown = True
        for receiver in self.receivers:
            receiver.silence()
        for unit in list(self.open_units.values()):
            await unit.rollback()
        self.open_units.clear()
        self.on_blow()


class FusedTransport:
    """A transport as one life has it. What is not named here passes through."""

    def __init__(self, inner: Transport, fuse: Fuse, record: Record) -> None:
        self._inner: Any = inner
        self._fuse = fuse
        self._record = record

    def __getattr__(self, name: str) -> Any:
        self._fuse.check()
        return getattr(self._inner, name)

    async def publish(self, messages: Sequence[Message]) -> Sequence[Receipt]:
        """Publish, and note what was stored."""
        self._fuse.check()
        receipts: Sequence[Receipt] = await self._inner.publish(messages)
        stored = zip(messages, receipts, strict=True)
        self._record.note([message for message, receipt in stored if receipt.status == "stored"])
        self._fuse.check()
        return receipts

    @asynccontextmanager
    async def subscribe(self, subscription: Subscription) -> AsyncGenerator[Receiver]:
        """Join; a life that has died does not leave, it falls silent."""
        self._fuse.check()
        joined: AbstractAsyncContextManager[Receiver] = self._inner.subscribe(subscription)
        receiver = await joined.__aenter__()
        self._fuse.receivers.append(receiver)
        fused: Any = FusedReceiver(receiver, self._fuse, self._record)
        try:
            yield fused
        finally:
            if self._fuse.blown:
                self._fuse.kept.append(joined)  # its end would be a goodbye
            else:
                self._fuse.receivers.remove(receiver)
                await joined.__aexit__(None, None, None)


class FusedReceiver:
    """A receiver as one life has it."""

    def __init__(self, inner: Receiver, fuse: Fuse, record: Record) -> None:
        self._inner = inner
        self._fuse = fuse
        self._record = record

    async def receive(self, limit: int, wait: timedelta) -> Sequence[Delivery | LaneEvent]:
        """Receive, while alive."""
        self._fuse.check()
        found = await self._inner.receive(limit, wait)
        self._fuse.check()
        return found

    async def settle(
        self, *, ack: Sequence[Delivery] = (), release: Sequence[Release] = (), move: Sequence[Move] = ()
    ) -> Sequence[Settlement]:
        """Settle, while alive, and note what was moved."""
        self._fuse.check()
        settlements = await self._inner.settle(ack=ack, release=release, move=move)
        done = {id(one.delivery) for one in settlements if one.status == "settled"}
        for one in move:
            if id(one.delivery) in done:
                self._record.note(one.messages)
        return settlements

    async def steer(
        self, *, pause: Sequence[str] = (), resume: Sequence[str] = (), drained: Sequence[str] = ()
    ) -> None:
        """Steer, while alive."""
        self._fuse.check()
        await self._inner.steer(pause=pause, resume=resume, drained=drained)


class FusedStore:
    """A store as one life has it."""

    def __init__(self, inner: Store, fuse: Fuse) -> None:
        self._inner: Any = inner
        self._fuse = fuse

    def __getattr__(self, name: str) -> Any:
        self._fuse.check()
        return getattr(self._inner, name)

    def unit(self, guard: Guard | None = None, *, label: str = "") -> Any:
        """Return a unit that is rolled back if the life ends before it is sealed."""
        self._fuse.check()
        return FusedUnit(self._inner.unit(guard, label=label), self._fuse)


class FusedUnit:
    """A unit as one life has it. *inner* is the store's own, which its parts look for."""

    def __init__(self, inner: Unit, fuse: Fuse) -> None:
        self.inner = inner
        self._fuse = fuse
        fuse.open_units[id(inner)] = inner

    def __getattr__(self, name: str) -> Any:
        self._fuse.check()
        return getattr(self.inner, name)

    async def seal(self) -> Awaitable[None]:
        """Seal; where a crash behind the commit was asked for, it comes when the commit is durable."""
        self._fuse.check()
        durable = await self.inner.seal()
        self._fuse.open_units.pop(id(self.inner), None)
        return _Durable(durable, self._fuse)

    async def rollback(self) -> None:
        """Roll back; a life that has died has been rolled back already."""
        self._fuse.open_units.pop(id(self.inner), None)
        if not self._fuse.blown:
            await self.inner.rollback()


class _Durable:
    """The commit of a unit, awaited by a life that may not live to see it."""

    def __init__(self, inner: Awaitable[None], fuse: Fuse) -> None:
        self._inner = inner
        self._fuse = fuse

    def __await__(self) -> Generator[Any, None, None]:
        yield from self._inner.__await__()
        if self._fuse.blow_after_commit:
            self._fuse.blow_after_commit = False
            yield from self._fuse.blow().__await__()
        self._fuse.check()


class Life:
    """A service that runs in a task of its own, from `start` to `stop` or `crash`."""

    def __init__(self, name: str, fuse: Fuse, make: Callable[[], AbstractAsyncContextManager[Running]]) -> None:
        self.name = name
        self.fuse = fuse
        self._make = make
        self._stopping = asyncio.Event()
        self._task: asyncio.Task[None] | None = None
        self.running: Running | None = None
        fuse.on_blow = self._die

    async def start(self) -> None:
        """Return when the service has joined its group.

        Raises:
            TidewireError: what keeps it from starting.
        """
        started = asyncio.get_running_loop().create_future()
        self._task = asyncio.create_task(self._live(started), name=f"tidewire-test-{self.name}")
        await asyncio.wait([self._task, started], return_when=asyncio.FIRST_COMPLETED)
        if self._task.done():
            await self._task

    async def stop(self) -> None:
        """Drain and stop.

        Raises:
            BaseException: what ended the service before, if anything did.
        """
        self._stopping.set()
        if self._task is not None:
            with suppress(Died):
                await self._task

    async def crash(self) -> None:
        """End as ``kill -9`` would: from now on nothing reaches the broker or the store."""
        if not self.fuse.blown:
            await self.fuse.blow()
        await self.ended()

    async def ended(self) -> None:
        """Wait until nothing of a crashed life runs any more."""
        if self._task is not None:
            await asyncio.wait([self._task])
            if not self._task.cancelled():
                self._task.exception()  # whatever a dying process raises, nobody hears it

    def raise_if_ended(self) -> None:
        """Raise what has ended a service that nobody stopped; harmless for one that runs, or that has crashed."""
        if self._task is not None and self._task.done() and not self.fuse.blown:
            self._task.result()

    def _die(self) -> None:
        if self._task is not None:
            self._task.cancel()

    async def _live(self, started: asyncio.Future[None]) -> None:
        async with self._make() as app:
            self.running = app
            if not started.done():
                started.set_result(None)
            await self._stopping.wait()
