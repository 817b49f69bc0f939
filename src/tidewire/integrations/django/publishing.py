"""Publishing in the transaction of ``transaction.atomic()``."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import datetime, timedelta
from functools import cache

from tidewire.config import sync_publisher
from tidewire.integrations.django.told import Told, connection_of, told
from tidewire.model import ZERO
from tidewire.runtime.sync_producer import SyncPublisher

__all__ = ["publish", "publish_all"]


def publish(
    event: object,
    *,
    id: str = "",
    delay: timedelta = ZERO,
    at: datetime | None = None,
    headers: Mapping[str, str] | None = None,
) -> str:
    """Write *event* into the transaction of the surrounding ``transaction.atomic()`` and return its id.

    It leaves if and only if that commits; no ``on_commit`` is needed. See `tidewire.SyncPublisher.publish`.

    Raises:
        ConfigurationError: not in ``atomic``, not an event, or the settings are not as they must be.
    """
    found = told()
    tx = connection_of(found)
    return _publisher(found).publish(event, tx=tx, id=id, delay=delay, at=at, headers=headers)


def publish_all(events: Sequence[object]) -> Sequence[str]:
    """Write *events* in order, all of them in one statement; the rest is as `publish`."""
    found = told()
    return _publisher(found).publish_all(events, tx=connection_of(found))


@cache
def _publisher(found: Told) -> SyncPublisher:
    return sync_publisher(found.source, store=found.store)
