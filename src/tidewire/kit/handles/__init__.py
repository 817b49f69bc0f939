"""Callers' transactions: the handles of other libraries, as our own statements see them.

A handle is known by the module and the name of its class, so that no library is imported to know it.
"""

from __future__ import annotations

from tidewire.kit.handles.kinds import async_handle, describe, sync_handle, transaction_look
from tidewire.kit.handles.seam import AsyncHandle, AsyncSql, SyncHandle, SyncSql
from tidewire.kit.handles.unit import CallersUnit

__all__ = [
    "AsyncHandle",
    "AsyncSql",
    "CallersUnit",
    "SyncHandle",
    "SyncSql",
    "async_handle",
    "describe",
    "sync_handle",
    "transaction_look",
]
