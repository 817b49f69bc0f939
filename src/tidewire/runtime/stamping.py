"""From events to messages, for everything that publishes in a process: one stamp per event type, made once."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime, timedelta

from tidewire.clock import microseconds
from tidewire.errors import ConfigurationError
from tidewire.model import ZERO, Message
from tidewire.rules.cloudevents import check_event_id
from tidewire.rules.events import definition_of
from tidewire.rules.outgoing import NO_CAUSE, Cause, Stamp
from tidewire.runtime.parts import Parts

__all__ = ["Stamping"]


class Stamping:
    """Makes the messages of one *source*."""

    def __init__(self, source: str, parts: Parts) -> None:
        self._source = source
        self._codec_for = parts.codec_for
        self._ids = parts.ids
        self._clock = parts.clock
        self._stamps: dict[type, Stamp] = {}

    def message(
        self,
        event: object,
        *,
        event_id: str = "",
        cause: Cause = NO_CAUSE,
        not_before: int | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> Message:
        """Return the message that would carry *event*. Makes an id where none is given.

        Raises:
            ConfigurationError: not an event, or a value that cannot travel.
        """
        stamp = self._stamps.get(type(event)) or self._stamp(type(event))
        if event_id:
            check_event_id(event_id)
        return stamp.message(
            event,
            event_id=event_id or self._ids.event_id(),
            now_us=self._clock.now_us(),
            cause=cause,
            not_before=not_before,
            headers=headers,
        )

    def not_before(self, delay: timedelta, at: datetime | None) -> int | None:
        """Return when an event may leave, in microseconds since 1970, or None: at once.

        Raises:
            ConfigurationError: a negative *delay*, an *at* without a time zone, or both.
        """
        if at is not None and delay != ZERO:
            raise ConfigurationError("publish takes delay=… or at=…, not both")
        if at is not None:
            try:
                return microseconds(at)
            except ValueError as error:
                raise ConfigurationError(f"publish(at=…): {error}") from error
        if delay < ZERO:
            raise ConfigurationError(f"publish(delay=…) cannot be negative: {delay}")
        return None if delay == ZERO else self._clock.now_us() + delay // timedelta(microseconds=1)

    def _stamp(self, cls: type) -> Stamp:
        definition = definition_of(cls)
        if definition.kind == "domain":
            raise ConfigurationError(
                f"{cls.__qualname__} is a domain event: it stays inside its service",
                hint="publish it with context.publish in a handler, or declare it with @event to send it out",
            )
        stamp = self._stamps[cls] = Stamp(definition, self._codec_for(cls), self._source)
        return stamp
