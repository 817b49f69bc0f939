"""A caller's transaction, where a store expects a unit."""

from __future__ import annotations

from collections.abc import Awaitable
from typing import Any

from tidewire.errors import TransactionControl
from tidewire.kit.handles.seam import AsyncHandle

__all__ = ["CallersUnit"]


class CallersUnit:
    """See `tidewire.protocols.Unit`. Its caller has begun it and ends it: here it is only written into."""

    def __init__(self, tx: object, handle: AsyncHandle) -> None:
        self._tx = tx
        self.handle = handle

    @property
    def tx(self) -> Any:
        """The caller's handle."""
        return self._tx

    @property
    def sync_tx(self) -> Any:
        """There is none: a handle that is not awaited is for a `SyncPublisher`."""
        raise TransactionControl("this transaction is awaited")

    async def begin(self) -> None:
        """Nothing: the caller has."""

    async def seal(self) -> Awaitable[None]:
        """Refuse: the caller commits."""
        raise TransactionControl("this transaction is its caller's to commit")

    async def rollback(self) -> None:
        """Refuse: the caller rolls back."""
        raise TransactionControl("this transaction is its caller's to roll back")
