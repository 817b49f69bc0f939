"""A broker in the memory of a client process, for tests of the client itself."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager

from tidewire.model import GroupSpec, TopicSpec
from tidewire.transports.memory import MemoryTransport, open_memory_transport


@asynccontextmanager
async def open_lonely(topic: str, group: str) -> AsyncGenerator[MemoryTransport]:
    """Open a transport that has *topic* and *group*."""
    async with open_memory_transport() as transport:
        await transport.provision([TopicSpec(topic, 2)], [GroupSpec(group, [topic])])
        yield transport
