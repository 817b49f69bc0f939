"""What handlers publish: domain events run at once, others go with the unit (or the move) of their cause."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import datetime, timedelta
from typing import Any, cast

from tidewire.errors import ConfigurationError
from tidewire.model import ZERO
from tidewire.protocols import Store
from tidewire.rules.events import definition_of
from tidewire.rules.outgoing import cause_in, derived_id
from tidewire.runtime.context import Context
from tidewire.runtime.plan import Bound
from tidewire.runtime.producer import Publisher

__all__ = ["Outgoing"]


class Outgoing:
    """Publishing from the handlers of one *group*; *domain* are its handlers of domain events."""

    def __init__(
        self, group: str, publisher: Publisher, store: Store | None, domain: Mapping[type, Sequence[Bound]]
    ) -> None:
        self.group = group
        self._publisher = publisher
        self.store = store
        self._domain = domain

    async def publish(
        self, context: Context[Any], event: object, delay: timedelta = ZERO, at: datetime | None = None
    ) -> str:
        """Publish *event* as caused by the message of *context* and return its id; see `Context.publish`."""
        if definition_of(type(event)).kind == "domain":
            await self._run_handlers(context, event)
            return ""
        message = self._publisher.message(
            event,
            event_id="" if context.unit is not None else self._derived_id(context),
            cause=cause_in(context.message.headers, context.message.id),
            not_before=self._publisher.not_before(delay, at),
        )
        if context.unit is None or self.store is None:
            await self._publisher.ensure_topics([message])
            context.send_along(message)
        else:
            await self.store.outbox.put(context.unit, [message])
        return message.id

    async def publish_returned(self, context: Context[Any], returned: Any, name: str) -> None:
        """Publish what the handler *name* returned: an event or several.

        Raises:
            ConfigurationError: what it returned cannot be published; names the handler.
        """
        several = isinstance(returned, (list, tuple))
        events = cast("Sequence[Any]", returned) if several else (returned,)
        for event in events:
            try:
                await self.publish(context, event)
            except ConfigurationError as error:
                raise ConfigurationError(
                    f"{self.group}.{name} returned what cannot be published: {error.message}", hint=error.hint
                ) from error

    def _derived_id(self, context: Context[Any]) -> str:
        """Without a store a handler may run twice for one event: what it publishes then has the same ids."""
        if context.several:
            raise ConfigurationError(
                f"{self.group}: a batch handler publishes only in a service with a store",
                hint="its batches differ from run to run, so a repeat could not be recognised",
            )
        return derived_id(context.message.source, context.message.id, self.group, len(context.outgoing))

    async def _run_handlers(self, context: Context[Any], event: object) -> None:
        """Run a domain event's handlers here and now, inside the unit of *context*."""
        for bound in self._domain.get(type(event), ()):
            returned = await bound.call(event, context)
            if returned is not None:
                await self.publish_returned(context, returned, bound.name)
