"""The embedded broker: a durable log in one SQLite file, shared by the processes of one machine."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from datetime import timedelta
from functools import partial
from pathlib import Path

from tidewire.chance import Ids, UUID7Ids
from tidewire.clock import SystemClock
from tidewire.errors import ConfigurationError, TransportClosed
from tidewire.kit.sqlite_file import SqliteFile, open_sqlite_file
from tidewire.kit.threads import to_the_end
from tidewire.model import Capabilities, Change, GroupSpec, Message, Receipt, Subscription, TopicSpec
from tidewire.protocols import Clock, Receiver
from tidewire.rules.names import check_name
from tidewire.transports.sqlite.finder import SqliteFinder
from tidewire.transports.sqlite.inspector import SqliteInspector
from tidewire.transports.sqlite.ledger import SqliteLedger
from tidewire.transports.sqlite.log import MESSAGE_BYTES_MAX, TopicRow, validated
from tidewire.transports.sqlite.membership import joined
from tidewire.transports.sqlite.provisioning import provision_all
from tidewire.transports.sqlite.publishing import Publish
from tidewire.transports.sqlite.retention import sweep
from tidewire.transports.sqlite.schema import BROKER
from tidewire.transports.sqlite.shared import Shared

__all__ = ["CAPABILITIES", "SqliteTransport", "open_sqlite_transport"]

_SWEEP_EVERY = 0.5
CAPABILITIES = Capabilities(
    order=True,
    fencing=True,
    atomic=True,
    dedup=timedelta(days=7),
    native_attempts=True,
    replay=True,
    delay_max=None,
    lease=True,
    batch_max=None,
    durability="fsync",
    message_bytes_max=MESSAGE_BYTES_MAX,
    settle_window=None,
)


class SqliteTransport(SqliteInspector, SqliteFinder, SqliteLedger):
    """See `tidewire.protocols.Transport`, `Inspector`, `Finder` and `Ledger`. Made by `open_sqlite_transport`."""

    def __init__(self, shared: Shared) -> None:
        super().__init__(shared)
        self.closed = False

    @property
    def capabilities(self) -> Capabilities:
        """Order, fencing, atomic settles, replay, any delay; ``stored`` means synced to disk."""
        return CAPABILITIES

    async def provision(
        self, topics: Sequence[TopicSpec], groups: Sequence[GroupSpec], *, dry_run: bool = False
    ) -> Sequence[Change]:
        """Create what is missing, in one transaction, and say what is there."""
        self._check_open()
        for topic in topics:
            check_name(topic.name, "topic")
        for group in groups:
            check_name(group.name, "group")
        return await provision_all(self._shared, topics, groups, dry_run=dry_run)

    async def publish(self, messages: Sequence[Message]) -> Sequence[Receipt]:
        """Store *messages* in one transaction, together with whatever else waits for the disk."""
        self._check_open()
        if not messages:
            return ()
        verdicts = validated(messages, self._shared.names)
        good = [message for message, verdict in zip(messages, verdicts, strict=True) if verdict is None]
        if not good:
            return [verdict for verdict in verdicts if verdict is not None]
        receipts = await self._shared.writer.submit(Publish(self._shared, good))
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
        unknown = [name for name in subscription.topics if self._shared.names.topic(name) is None]
        if unknown:
            raise ConfigurationError(
                f"group {subscription.group!r}: there is no topic {', '.join(map(repr, unknown))}",
                hint="provision it, or start the service with --provision",
            )
        spec = GroupSpec(subscription.group, subscription.topics, subscription.start)
        await provision_all(self._shared, (), [spec], dry_run=False)
        subs: list[tuple[int, TopicRow]] = []
        for name in subscription.topics:
            topic, sub = self._shared.names.topic(name), self._shared.names.sub(subscription.group, name)
            assert topic is not None
            assert sub is not None
            subs.append((sub, topic))
        async with joined(self._shared, subscription, subs) as receiver:
            yield receiver

    def _check_open(self) -> None:
        if self.closed:
            raise TransportClosed(f"{self._shared.file.what} is closed")
        self._shared.file.check_usable()


@asynccontextmanager
async def open_sqlite_transport(
    path: Path | str, *, clock: Clock | None = None, ids: Ids | None = None
) -> AsyncGenerator[SqliteTransport]:
    """Open the embedded broker at *path*, creating the file where it is missing, and close it on leaving.

    Raises:
        TransportRefused: the file belongs to another program (a store's included), is damaged, read-only, of a newer
            tidewire, or on a network file system.
        TransportUnavailable: it is locked, or the disk is full.
    """
    file = await to_the_end(partial(open_sqlite_file, path, BROKER), SqliteFile.close)
    shared = Shared(file, clock or SystemClock(), (ids or UUID7Ids()).event_id())
    transport = SqliteTransport(shared)
    shared.writer.every(shared, _SWEEP_EVERY, lambda connection: sweep(connection, shared.clock.now_us()))
    try:
        yield transport
    finally:
        transport.closed = True
        shared.waker.close()
        await to_the_end(shared.close)
