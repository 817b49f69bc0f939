"""The transport: the blocking work in a thread of its own, and what asyncio, closing and forking ask for."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncGenerator, Callable, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from datetime import datetime
from functools import partial
from pathlib import Path
from typing import TypeVar
from urllib.parse import unquote, urlsplit

from directory_broker import inspector
from directory_broker.broker import MESSAGE_BYTES_MAX, Broker
from directory_broker.files import NAME, Directory
from directory_broker.member import Member
from directory_broker.receiver import DirectoryReceiver
from directory_broker.worker import Worker
from tidewire.errors import ConfigurationError, TransportRefused, TransportUnavailable
from tidewire.model import (
    Address,
    Browsed,
    Capabilities,
    Change,
    GroupInfo,
    GroupSpec,
    Message,
    Receipt,
    Stats,
    Subscription,
    TopicInfo,
    TopicSpec,
)
from tidewire.protocols import Receiver

__all__ = ["DirectoryTransport", "open_directory_transport", "open_url"]

CAPABILITIES = Capabilities(
    order=True,
    fencing=True,
    atomic=False,  # a move is two files: messages first, then the cursor
    dedup=None,
    native_attempts=True,
    replay=True,
    delay_max=None,
    lease=True,
    batch_max=None,
    durability="fsync",
    message_bytes_max=MESSAGE_BYTES_MAX,
    settle_window=None,
)
Result = TypeVar("Result")


class DirectoryTransport:
    """A `tidewire.protocols.Transport` and `Inspector` over a directory. Made by `open_directory_transport`."""

    def __init__(self, broker: Broker) -> None:
        self._broker = broker
        self._worker = Worker(str(broker.directory.root))
        self._heart = Worker(str(broker.directory.root))  # signs of life wait for nobody's turn

    @property
    def capabilities(self) -> Capabilities:
        """Order, fencing, replay and leases; a settle is no transaction, and nothing is recognised by its id."""
        return CAPABILITIES

    async def provision(
        self, topics: Sequence[TopicSpec], groups: Sequence[GroupSpec], *, dry_run: bool = False
    ) -> Sequence[Change]:
        """Create what is missing; a name that cannot be one is a conflict."""
        return await self._worker.run(self._in_turn, partial(self._broker.provision, topics, groups, dry_run=dry_run))

    async def publish(self, messages: Sequence[Message]) -> Sequence[Receipt]:
        """Store each message in a file of its own, synced."""
        return await self._worker.run(self._in_turn, partial(self._broker.publish, messages))

    def subscribe(self, subscription: Subscription) -> AbstractAsyncContextManager[Receiver]:
        """Join the group; a group that is not provisioned on a topic is made there."""
        return self._subscribed(subscription)

    @asynccontextmanager
    async def _subscribed(self, subscription: Subscription) -> AsyncGenerator[Receiver]:
        self._worker.check()
        missing = [name for name in subscription.topics if self._broker.spec(name) is None]
        if missing or not NAME.match(subscription.group) or subscription.prefetch < 1:
            what = f"there is no topic {', '.join(missing)}" if missing else "its name or its prefetch cannot be used"
            raise ConfigurationError(f"{subscription.group}: {what}", hint="provision it first")
        receiver = DirectoryReceiver(self._worker, self._heart, Member(self._broker, subscription))
        await receiver.join()
        try:
            async with asyncio.TaskGroup() as tasks:
                life = [tasks.create_task(receiver.beat()), tasks.create_task(receiver.balance())]
                try:
                    yield receiver
                    await receiver.drain()
                finally:
                    for task in life:
                        task.cancel()
        except ExceptionGroup as group:
            raise group.exceptions[0] from None
        finally:
            await asyncio.shield(receiver.leave())

    async def topics(self) -> Sequence[TopicInfo]:
        """Return every topic, by name."""
        return await self._worker.run(inspector.topics, self._broker)

    async def groups(self, topic: str | None = None) -> Sequence[GroupInfo]:
        """Return every group, by topic and name."""
        return await self._worker.run(inspector.groups, self._broker, topic)

    async def stats(self, topic: str, group: str) -> Stats:
        """Return exact counts."""
        return await self._worker.run(inspector.stats, self._broker, topic, group)

    async def browse(self, address: Address, *, after: int | str | None = None, limit: int = 100) -> Sequence[Browsed]:
        """Return messages behind a position; what waits for its time is shown once it has arrived."""
        return await self._worker.run(inspector.browse, self._broker, address, after, limit)

    async def seek(self, topic: str, group: str, *, to: int | str | datetime) -> None:
        """Move a group without members; its inbox channel stays."""
        await self._worker.run(inspector.seek, self._broker, topic, group, to)

    async def remove(self, channel: Address, positions: Sequence[int | str]) -> int:
        """Remove dead letters and return how many there were."""
        return await self._worker.run(inspector.remove, self._broker, channel, positions)

    async def close(self) -> None:
        """Wait for what is being done and close the lock file. `open_directory_transport` calls it."""
        await self._worker.close()
        await self._heart.close()
        self._broker.directory.close()

    def _in_turn(self, act: Callable[[], Result]) -> Result:
        with self._broker.directory.turn():
            return act()


@asynccontextmanager
async def open_directory_transport(path: Path | str, *, create: bool = True) -> AsyncGenerator[DirectoryTransport]:
    """Open the broker in the directory at *path*, made where it is missing unless *create* is false.

    Raises:
        TransportRefused: there is none, or the directory holds something else.
        TransportUnavailable: it cannot be written.
    """
    directory = await asyncio.to_thread(_open, Path(path), create)
    transport = DirectoryTransport(Broker(directory))
    try:
        yield transport
    finally:
        await asyncio.shield(transport.close())


def _open(root: Path, create: bool) -> Directory:
    try:
        if not create and not (root / "topics").is_dir():
            raise TransportRefused(f"there is no broker in {root}", hint="start a service with it first")
        if root.is_dir() and os.listdir(root) and not (root / "lock").exists():
            raise TransportRefused(f"{root} holds something else", hint="name a directory of the broker's own")
        root.mkdir(mode=0o700, parents=True, exist_ok=True)
        directory = Directory(root)
        directory.make(root / "topics")
    except OSError as error:
        raise TransportUnavailable(f"{root}: {error.strerror}") from error
    return directory


def open_url(url: str, *, create: bool = True) -> AbstractAsyncContextManager[DirectoryTransport]:
    """Open ``directory:///path``, relative to the working directory, or ``directory:////path``, from the root.

    Raises:
        ConfigurationError: the URL names no directory.
    """
    path = unquote(urlsplit(url).path).removeprefix("/")
    if not path:
        raise ConfigurationError(f"{url!r} names no directory", hint="directory:///data/broker")
    return open_directory_transport(path, create=create)
