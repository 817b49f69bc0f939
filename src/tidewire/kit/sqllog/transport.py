"""A broker on a log: provisioning, publishing, joining, and looking in, over any home."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Callable, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from typing import TypeVar

from tidewire.errors import TransportClosed
from tidewire.kit.specs import check_none_unknown, check_specs
from tidewire.kit.sqllog.finder import LogFinder
from tidewire.kit.sqllog.home import Home
from tidewire.kit.sqllog.inspector import LogInspector
from tidewire.kit.sqllog.ledger import LogLedger
from tidewire.kit.sqllog.log import checked
from tidewire.kit.sqllog.membership import joined
from tidewire.kit.sqllog.names import TopicRow
from tidewire.kit.sqllog.provisioning import provision_all
from tidewire.kit.sqllog.publishing import Publish
from tidewire.kit.sqllog.retention import sweep
from tidewire.kit.sqllog.shared import Shared
from tidewire.kit.threads import to_the_end
from tidewire.model import Capabilities, Change, GroupSpec, Message, Receipt, Subscription, TopicSpec
from tidewire.protocols import Receiver
from tidewire.rules.names import check_name

__all__ = ["LogTransport", "opened"]

_SWEEP_EVERY = 0.5
T = TypeVar("T", bound="LogTransport")


class LogTransport(LogInspector, LogFinder, LogLedger):
    """See `tidewire.protocols.Transport`, `Inspector`, `Finder` and `Ledger`. Made by `opened`."""

    def __init__(self, shared: Shared, capabilities: Capabilities) -> None:
        super().__init__(shared)
        self._capabilities = capabilities
        self.closed = False

    @property
    def capabilities(self) -> Capabilities:
        """Order, fencing, atomic settles, replay, any delay; how durable ``stored`` is, the database decides."""
        return self._capabilities

    async def provision(
        self, topics: Sequence[TopicSpec], groups: Sequence[GroupSpec], *, dry_run: bool = False
    ) -> Sequence[Change]:
        """Create what is missing, in one transaction, and say what is there."""
        self._check_open()
        check_specs(topics, groups)
        return await provision_all(self._shared, topics, groups, dry_run=dry_run)

    async def publish(self, messages: Sequence[Message]) -> Sequence[Receipt]:
        """Store *messages* in one transaction, together with whatever else waits for the disk."""
        self._check_open()
        if not messages:
            return ()
        verdicts = await checked(messages, self._shared.names)
        good = [message for message, verdict in zip(messages, verdicts, strict=True) if verdict is None]
        if not good:
            return [verdict for verdict in verdicts if verdict is not None]
        job = Publish(self._shared, good)
        receipts = await self._shared.writer.submit(job, doubt=job.doubt)
        if len(good) == len(messages):
            return receipts
        rest = iter(receipts)
        return [verdict if verdict is not None else next(rest) for verdict in verdicts]

    def subscribe(self, subscription: Subscription) -> AbstractAsyncContextManager[Receiver]:
        """Join the group; a group that is not provisioned on a topic is created there."""
        return self._subscribed(subscription)

    @asynccontextmanager
    async def _subscribed(self, subscription: Subscription) -> AsyncGenerator[Receiver]:
        self._check_open()
        check_name(subscription.group, "group")
        names = self._shared.names
        unknown = [name for name in subscription.topics if await names.find_topic(name) is None]
        check_none_unknown(subscription.group, unknown)
        spec = GroupSpec(subscription.group, subscription.topics, subscription.start)
        await provision_all(self._shared, (), [spec], dry_run=False)
        subs: list[tuple[int, TopicRow]] = []
        for name in subscription.topics:
            topic, sub = await names.find_topic(name), await names.find_sub(subscription.group, name)
            assert topic is not None
            assert sub is not None
            subs.append((sub, topic))
        async with joined(self._shared, subscription, subs) as receiver:
            yield receiver

    async def identity(self) -> str:
        """See `tidewire.kit.looks.Identified`."""
        self._check_open()
        return await self._shared.home.identity()

    def _check_open(self) -> None:
        if self.closed:
            raise TransportClosed(f"{self._shared.home.what} is closed")
        self._shared.home.check_usable()


@asynccontextmanager
async def opened(home: Home, make: Callable[[Shared], T]) -> AsyncGenerator[T]:
    """Serve the log at *home* by what *make* makes while the block lasts. On leaving what waits is written; *home* is
    not used any more."""
    shared = Shared(home)
    transport = make(shared)
    shared.writer.every(shared, _SWEEP_EVERY, lambda connection: sweep(connection, shared.clock.now_us()))
    try:
        yield transport
    finally:
        transport.closed = True
        home.leave()
        await to_the_end(shared.writer.close)
