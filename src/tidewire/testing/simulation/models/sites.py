"""A model as the transport conformance suite wants it: on an ordinary event loop, in real time, with all its faults."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from datetime import datetime, timedelta

from tidewire.clock import SystemClock, microseconds
from tidewire.model import Address, Delivery, LaneEvent, Message, Move, Receipt, Release, Settlement, Subscription
from tidewire.protocols import Receiver, Transport
from tidewire.testing.simulation.models.catalogue import MODELS, UNORDERED
from tidewire.testing.simulation.models.intake import Crew
from tidewire.testing.simulation.models.links import Link, Server
from tidewire.testing.transports import Client, Faults, Site, forward

__all__ = ["model_site"]

TIMEOUT = 0.5


class _MovedClock(SystemClock):
    """The machine's clocks, with a wall time that can be moved."""

    def __init__(self) -> None:
        self._shift = timedelta(0)

    def now(self) -> datetime:
        """Return the moved wall time."""
        return super().now() + self._shift

    def now_us(self) -> int:
        """Return the moved wall time in microseconds."""
        return microseconds(self.now())

    def jump(self, by: timedelta) -> None:
        """Move the wall time."""
        self._shift += by


class _ModelClient:
    """A client that dies by having its link severed, and stands still while nothing passes on it."""

    def __init__(self, link: Link, transport: Transport, stack: AsyncExitStack) -> None:
        self._link = link
        self._transport = transport
        self._stack = stack
        self._crew = Crew()
        self._receiver: Receiver | None = None

    async def publish(self, messages: Sequence[Message]) -> Sequence[Receipt]:
        """Publish."""
        return await self._transport.publish(messages)

    async def join(self, subscription: Subscription) -> None:
        """Join a group."""
        self._receiver = await self._stack.enter_async_context(self._transport.subscribe(subscription))

    async def receive(self, limit: int, wait: timedelta) -> Sequence[Delivery | LaneEvent]:
        """Receive."""
        return await self._joined().receive(limit, wait)

    async def settle(
        self, *, ack: Sequence[Delivery] = (), release: Sequence[Release] = (), move: Sequence[Move] = ()
    ) -> Sequence[Settlement]:
        """Settle."""
        return await self._joined().settle(ack=ack, release=release, move=move)

    async def steer(
        self, *, pause: Sequence[str] = (), resume: Sequence[str] = (), drained: Sequence[str] = ()
    ) -> None:
        """Steer."""
        await self._joined().steer(pause=pause, resume=resume, drained=drained)

    async def start_publishing(self, messages: Sequence[Message]) -> None:
        """Publish one by one, beside the test."""

        async def run() -> None:
            for one in messages:
                await self._transport.publish([one])
                await asyncio.sleep(0.0005)

        self._crew.add(run())

    async def start_forwarding(self, subscription: Subscription, to: Address) -> None:
        """Forward beside the test."""
        self._crew.add(forward(self._transport, subscription, to))

    async def kill(self) -> None:
        """Fall silent for ever: what was sent may arrive, nothing else does."""
        self._link.sever()
        await self._crew.close()

    def pause(self) -> None:
        """Stand still."""
        self._link.freeze()

    def resume(self) -> None:
        """Go on."""
        self._link.thaw()

    def _joined(self) -> Receiver:
        assert self._receiver is not None, "join first"
        return self._receiver


@asynccontextmanager
async def _opened(server: Server) -> AsyncGenerator[Transport]:
    link = Link(server, timeout=TIMEOUT)
    try:
        async with server.open(link) as transport:
            yield transport
    finally:
        link.close()


@asynccontextmanager
async def _spawned(server: Server) -> AsyncGenerator[Client]:
    """Start a client; leaving kills it."""
    link = Link(server, timeout=TIMEOUT)
    try:
        async with AsyncExitStack() as stack:
            client = _ModelClient(link, await stack.enter_async_context(server.open(link)), stack)
            try:
                yield client
            finally:
                await client.kill()
    finally:
        link.close()


def model_site(name: str) -> Site:
    """Return a site with a server of its own of the model *name*.

    The suite runs in real time: it asks the machine's clock, and blocks its event loop on purpose. The server judges
    leases by ticks and stamps by a wall time that can be moved.
    """
    clock = _MovedClock()
    server = (MODELS.get(name) or UNORDERED[name])(clock)
    refused: set[str] = set()

    def reason(message: Message) -> str | None:
        if message.id not in refused:
            return None
        refused.discard(message.id)
        return "invalid"

    @asynccontextmanager
    async def away() -> AsyncGenerator[None]:
        server.down = True
        server.cut()
        try:
            yield
        finally:
            server.down = False

    @asynccontextmanager
    async def hung() -> AsyncGenerator[None]:
        server.hang()
        try:
            yield
        finally:
            server.unhang()

    async def cut() -> None:
        server.cut()

    async def restart() -> None:
        server.restart()

    server.refuse = reason
    return Site(
        open=lambda: _opened(server),
        faults=Faults(
            spawn=lambda: _spawned(server),
            restart=restart,
            shift=clock.jump,
            cut=cut,
            hang=hung,
            outage=away,
            refuse=refused.add,
        ),
        apart=lambda: model_site(name),
        soak=timedelta(seconds=1),
    )
