"""Transport ``memory://``: the reference. Everything a broker should promise, except that it outlives the process."""

from __future__ import annotations

from tidewire.transports.memory.broker import MemoryBroker
from tidewire.transports.memory.transport import MemoryReceiver, MemoryTransport, open_memory_transport

__all__ = ["MemoryBroker", "MemoryReceiver", "MemoryTransport", "open_memory_transport"]
