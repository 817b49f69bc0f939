"""Publishing from synchronous code: into the caller's own transaction, and nowhere else."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import datetime, timedelta
from typing import Any

from tidewire.model import ZERO
from tidewire.protocols import SyncOutbox
from tidewire.runtime.parts import Parts, with_remembered_codecs
from tidewire.runtime.stamping import Stamping

__all__ = ["SyncPublisher"]


class SyncPublisher:
    """Writes events into the outbox in the caller's transaction. Made by `tidewire.config.sync_publisher`.

    It needs no event loop, no broker and no connection of its own, holds nothing open, and may be a module's global
    and shared by threads and forks. What it has written is published by whoever relays the store's outbox.
    """

    def __init__(self, source: str, outbox: SyncOutbox, *, parts: Parts | None = None) -> None:
        self._outbox = outbox
        self._stamping = Stamping(source, with_remembered_codecs(parts or Parts()))

    def publish(
        self,
        event: object,
        *,
        tx: Any,
        id: str = "",
        delay: timedelta = ZERO,
        at: datetime | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> str:
        """Write one event into *tx* and return its id: it leaves if and only if *tx* commits.

        *tx* is the caller's own: a `sqlite3.Connection`, a psycopg ``Connection``, SQLAlchemy's ``Session`` or
        ``Connection``, or Django's ``connection`` inside ``transaction.atomic()``. The rest is as
        `tidewire.Publisher.publish`. What the database itself refuses is raised as its library raises it.

        Raises:
            ConfigurationError: not an event, a value that cannot travel, or a *tx* that is not in a transaction, is
                none of these, or is of a database that is not this store's. The transaction is as it was.
        """
        not_before = self._stamping.not_before(delay, at)
        message = self._stamping.message(event, event_id=id, not_before=not_before, headers=headers)
        self._outbox.put(tx, [message])
        return message.id

    def publish_all(self, events: Sequence[object], *, tx: Any) -> Sequence[str]:
        """Write *events* in order, all of them in one statement, and return their ids; the rest is as `publish`."""
        messages = [self._stamping.message(event) for event in events]
        if messages:
            self._outbox.put(tx, messages)
        return [message.id for message in messages]
