"""Looking at a broker's file from outside, without opening it for use."""

from __future__ import annotations

import asyncio
import sqlite3
from collections.abc import Sequence
from functools import partial
from pathlib import Path

from tidewire.kit.sqlite_file import look_into
from tidewire.kit.sqllog.counting import describe_topics, specs_of
from tidewire.kit.sqllog.provisioning import differences
from tidewire.model import Capabilities, Change, GroupSpec, TopicInfo, TopicSpec
from tidewire.transports.sqlite.schema import BROKER
from tidewire.transports.sqlite.transport import CAPABILITIES

__all__ = ["SqliteBrokerLook"]


class SqliteBrokerLook:
    """See `tidewire.protocols.BrokerLook`. Each call opens the file at *path* anew and closes it."""

    def __init__(self, path: Path | str) -> None:
        self._path = path

    async def capabilities(self) -> Capabilities:
        """Those of every embedded broker."""
        return CAPABILITIES

    async def compare(self, topics: Sequence[TopicSpec], groups: Sequence[GroupSpec]) -> Sequence[Change]:
        """Compare with what is in the file."""

        def read(connection: sqlite3.Connection) -> Sequence[Change]:
            return differences(connection, topics, groups)

        return await asyncio.to_thread(partial(look_into, self._path, BROKER, read=read))

    async def topics(self) -> Sequence[TopicInfo]:
        """Read every topic from the file."""
        return await asyncio.to_thread(partial(look_into, self._path, BROKER, read=describe_topics))

    async def specs(self, names: Sequence[str]) -> Sequence[TopicSpec]:
        """Read the rows of these topics."""

        def read(connection: sqlite3.Connection) -> Sequence[TopicSpec]:
            return specs_of(connection, names)

        return await asyncio.to_thread(partial(look_into, self._path, BROKER, read=read))
