"""A world in a test: services on a broker and stores of their own, and ways to look at what happened."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncGenerator, Awaitable, Callable, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from datetime import datetime, timedelta
from typing import Any, TypeVar

from tidewire.clock import SystemClock
from tidewire.config import masked, open_store, open_transport
from tidewire.errors import ConfigurationError, DecodeError
from tidewire.model import ZERO, DeadChannel, Fact, Message, Topic
from tidewire.protocols import Clock, Store, Transport
from tidewire.rules.events import definition_of
from tidewire.rules.letters import redriven
from tidewire.runtime.parts import Parts, with_remembered_codecs
from tidewire.runtime.producer import Publisher
from tidewire.runtime.serve import Options, running
from tidewire.runtime.service import Service
from tidewire.testing.lives import Fuse, FusedStore, FusedTransport, Life, Record
from tidewire.testing.seen import DeadLetterSeen, Events
from tidewire.testing.virtual import VirtualClock, VirtualTimeLoop

__all__ = ["World", "tidewire_world"]

T = TypeVar("T")
_FACTS_MAX = 100_000
# Nobody is slow here, and keeping leases alive over virtual days takes real seconds.
_LEASE = timedelta(minutes=10)
_OPTIONS = Options(lease=_LEASE, relay_lease=_LEASE, stuck_after=timedelta(hours=1))
_SOON = 0.25
_REAL_PATIENCE = 10.0
_REAL_MAX = timedelta(minutes=1)


class World:
    """Services that run, and what they have done. Made by `tidewire_world`.

    On a `VirtualTimeLoop` time passes only when the test lets it: `advance`. On another loop it is real, and
    `advance` waits.
    """

    def __init__(self, *, transport: Transport, options: Options, clock: Clock, crashable: bool) -> None:
        self._transport = transport
        self._options = options
        self._clock = clock
        self._crashable = crashable
        self._record = Record()
        self._facts: deque[Fact] = deque(maxlen=_FACTS_MAX)
        self._loop = asyncio.get_running_loop()
        self._parts = with_remembered_codecs(Parts(clock=clock, jitter=Ceiling(), observer=self))
        self._lives: dict[str, Life] = {}
        self._services: dict[str, Service] = {}
        self._stores: dict[str, Store | None] = {}
        self._publisher: Publisher | None = None

    # --- acting -----------------------------------------------------------------------------------------------

    @property
    def publisher(self) -> ThreadSafePublisher:
        """A publisher for code under test (a web application's route); it may be used from other threads' loops."""
        assert self._publisher is not None
        return ThreadSafePublisher(self._publisher, self._loop)

    async def publish(
        self, event: object, *, id: str = "", delay: timedelta = ZERO, at: datetime | None = None, settle: bool = True
    ) -> str:
        """Publish an event from outside, let everything happen that follows at once, and return its id.

        With *settle* false it returns as soon as the broker has the event.
        """
        assert self._publisher is not None
        event_id = await self._publisher.publish(event, id=id, delay=delay, at=at)
        if settle:
            await self.settle()
        return event_id

    async def publish_plain(self, topic: str, body: bytes, *, key: str | None = None, **headers: str) -> None:
        """Publish a message that is no CloudEvent, as a foreign producer would; underscores in names are hyphens."""
        names = {name.replace("_", "-"): value for name, value in headers.items()}
        (receipt,) = await self._transport.publish([Message(Topic(topic), "", "", key, names, body)])
        assert receipt.ok, receipt
        await self.settle()

    async def settle(self) -> None:
        """Let everything happen that happens within a quarter of a second; retries and delays wait for `advance`.

        In real time: until nothing is ready and nothing in flight that is not held, at most ten seconds.
        """
        if isinstance(self._loop, VirtualTimeLoop):
            await self._settle_virtual(self._loop)
        else:
            await self._settle_real()
        self._raise_what_ended()

    async def advance(self, by: timedelta) -> None:
        """Let *by* pass with everything that is due in it, and what follows at once from that.

        Raises:
            ConfigurationError: time is real, as another plugin runs this test, and *by* is above a minute.
        """
        if self._crashable and by > _REAL_MAX and not isinstance(self._loop, VirtualTimeLoop):
            raise ConfigurationError(
                f"advance({by}) would wait that long: this test is not on virtual time",
                hint="another plugin runs it (pytest-asyncio by its mark or in auto mode, anyio): use strict mode "
                "and no mark, or a plain test that calls tidewire.testing.run; see docs/testing.md",
            )
        await asyncio.sleep(by.total_seconds())
        await self.settle()

    async def crash(self, service: Service) -> None:
        """Let the process of *service* die as by ``kill -9``: whatever it still does reaches nothing.

        Raises:
            ConfigurationError: only the memory broker can be left without a goodbye from inside one process.
        """
        self._need_crashes()
        await self._lives[service.name].crash()

    async def crash_after_commit(self, service: Service) -> None:
        """Arm a crash: *service* dies behind the next commit of its store and before the ack of that event."""
        self._need_crashes()
        self._lives[service.name].fuse.blow_after_commit = True

    async def restart(self, service: Service) -> None:
        """Start *service* again on the store it had, and let the lease of a life that crashed end."""
        life = self._lives[service.name]
        if life.fuse.blown:
            await life.ended()
        else:
            await life.stop()
        await self._start(service)
        await self.advance(self._options.lease + timedelta(seconds=1))

    async def crash_and_restart(self, service: Service) -> None:
        """`crash`, then `restart`."""
        await self.crash(service)
        await self.restart(service)

    # --- looking ----------------------------------------------------------------------------------------------

    def published(self, event: type[T]) -> Events[T]:
        """Return the events of a class that the broker has stored, whoever published them, in order."""
        definition = definition_of(event)
        decode = self._parts.codec_for(event).decode
        found = [
            (decode(message.body), message)
            for message in self._record.published
            if message.headers.get("ce-type") == definition.type
        ]
        return Events(found, f"published {event.__qualname__}", self.story)

    def dead_letters(self, service: Service | None = None) -> list[DeadLetterSeen]:
        """Return the dead letters of *service*, or of all, in order; redriven ones are gone."""
        return [
            self._letter(message) for message in self._record.dead if service is None or _group(message) == service.name
        ]

    async def redrive(self, letter: DeadLetterSeen) -> None:
        """Give a dead letter back to its group, and let everything happen that follows at once."""
        channel = letter.message.to
        inspector: Any = self._transport
        await self._transport.publish([redriven(letter.message)])
        found = [one.position for one in await inspector.browse(channel) if one.message.id == letter.message.id]
        await inspector.remove(channel, found)
        self._record.dead = [one for one in self._record.dead if one is not letter.message]
        await self.settle()

    def store(self, service: Service) -> Any:
        """Return the store of *service*, to look into its tables.

        Raises:
            KeyError: it is not of this world, or has none.
        """
        store = self._stores[service.name]
        if store is None:
            raise KeyError(f"{service.name} runs without a store in this world")
        return store

    def now(self) -> datetime:
        """Return the world's wall time."""
        return self._clock.now()

    def facts(self, event_id: str = "") -> list[Fact]:
        """Return what happened, in order, to one event or to all."""
        return [fact for fact in self._facts if event_id in ("", fact.event_id)]

    def story(self, event_id: str = "") -> str:
        """Return what happened as lines for people, times counted from the first."""
        facts = self.facts(event_id)[-200:]
        if not facts:
            return "nothing has happened"
        start = facts[0].at
        lines = [
            f"  +{(fact.at - start) / 1e6:10.3f} s  {fact.kind:<13} {fact.type} {fact.event_id}"
            f"{' by ' + fact.group if fact.group else ''}{' (' + fact.detail + ')' if fact.detail else ''}"
            for fact in facts
        ]
        return "what happened:\n" + "\n".join(lines)

    def record(self, facts: Sequence[Fact]) -> None:
        """Hear what happens; see `tidewire.protocols.Observer`."""
        self._facts.extend(facts)

    # --- inside -----------------------------------------------------------------------------------------------

    async def open(self, stack: AsyncExitStack, services: Sequence[tuple[Service, Store | None]]) -> None:
        """Start each service on its store; *stack* stops them."""
        # The world's own publisher comes first, so that it goes last.
        outside: Any = FusedTransport(self._transport, Fuse(), self._record)
        app = await stack.enter_async_context(
            running(Service("world"), transport=outside, options=self._options, parts=self._parts)
        )
        self._publisher = app.publisher
        stack.push_async_callback(self._stop_all)
        for service, store in services:
            if service.name in self._services:
                raise ConfigurationError(f"two services of this world are named {service.name!r}")
            self._services[service.name] = service
            self._stores[service.name] = store
            await self._start(service)
        await self.settle()

    async def _start(self, service: Service) -> None:
        fuse = Fuse()
        store = self._stores[service.name]
        transport: Any = FusedTransport(self._transport, fuse, self._record)
        fused: Any = None if store is None else FusedStore(store, fuse)
        life = Life(
            service.name,
            fuse,
            lambda: running(service, transport=transport, store=fused, options=self._options, parts=self._parts),
        )
        self._lives[service.name] = life
        await life.start()

    async def _stop_all(self) -> None:
        for life in self._lives.values():
            if life.fuse.blown:
                await life.ended()
            else:
                await life.stop()

    async def _settle_virtual(self, loop: VirtualTimeLoop) -> None:
        end = loop.time() + _SOON
        while True:
            await loop.quiet()
            timer = loop.next_timer()
            if timer is None or timer > end:
                return
            await asyncio.sleep(max(0.0, timer - loop.time()))

    async def _settle_real(self) -> None:
        end = self._loop.time() + _REAL_PATIENCE
        still = 0
        while still < 3 and self._loop.time() < end:
            await asyncio.sleep(0.05)
            still = still + 1 if await self._idle() else 0

    async def _idle(self) -> bool:
        inspector: Any = self._transport
        for store in self._stores.values():
            if store is not None and (await store.outbox.count())[0]:
                return False
        for name, life in self._lives.items():
            if life.fuse.blown:
                continue
            for info in await inspector.groups():
                if info.group == name and (info.stats.ready or info.stats.in_flight):
                    return False
        return True

    def _raise_what_ended(self) -> None:
        for life in self._lives.values():
            life.raise_if_ended()

    def _need_crashes(self) -> None:
        if not self._crashable:
            raise ConfigurationError(
                "a crash inside one process needs the memory broker", hint="leave out the broker's URL for this test"
            )

    def _letter(self, message: Message) -> DeadLetterSeen:
        headers = message.headers
        return DeadLetterSeen(
            group=_group(message),
            reason=headers.get("dl-reason", ""),
            detail=headers.get("dl-detail", ""),
            error=headers.get("dl-last-error", ""),
            attempts=int(headers.get("dl-attempts", "1")),
            event=self._decoded(message),
            message=message,
        )

    def _decoded(self, message: Message) -> Any:
        for service in self._services.values():
            for handler in service.handlers:
                if handler.event.type == message.headers.get("ce-type"):
                    try:
                        return self._parts.codec_for(handler.event.cls).decode(message.body)
                    except DecodeError:
                        return None
        return None


class Ceiling:
    """Jitter that draws the longest wait, so that a test knows when a retry comes."""

    def between(self, low: timedelta, high: timedelta) -> timedelta:
        """Return *high*."""
        return max(low, high)


class ThreadSafePublisher:
    """A publisher whose `publish` may be awaited on any loop, as a web framework's test client has its own."""

    def __init__(self, inner: Publisher, loop: asyncio.AbstractEventLoop) -> None:
        self._inner = inner
        self._loop = loop

    async def publish(self, event: object, **options: Any) -> str:
        """As `Publisher.publish`."""
        return await self._here(lambda: self._inner.publish(event, **options))

    async def publish_all(self, events: Sequence[object], **options: Any) -> Sequence[str]:
        """As `Publisher.publish_all`."""
        return await self._here(lambda: self._inner.publish_all(events, **options))

    async def _here(self, call: Callable[[], Awaitable[T]]) -> T:
        async def act() -> T:
            return await call()

        if asyncio.get_running_loop() is self._loop:
            return await act()
        return await asyncio.wrap_future(asyncio.run_coroutine_threadsafe(act(), self._loop))


@asynccontextmanager
async def tidewire_world(
    *services: Service, broker: str = "", store: str | bool = True, options: Options | None = None
) -> AsyncGenerator[World]:
    """Run *services* together while the block lasts: each as a process of its own would be, with a store of its own.

    The runtime is the real one: consume loop, lanes, retries, holds, outbox, relay. *store*: True for one in memory
    each, False for none, or a URL with ``{service}`` in it (``sqlite:///data/{service}.db``). *broker* is a URL;
    without one it is a broker in memory. Retries wait the longest time their policy allows.

    Raises:
        ConfigurationError: a service that cannot run; see `tidewire.running`.
    """
    loop = asyncio.get_running_loop()
    in_memory = not broker or broker.startswith("memory:")
    if isinstance(loop, VirtualTimeLoop) and not in_memory:
        raise ConfigurationError(
            f"the broker {masked(broker)} is not on virtual time",
            hint="run this test on an ordinary event loop: see docs/testing.md",
        )
    clock: Clock = VirtualClock(loop) if isinstance(loop, VirtualTimeLoop) else SystemClock()
    options = options or (_OPTIONS if isinstance(loop, VirtualTimeLoop) else Options())
    async with AsyncExitStack() as stack:
        opened = [(service, await _opened_store(stack, service, store, clock)) for service in services]
        if in_memory:
            from tidewire.transports.memory import MemoryBroker, open_memory_transport

            transport: Transport = await stack.enter_async_context(
                open_memory_transport(MemoryBroker(clock=clock, dedup=timedelta(days=7)))
            )
        else:
            transport = await stack.enter_async_context(open_transport(broker))
        world = World(transport=transport, options=options, clock=clock, crashable=in_memory)
        await world.open(stack, opened)
        yield world


async def _opened_store(stack: AsyncExitStack, service: Service, store: str | bool, clock: Clock) -> Store | None:
    if store is False:
        return None
    if store is True:
        from tidewire.stores.memory import open_memory_store

        return await stack.enter_async_context(open_memory_store(clock=clock))
    url = store.replace("{service}", service.name)
    poll = timedelta(hours=1)  # nobody else writes it, and an hour may pass at once
    return await stack.enter_async_context(open_store(url, provision=True, clock=clock, poll=poll))


def _group(message: Message) -> str:
    assert isinstance(message.to, DeadChannel)
    return message.to.group
