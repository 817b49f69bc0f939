"""Running a service: everything it needs, started in order and stopped in the reverse one.

The order of a stop: take in nothing more → let handlers end → settle → flush the outbox → close the service's
own resources. Cancellation and signals are no failures and spend no attempt.
"""

from __future__ import annotations

import asyncio
import logging
import signal
from collections.abc import AsyncGenerator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from datetime import timedelta

import msgspec

from tidewire.errors import StoreUnavailable, TransportUnavailable
from tidewire.kit.groups import first_error
from tidewire.model import Subscription
from tidewire.protocols import Receiver, Store, Transport
from tidewire.rules.guarantees import Ordering, hold_limit
from tidewire.runtime.consumer import Consumer
from tidewire.runtime.enlisted import enlisted
from tidewire.runtime.limits import Limits
from tidewire.runtime.outgoing import Outgoing
from tidewire.runtime.parts import Parts, with_remembered_codecs
from tidewire.runtime.pipeline import Pipeline
from tidewire.runtime.plan import compile_plan
from tidewire.runtime.probe import open_probe
from tidewire.runtime.producer import Publisher
from tidewire.runtime.recurring import RecurringTask
from tidewire.runtime.relay import Relay
from tidewire.runtime.service import Service
from tidewire.runtime.subscriber import Health, Subscriber
from tidewire.runtime.topology import Topology
from tidewire.runtime.watchdog import Patience

__all__ = ["Options", "Running", "open_publisher", "relay_once", "running", "serve_until_signal"]

_logger = logging.getLogger("tidewire.service")


class Options(msgspec.Struct, frozen=True, kw_only=True):
    """What can be set about a run; the defaults are safe.

    *lease*: how long a silent process keeps its lanes. *grace*: how long a stop lets handlers end. *max_hold*:
    how long a failing key waits in the process. *stuck_after*: when a subscription without progress, for which
    *stuck_lag* events or more wait, is rebuilt.
    *provision*: create missing topics and groups (else they are verified). *lanes*: for topics created by that.
    *relay*: publish the store's outbox from this process; *relay_lease*: how long a silent one keeps others from it.
    """

    lease: timedelta = timedelta(seconds=30)
    grace: timedelta = timedelta(seconds=10)
    max_hold: timedelta = timedelta(minutes=10)
    stuck_after: timedelta = timedelta(seconds=60)
    stuck_lag: int = 1
    provision: bool = True
    lanes: int = 8
    relay: bool = True
    relay_lease: timedelta = timedelta(seconds=10)


class Running:
    """A service that runs. *publisher* may be used by any task of the process while it does."""

    def __init__(
        self, service: Service, publisher: Publisher, subscribers: Sequence[Subscriber], relay: Relay | None
    ) -> None:
        self.service = service
        self.publisher = publisher
        self._subscribers = subscribers
        self._relay = relay
        self.stopped = asyncio.Event()

    def stop(self) -> None:
        """Begin the graceful stop, which leaving the context manager completes."""
        for subscriber in self._subscribers:
            subscriber.stop()
        self.stopped.set()

    def health(self) -> Mapping[str, Health]:
        """Say how each subscription is, by its number in the service; without any, how the relay is."""
        if self._relay is not None and not self._subscribers:
            return {"relay": self._relay.health()}
        return {str(number): subscriber.health() for number, subscriber in enumerate(self._subscribers)}

    @property
    def ready(self) -> bool:
        """Whether every subscription has joined and is making progress, or has nothing to do."""
        return all(subscriber.health().ready for subscriber in self._subscribers)


