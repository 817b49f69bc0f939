"""Running a service: everything it needs, started in order and stopped in the reverse one.

The order of a stop: take in nothing more → let handlers end → settle → flush the outbox → close the service's
own resources. Cancellation and signals are no failures and spend no attempt.
"""

from __future__ import annotations

import asyncio
import logging
import signal
from collections.abc import AsyncIterator, Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import AsyncExitStack, asynccontextmanager
from datetime import timedelta
from typing import Any

import msgspec

from tidewire.chance import Ids, Jitter, RandomJitter, UUID7Ids
from tidewire.clock import SystemClock
from tidewire.codecs.json import json_codec
from tidewire.model import Subscription
from tidewire.protocols import Clock, Codec, Observer, Receiver, Store, Transport
from tidewire.runtime.consumer import Consumer, Limits
from tidewire.runtime.pipeline import Pipeline
from tidewire.runtime.plan import compile_plan
from tidewire.runtime.producer import Publisher
from tidewire.runtime.relay import Relay
from tidewire.runtime.service import Service
from tidewire.runtime.subscriber import Health, Subscriber, first_of
from tidewire.runtime.topology import Topology

__all__ = ["Options", "Running", "running", "serve_until_signal"]

_logger = logging.getLogger("tidewire.service")


class Options(msgspec.Struct, frozen=True, kw_only=True):
    """What can be set about a run; the defaults are safe.

    *lease*: how long a silent process keeps its lanes. *grace*: how long a stop lets handlers end. *max_hold*:
    how long a failing key waits in the process. *stuck_after*: when a subscription without progress is rebuilt.
    *provision*: create missing topics and groups (else they are verified). *lanes*: for topics created by that.
    *relay*: publish the store's outbox from this process.
    """

    lease: timedelta = timedelta(seconds=30)
    grace: timedelta = timedelta(seconds=10)
    max_hold: timedelta = timedelta(minutes=10)
    stuck_after: timedelta = timedelta(seconds=60)
    provision: bool = True
    lanes: int = 8
    relay: bool = True


class Parts(msgspec.Struct, frozen=True, kw_only=True):
    """Where time, chance and codecs come from; replaced together by tests and simulations."""

    clock: Clock = msgspec.field(default_factory=SystemClock)
    ids: Ids = msgspec.field(default_factory=UUID7Ids)
    jitter: Jitter = msgspec.field(default_factory=RandomJitter)
    codec_for: Callable[[type], Codec] = json_codec


class Running:
    """A service that runs. *publisher* may be used by any task of the process while it does."""

    def __init__(self, service: Service, publisher: Publisher, subscribers: list[Subscriber]) -> None:
        self.service = service
        self.publisher = publisher
        self._subscribers = subscribers
        self.stopped = asyncio.Event()

    def stop(self) -> None:
        """Begin the graceful stop, which leaving the context manager completes."""
        for subscriber in self._subscribers:
            subscriber.stop()
        self.stopped.set()

    def health(self) -> Mapping[str, Health]:
        """Say how each subscription is, by its number in the service."""
        return {str(number): subscriber.health() for number, subscriber in enumerate(self._subscribers)}

    @property
    def ready(self) -> bool:
        """Whether every subscription has joined and is making progress, or has nothing to do."""
        return all(subscriber.health().ready for subscriber in self._subscribers)

    async def joined(self) -> None:
        """Wait until every subscription has joined its group."""
        for subscriber in self._subscribers:
            await subscriber.joined.wait()


@asynccontextmanager
async def running(
    service: Service,
    *,
    transport: Transport,
    store: Store | None = None,
    options: Options | None = None,
    parts: Parts | None = None,
    observer: Observer | None = None,
) -> AsyncIterator[Running]:
    """Run *service* while the block lasts; it has joined its group when the block begins.

    Leaving drains: what runs may end within ``options.grace``, is settled and its events are published; what does
    not end in time stays unsettled and comes back, uncounted. The caller opens and closes *transport* and *store*.

    Raises:
        ConfigurationError: a handler or setting that cannot be; names every problem at once.
        TransportRefused, StoreRefused: a person must change something first.
    """
    options = options or Options()
    parts = parts or Parts()
    codecs = _remembered(parts.codec_for)
    member = f"{service.name}-{parts.ids.event_id()}"
    topology = Topology(transport, create=options.provision, lanes=options.lanes)
    publisher = Publisher(
        source=service.source,
        transport=transport,
        topology=topology,
        store=store,
        codec_for=codecs,
        ids=parts.ids,
        clock=parts.clock,
        observer=observer,
    )
    async with AsyncExitStack() as stack:
        executor = ThreadPoolExecutor(service.concurrency, thread_name_prefix=f"tidewire-{service.name}")
        stack.callback(executor.shutdown, wait=False, cancel_futures=True)
        plan = compile_plan(
            service,
            codec_for=codecs,
            capabilities=transport.capabilities,
            has_store=store is not None,
            executor=executor,
        )
        names = [name for topics in plan.topics.values() for name in topics]
        if names:
            await topology.prepare(service.name, names)
        resources = await stack.enter_async_context(service.open_resources())
        pipeline = Pipeline(
            group=service.name,
            plan=plan,
            publisher=publisher,
            store=store,
            clock=parts.clock,
            jitter=parts.jitter,
            resources=resources,
        )
        subscribers: list[Subscriber] = []
        for ordering, topics in plan.topics.items():
            if topics:
                subscription = Subscription(
                    group=service.name,
                    topics=topics,
                    member=f"{member}-{ordering}",
                    ordering=ordering,
                    prefetch=service.prefetch,
                    lease=options.lease,
                    grace=options.grace,
                )
                subscribers.append(
                    _subscriber(subscription, pipeline, transport, store, options, parts, observer, service)
                )
        relay = None
        if store is not None and options.relay:
            relay = Relay(
                store=store,
                transport=transport,
                topology=topology,
                owner=member,
                clock=parts.clock,
                jitter=parts.jitter,
                observer=observer,
            )
        app = Running(service, publisher, subscribers)
        async with _live(app, subscribers, relay, options):
            yield app


