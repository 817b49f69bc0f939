"""One call of `publish` as a job of the writer: those that wait beside each other are stored by the same statements."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import chain

from tidewire.kit.sqllog.home import Connection
from tidewire.kit.sqllog.log import Store
from tidewire.kit.sqllog.shared import Shared
from tidewire.model import Message, Receipt

__all__ = ["Publish"]


class Publish:
    """Stores *messages*, which have been validated, and returns their receipts."""

    __slots__ = ("_messages", "_shared")

    def __init__(self, shared: Shared, messages: Sequence[Message]) -> None:
        self._shared = shared
        self._messages = messages

    def doubt(self) -> list[Receipt]:
        """Return what is said where nobody knows what became of them."""
        return [Receipt(message.id, "unknown", detail="the connection was lost") for message in self._messages]

    def __call__(self, connection: Connection) -> list[Receipt]:
        return self.together(connection, [self])[0]

    @classmethod
    def together(cls, connection: Connection, jobs: Sequence[Publish]) -> list[list[Receipt]]:
        """Store what *jobs* have, in their order, and return the receipts of each."""
        shared = jobs[0]._shared
        store = Store(connection, shared.names, shared.clock.now_us())
        receipts = iter(store.all([*chain.from_iterable(job._messages for job in jobs)]))
        shared.writer.topics |= store.topics
        shared.writer.subs |= store.subs
        return [[next(receipts) for _ in job._messages] for job in jobs]
