"""A broker in memory as the conformance suite wants it: clients that can die and stand still, a clock that jumps."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Callable, Sequence
from contextlib import AbstractAsyncContextManager, AsyncExitStack, asynccontextmanager
from datetime import timedelta

from tidewire.model import Address, Delivery, LaneEvent, Message, Move, Receipt, Release, Settlement, Subscription
from tidewire.testing.transports import Client, Faults, Site, forward
from tidewire.testing.transports.inside import JumpingClock, Refusals, publish_slowly
from tidewire.transports.memory import MemoryBroker, MemoryReceiver, MemoryTransport, open_memory_transport


class MemoryClient:
    """A client that dies by falling silent: its receiver is never left, its tasks never go on."""

    def __init__(self, transport: MemoryTransport, stack: AsyncExitStack, tasks: asyncio.TaskGroup) -> None:
        self._transport = transport
        self._stack = stack
        self._tasks = tasks
        self._running: list[asyncio.Task[None]] = []
        self._receivers: list[MemoryReceiver] = []

    async def publish(self, messages: Sequence[Message]) -> Sequence[Receipt]:
        """Publish."""
        return await self._transport.publish(messages)

    async def join(self, subscription: Subscription) -> None:
        """Join a group."""
        self._receivers.append(await self._stack.enter_async_context(self._transport.subscribe(subscription)))

    async def receive(self, limit: int, wait: timedelta) -> Sequence[Delivery | LaneEvent]:
        """Receive."""
        return await self._receivers[0].receive(limit, wait)

    async def settle(
        self, *, ack: Sequence[Delivery] = (), release: Sequence[Release] = (), move: Sequence[Move] = ()
    ) -> Sequence[Settlement]:
        """Settle."""
        return await self._receivers[0].settle(ack=ack, release=release, move=move)

    async def steer(
        self, *, pause: Sequence[str] = (), resume: Sequence[str] = (), drained: Sequence[str] = ()
    ) -> None:
        """Steer."""
        await self._receivers[0].steer(pause=pause, resume=resume, drained=drained)

    async def start_publishing(self, messages: Sequence[Message]) -> None:
        """Publish one by one, beside the test."""
        self._running.append(self._tasks.create_task(publish_slowly(self._transport, messages)))

    async def start_forwarding(self, subscription: Subscription, to: Address) -> None:
        """Forward beside the test."""
        spy = _Spy(self._transport, self._receivers)
        self._running.append(self._tasks.create_task(forward(spy, subscription, to)))

    async def kill(self) -> None:
        """Fall silent for ever."""
        for receiver in self._receivers:
            receiver.silence()
        for task in self._running:
            task.cancel()

    def pause(self) -> None:
        """Fall silent."""
        for receiver in self._receivers:
            receiver.silence()

    def resume(self) -> None:
        """Go on."""
        for receiver in self._receivers:
            receiver.wake()


class _Spy:
    """A transport that remembers its receivers, so that they can be silenced."""

    def __init__(self, transport: MemoryTransport, receivers: list[MemoryReceiver]) -> None:
        self._transport = transport
        self._receivers = receivers
        self.capabilities = transport.capabilities
        self.provision = transport.provision
        self.publish = transport.publish

    @asynccontextmanager
    async def subscribe(self, subscription: Subscription) -> AsyncGenerator[MemoryReceiver]:
        async with self._transport.subscribe(subscription) as receiver:
            self._receivers.append(receiver)
            yield receiver


Opened = Callable[[MemoryBroker], AbstractAsyncContextManager[MemoryTransport]]


@asynccontextmanager
async def spawn(opened: AbstractAsyncContextManager[MemoryTransport]) -> AsyncGenerator[Client]:
    """Start a client; leaving kills it."""
    async with asyncio.TaskGroup() as tasks, AsyncExitStack() as stack:
        client = MemoryClient(await stack.enter_async_context(opened), stack, tasks)
        try:
            yield client
        finally:
            await client.kill()


def memory_site(opened: Opened = open_memory_transport, *, patience: float = 8.0) -> Site:
    """Return a site with a broker of its own; *opened* may put something between the suite and the transport."""
    clock = JumpingClock()
    broker = MemoryBroker(clock=clock)
    refused = Refusals()

    @asynccontextmanager
    async def away() -> AsyncGenerator[None]:
        """What a client with no patience at all sees of a broker that is down, or does not answer."""
        broker.down = True
        try:
            yield
        finally:
            broker.down = False

    async def cut() -> None:
        async with away():
            await asyncio.sleep(0.02)

    broker.refuse = refused.reason
    return Site(
        open=lambda: opened(broker),
        faults=Faults(
            spawn=lambda: spawn(opened(broker)),
            shift=clock.jump,
            cut=cut,
            hang=away,
            outage=away,
            refuse=refused.add,
        ),
        patience=patience,
        apart=lambda: memory_site(opened),
        soak=timedelta(seconds=1),
    )