@asynccontextmanager
async def _live(
    app: Running, subscribers: list[Subscriber], relay: Relay | None, options: Options
) -> AsyncIterator[None]:
    """Run the tasks of *app* around the block, and stop them in order after it.

    What the block raises, rises as it is; a task of ours that cannot go on ends the block and rises instead.
    """
    raised: BaseException | None = None
    try:
        async with asyncio.TaskGroup() as tasks:
            consuming = [tasks.create_task(subscriber.run()) for subscriber in subscribers]
            relaying = None if relay is None else tasks.create_task(relay.run())
            for subscriber, task in zip(subscribers, consuming, strict=True):
                await _joined(subscriber, task)
            _logger.info("tidewire.service.started", extra={"service": app.service.name})
            try:
                yield
            except Exception as error:
                raised = error
            await _stop_in_order(app, consuming, relay, relaying, options)
    except BaseExceptionGroup as group:
        raise first_of(group) from None
    if raised is not None:
        raise raised


async def _stop_in_order(
    app: Running,
    consuming: list[asyncio.Task[None]],
    relay: Relay | None,
    relaying: asyncio.Task[None] | None,
    options: Options,
) -> None:
    app.stop()
    if consuming:
        await asyncio.wait(consuming)
    if relay is not None and relaying is not None:
        relay.stop()
        await asyncio.wait([relaying])
        await relay.flush(options.grace)
    _logger.info("tidewire.service.drained", extra={"service": app.service.name})


async def _joined(subscriber: Subscriber, task: asyncio.Task[None]) -> None:
    """Wait until *subscriber* has joined, or its task has ended with the reason why it cannot."""
    joined = asyncio.ensure_future(subscriber.joined.wait())
    try:
        await asyncio.wait({joined, task}, return_when=asyncio.FIRST_COMPLETED)
    finally:
        joined.cancel()


def _subscriber(
    subscription: Subscription,
    pipeline: Pipeline,
    transport: Transport,
    store: Store | None,
    options: Options,
    parts: Parts,
    observer: Observer | None,
    service: Service,
) -> Subscriber:
    limits = Limits(concurrency=service.concurrency, max_hold=_max_hold(transport, options), grace=options.grace)

    def make_consumer(receiver: Receiver) -> Consumer:
        return Consumer(
            receiver=receiver,
            subscription=subscription,
            pipeline=pipeline,
            store=store,
            fencing=transport.capabilities.fencing,
            limits=limits,
            clock=parts.clock,
            jitter=parts.jitter,
            observer=observer,
        )

    return Subscriber(
        transport=transport,
        subscription=subscription,
        make_consumer=make_consumer,
        jitter=parts.jitter,
        stuck_after=options.stuck_after,
    )


def _max_hold(transport: Transport, options: Options) -> timedelta:
    """At most three quarters of what the broker allows a delivery to stay unsettled."""
    window = transport.capabilities.settle_window
    return options.max_hold if window is None else min(options.max_hold, window * 0.75)


def _remembered(codec_for: Callable[[type], Codec]) -> Callable[[type], Codec]:
    codecs: dict[type, Codec] = {}

    def codec(cls: type) -> Codec:
        found = codecs.get(cls)
        if found is None:
            found = codecs[cls] = codec_for(cls)
        return found

    return codec


async def serve_until_signal(service: Service, **given: Any) -> None:
    """Run *service* until SIGTERM or SIGINT, then drain; a second signal ends at once. Arguments as `running`.

    Neither costs an attempt: what is cut off comes back by its lease.
    """
    loop = asyncio.get_running_loop()
    task = asyncio.current_task()
    asked = asyncio.Event()

    def on_signal() -> None:
        if asked.is_set() and task is not None:
            _logger.warning("tidewire.service.stopped_at_once", extra={"service": service.name})
            task.cancel()
        asked.set()

    signals = (signal.SIGTERM, signal.SIGINT)
    for number in signals:
        loop.add_signal_handler(number, on_signal)
    try:
        async with running(service, **given):
            await asked.wait()
    except asyncio.CancelledError:
        if task is None or task.uncancel() > 0:
            raise
    finally:
        for number in signals:
            loop.remove_signal_handler(number)