@asynccontextmanager
async def running(
    service: Service,
    *,
    transport: Transport,
    store: Store | None = None,
    options: Options | None = None,
    parts: Parts | None = None,
) -> AsyncGenerator[Running]:
    """Run *service* while the block lasts; it has joined its group when the block begins.

    Leaving drains: what runs may end within ``options.grace``, is settled and its events are published; what does
    not end in time stays unsettled and comes back, uncounted. The caller opens and closes *transport* and *store*.

    Raises:
        ConfigurationError: a handler or setting that cannot be; names every problem at once. Or the outbox is being
            relayed to another broker.
        TransportRefused, StoreRefused: a person must change something first.
    """
    options = options or Options()
    parts = with_remembered_codecs(parts or Parts())
    member = f"{service.name}-{parts.ids.event_id()}"
    async with AsyncExitStack() as stack:
        house = House(transport, store, options, parts)
        publisher = house.publisher(service.source)
        executor = ThreadPoolExecutor(service.concurrency, thread_name_prefix=f"tidewire-{service.name}")
        stack.callback(executor.shutdown, wait=False, cancel_futures=True)
        plan = compile_plan(
            service,
            codec_for=parts.codec_for,
            capabilities=transport.capabilities,
            store=store,
            executor=executor,
        )
        names = [name for topics in plan.topics.values() for name in topics]
        if names:
            await house.topology.prepare(service.name, names)
        resources = await stack.enter_async_context(service.open_resources())
        outgoing = Outgoing(service.name, publisher, store, plan.domain)
        pipeline = Pipeline(
            group=service.name, plan=plan, outgoing=outgoing, store=store, parts=parts, resources=resources
        )
        pipeline.settle_with = await enlisted(transport, store)
        subscribers = [
            house.subscriber(service, pipeline, ordering=ordering, topics=topics, member=member)
            for ordering, topics in plan.topics.items()
            if topics
        ]
        relay = house.relay(member)
        if relay is not None:
            with suppress(StoreUnavailable, TransportUnavailable):  # it looks again with each lease
                await relay.look_around()
        app = Running(service, publisher, subscribers, relay)
        timers = [
            RecurringTask(recurring, call, outgoing=outgoing, parts=parts, resources=resources, owner=member)
            for recurring, call in plan.recurring
        ]
        async with _live(app, subscribers=subscribers, timers=timers, relay=relay, options=options):
            yield app


@asynccontextmanager
async def open_publisher(
    source: str,
    *,
    transport: Transport,
    store: Store | None = None,
    options: Options | None = None,
    parts: Parts | None = None,
) -> AsyncGenerator[Publisher]:
    """Open a publisher for a process that handles no events (a web application, a script).

    *source* is the CloudEvents source of what it publishes. With a *store* its outbox is relayed while the block
    lasts, and flushed on leaving, unless ``options.relay`` is false.
    """
    async with running(Service(source), transport=transport, store=store, options=options, parts=parts) as app:
        yield app.publisher


async def relay_once(
    store: Store, transport: Transport, *, owner: str, longest: timedelta, provision: bool = False
) -> int:
    """Publish what is due in *store*'s outbox, for at most *longest*, and return how many rows are still pending.

    -1: the broker or the store was not there. Another process that relays keeps its lease; then nothing is done.
    *provision*: create missing topics.

    Raises:
        ConfigurationError: the broker has none of the topics, or is not that of another live relay; nothing was
            changed.
    """
    house = House(transport, store, Options(provision=provision), with_remembered_codecs(Parts()))
    relay = house.relay(owner)
    assert relay is not None
    return await relay.flush(longest)


