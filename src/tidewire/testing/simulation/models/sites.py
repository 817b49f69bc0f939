"""A model as the transport conformance suite wants it: on an ordinary event loop, in real time, with all its faults."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from datetime import timedelta

from tidewire.model import Address, Delivery, LaneEvent, Message, Move, Receipt, Release, Settlement, Subscription
from tidewire.protocols import Receiver, Transport
from tidewire.testing.simulation.models.catalogue import MODELS, UNORDERED
from tidewire.testing.simulation.models.intake import Crew
from tidewire.testing.simulation.models.links import Link, Server
from tidewire.testing.transports import Client, Faults, Site, forward
from tidewire.testing.transports.inside import JumpingClock, Refusals, publish_slowly

__all__ = ["model_site"]

TIMEOUT = 0.5


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
        self._crew.add(publish_slowly(self._transport, messages))

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
    clock = JumpingClock()
    server = (MODELS.get(name) or UNORDERED[name])(clock)
    refused = Refusals()

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

    server.refuse = refused.reason
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
