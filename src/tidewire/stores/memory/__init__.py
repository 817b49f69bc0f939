"""The store in memory: the same semantics as the others, without a disk. For tests and for virtual time."""

from __future__ import annotations

from tidewire.stores.memory.store import open_memory_store

__all__ = ["open_memory_store"]
