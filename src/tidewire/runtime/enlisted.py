"""Whether a broker's positions can be part of the store's transactions."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Protocol, TypeAlias, runtime_checkable

from tidewire.model import Delivery
from tidewire.protocols import Enlisting, Store, Transport, Unit

__all__ = ["SettleWith", "enlisted"]

SettleWith: TypeAlias = Callable[[Unit, Sequence[Delivery]], None]


@runtime_checkable
class _Enlisting(Enlisting, Protocol):
    """What `isinstance` can see of an `Enlisting`."""


async def enlisted(transport: Transport, store: Store | None) -> SettleWith | None:
    """Return what lets a unit settle in its own transaction, or None: broker and store are not one database.

    Raises:
        TransportUnavailable, StoreUnavailable: they cannot be asked now.
    """
    broker: object = transport
    if store is None or not isinstance(broker, _Enlisting) or not await broker.enlist(store):
        return None
    return broker.settle_with
