"""The embedded broker: a durable log in one SQLite file, shared by the processes of one machine."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from datetime import timedelta
from functools import partial
from pathlib import Path
from typing import TypeAlias

from tidewire.chance import Ids, UUID7Ids
from tidewire.clock import SystemClock
from tidewire.kit.sqlite_file import SqliteFile, open_sqlite_file
from tidewire.kit.sqllog.log import MESSAGE_BYTES_MAX
from tidewire.kit.sqllog.transport import LogTransport, opened
from tidewire.kit.threads import to_the_end
from tidewire.model import Capabilities
from tidewire.protocols import Clock
from tidewire.transports.sqlite.home import SqliteHome
from tidewire.transports.sqlite.schema import BROKER

__all__ = ["CAPABILITIES", "SqliteTransport", "open_sqlite_transport"]

SqliteTransport: TypeAlias = LogTransport
"""A log whose home is a file."""

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
    home = SqliteHome(file, clock or SystemClock(), (ids or UUID7Ids()).event_id())
    try:
        async with opened(home, lambda shared: LogTransport(shared, CAPABILITIES)) as transport:
            yield transport
    finally:
        home.deaf()
        await to_the_end(home.close)