class House:
    """The adapters and settings of one run, and what is built of them."""

    def __init__(self, transport: Transport, store: Store | None, options: Options, parts: Parts) -> None:
        self._transport = transport
        self._store = store
        self._options = options
        self._parts = parts
        self.topology = Topology(transport, create=options.provision, lanes=options.lanes)

    def publisher(self, source: str) -> Publisher:
        """Return the process's publisher."""
        return Publisher(
            source=source, transport=self._transport, topology=self.topology, store=self._store, parts=self._parts
        )

    def relay(self, owner: str) -> Relay | None:
        """Return the relay of the store's outbox, or None where there is none to run."""
        if self._store is None or not self._options.relay:
            return None
        return Relay(
            store=self._store,
            transport=self._transport,
            topology=self.topology,
            owner=owner,
            lease=min(self._options.lease, self._options.relay_lease),
            parts=self._parts,
        )

    def subscriber(
        self, service: Service, pipeline: Pipeline, *, ordering: Ordering, topics: Sequence[str], member: str
    ) -> Subscriber:
        """Return what keeps one subscription of *service* alive."""
        options = self._options
        subscription = Subscription(
            group=service.name,
            topics=topics,
            member=f"{member}-{ordering}",
            ordering=ordering,
            prefetch=service.prefetch,
            lease=options.lease,
            grace=options.grace,
        )
        limits = Limits(
            concurrency=service.concurrency,
            max_hold=hold_limit(options.max_hold, self._transport.capabilities.settle_window),
            grace=options.grace,
            fencing=self._transport.capabilities.fencing,
            lanes=ordering == "none" or self._transport.capabilities.lanes,
        )

        def make_consumer(receiver: Receiver) -> Consumer:
            return Consumer(
                receiver=receiver,
                subscription=subscription,
                pipeline=pipeline,
                store=self._store,
                limits=limits,
                parts=self._parts,
            )

        return Subscriber(
            transport=self._transport,
            subscription=subscription,
            make_consumer=make_consumer,
            parts=self._parts,
            patience=Patience(after=options.stuck_after, lag=options.stuck_lag),
        )


@asynccontextmanager
async def _live(
    app: Running,
    *,
    subscribers: Sequence[Subscriber],
    timers: Sequence[RecurringTask],
    relay: Relay | None,
    options: Options,
) -> AsyncGenerator[None]:
    """Run the tasks of *app* around the block, and stop them in order after it.

    What the block raises, rises as it is; a task of ours that cannot go on ends the block and rises instead.
    """
    raised: BaseException | None = None
    try:
        async with asyncio.TaskGroup() as tasks:
            consuming = [tasks.create_task(subscriber.run()) for subscriber in subscribers]
            recurring = [tasks.create_task(timer.run()) for timer in timers]
            relaying = None if relay is None else tasks.create_task(relay.run())
            for subscriber in subscribers:
                await subscriber.joined.wait()  # a subscriber that cannot join ends the group, and this wait
            _logger.info("tidewire.service.started", extra={"service": app.service.name})
            try:
                yield
            except Exception as error:
                raised = error
            app.stop()
            loop = asyncio.get_running_loop()
            deadline = loop.time() + options.grace.total_seconds()
            for timer in timers:
                timer.stop()
            if consuming:
                await asyncio.wait(consuming)
            if recurring:
                _, late = await asyncio.wait(recurring, timeout=max(0.0, deadline - loop.time()))
                for task in late:
                    task.cancel()
            if relay is not None and relaying is not None:
                relay.stop()
                _, late = await asyncio.wait([relaying], timeout=max(0.0, deadline - loop.time()))
                if late:  # a broker that does not answer keeps no process from ending; the rows are sent again
                    relaying.cancel()
                else:
                    await relay.flush(timedelta(seconds=max(0.0, deadline - loop.time())))
            _logger.info("tidewire.service.drained", extra={"service": app.service.name})
    except BaseExceptionGroup as group:
        raise first_error(group) from None
    if raised is not None:
        raise raised


async def serve_until_signal(
    service: Service,
    *,
    transport: Transport,
    store: Store | None = None,
    options: Options | None = None,
    parts: Parts | None = None,
    probe: tuple[str, int] | None = None,
) -> None:
    """Run *service* until SIGTERM or SIGINT, then drain; a second signal ends at once.

    Neither costs an attempt: what is cut off comes back by its lease. *probe* is the host and port where
    `tidewire.runtime.probe` answers meanwhile, until the drain begins. Raises as `running`.
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
        async with running(service, transport=transport, store=store, options=options, parts=parts) as app:
            if probe is None:
                await asked.wait()
            else:
                async with open_probe(app.health, host=probe[0], port=probe[1]):
                    await asked.wait()
    except asyncio.CancelledError:
        if task is None or task.uncancel() > 0:
            raise
    finally:
        for number in signals:
            loop.remove_signal_handler(number)
