"""A service: a plain value, filled at import time. Nothing connects before it is run."""

from __future__ import annotations

import inspect
from collections.abc import AsyncGenerator, Awaitable, Callable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from datetime import timedelta
from typing import Any, TypeAlias, TypeVar

import msgspec

from tidewire.errors import ConfigurationError
from tidewire.model import ZERO
from tidewire.rules.events import EventType, definition_of
from tidewire.rules.guarantees import OnDeadLetter, Ordering
from tidewire.rules.names import check_name
from tidewire.rules.plain import Plain, PlainTopic, plain_topic
from tidewire.rules.recurrence import Missed, Recurrence
from tidewire.rules.retry import Retry
from tidewire.rules.upcasts import Upcast
from tidewire.runtime.context import Context

__all__ = ["Handle", "Handler", "Middleware", "Service"]

Returned: TypeAlias = Any
Handle: TypeAlias = Callable[[Any, Context[Any]], Awaitable[Returned]]
Middleware: TypeAlias = Callable[[Handle], Handle]
Resources: TypeAlias = Mapping[str, Any]
Lifespan: TypeAlias = Callable[["Service"], AsyncGenerator[Resources, None]]

F = TypeVar("F", bound=Callable[..., Any])


class Handler(msgspec.Struct, frozen=True, kw_only=True):
    """One registered function, its shape resolved once: *takes_context*, *blocking* (``def``: runs in a thread)."""

    name: str
    event: EventType
    function: Callable[..., Any]
    takes_context: bool
    blocking: bool
    retry: Retry
    timeout: timedelta
    ordering: Ordering | None
    on_dead_letter: OnDeadLetter | None
    repeatable: bool
    middleware: Sequence[Middleware]
    batch: int = 0
    batch_wait: timedelta = ZERO


class Recurring(msgspec.Struct, frozen=True, kw_only=True):
    """One registered function that is called when *rule* is due, its shape resolved once."""

    name: str
    rule: Recurrence
    function: Callable[..., Any]
    takes_context: bool
    blocking: bool
    missed: Missed
    timeout: timedelta
    retry: Retry


class Service:
    """A named set of handlers; as a group on the broker it gets its own copy of every event it asks for.

    *source* is the CloudEvents source of what it publishes (default: the name). *concurrency* bounds the
    handlers that run at a time in one process, *prefetch* the events it holds unsettled. *middleware* wraps
    every handler, the first one outermost.

    Raises:
        ConfigurationError: a name that cannot be a group, or bounds below 1.
    """

    def __init__(
        self,
        name: str,
        *,
        source: str = "",
        concurrency: int = 64,
        prefetch: int = 256,
        middleware: Sequence[Middleware] = (),
    ) -> None:
        check_name(name, "service")
        if concurrency < 1 or prefetch < 1:
            raise ConfigurationError(f"{name}: concurrency and prefetch must be at least 1")
        self.name = name
        self.source = source or name
        self.concurrency = concurrency
        self.prefetch = prefetch
        self.middleware = tuple(middleware)
        self.handlers: list[Handler] = []
        self.recurring: list[Recurring] = []
        self.upcasts: list[Upcast] = []
        self.plains: dict[str, PlainTopic] = {}
        self.lifespan_name = ""
        self._lifespan: Callable[[Service], AbstractAsyncContextManager[Resources]] | None = None

    def __repr__(self) -> str:
        return f"Service({self.name!r}, handlers={[handler.name for handler in self.handlers]})"

    def on(
        self,
        event: type,
        *,
        name: str = "",
        retry: Retry | None = None,
        timeout: timedelta = timedelta(seconds=60),
        ordering: Ordering | None = None,
        on_dead_letter: OnDeadLetter | None = None,
        repeatable: bool = False,
        middleware: Sequence[Middleware] = (),
        batch: int = 0,
        batch_wait: timedelta = ZERO,
    ) -> Callable[[F], F]:
        """Register a handler for *event*: ``(event)`` or ``(event, context)``, ``async def`` or ``def``.

        It may return an event, a list of events, or None. *name* (default: the function's) is part of the inbox
        mark: keep it when you rename the function. *ordering* defaults to ``key`` where the event declares one;
        *on_dead_letter* to ``hold_key`` for ordered handlers of a service with a store, else ``continue``.
        *timeout* makes a longer run a failure. *repeatable* says that a repeat does no harm, which several
        handlers of one event need in a service without a store. A domain event's handlers run inside the unit
        that published it; delivery options do not apply to them.

        With *batch* the handler takes a list of up to that many events, which have waited at most *batch_wait*
        for one another, in one unit; no two of them have the same key, and all come from one lane. If it fails,
        each event is handled again alone, in a list of one, and only that is counted.

        Raises:
            ConfigurationError: not an event, a function of another shape, or a name that is taken.
        """
        definition = definition_of(event)

        def register(function: F) -> F:
            handler = Handler(
                name=name or getattr(function, "__name__", ""),
                event=definition,
                function=function,
                takes_context=_takes_context(function, self.name),
                blocking=not inspect.iscoroutinefunction(function),
                retry=retry or Retry(),
                timeout=timeout,
                ordering=ordering,
                on_dead_letter=on_dead_letter,
                repeatable=repeatable,
                middleware=tuple(middleware),
                batch=batch,
                batch_wait=batch_wait,
            )
            self._check(handler)
            self._check_batch(handler)
            self.handlers.append(handler)
            return function

        return register

    def recur(
        self,
        rule: Recurrence,
        *,
        name: str = "",
        missed: Missed = "latest",
        timeout: timedelta = timedelta(seconds=60),
        retry: Retry | None = None,
    ) -> Callable[[F], F]:
        """Register a function to be called when *rule* (`Every`, `Cron`) is due: ``(due)`` or ``(due, context)``.

        *due* is the aware time it is for, in UTC. It runs in one process of all that share the store, in a unit:
        what it writes with ``context.tx`` and what it publishes or returns happens once for each due time, also
        over crashes. *name* (default: the function's) is what the store remembers it by. *missed* decides about
        due times that came while nothing ran: ``latest`` (one run, for the last of them), ``all`` (each, in
        order) or ``skip`` (none that is above a minute late). A run that fails is tried again, with *retry*'s
        delays, until it succeeds; under ``latest`` and ``skip`` a later due time takes its place.

        Raises:
            ConfigurationError: a function of another shape, or a name that is taken.
        """

        def register(function: F) -> F:
            recurring = Recurring(
                name=name or getattr(function, "__name__", ""),
                rule=rule,
                function=function,
                takes_context=_takes_context(function, self.name),
                blocking=not inspect.iscoroutinefunction(function),
                missed=missed,
                timeout=timeout,
                retry=retry or Retry(),
            )
            check_name(recurring.name, "handler")
            if any(other.name == recurring.name for other in self.recurring):
                raise ConfigurationError(
                    f"{self.name}: two recurring runs are named {recurring.name!r}", hint="give one of them name=…"
                )
            if timeout <= ZERO:
                raise ConfigurationError(f"{self.name}.{recurring.name}: timeout must be above zero")
            self.recurring.append(recurring)
            return function

        return register

    def upcast(self, upcast: Upcast) -> Upcast:
        """Use *upcast* when an older version of its event arrives; also usable above ``@upcast(...)``."""
        self.upcasts.append(upcast)
        return upcast

    def accept(self, plain: Plain) -> Plain:
        """Take plain messages of a topic, which are no CloudEvents, for events as *plain* says.

        What it cannot make an event of becomes a dead letter that says why; CloudEvents of the topic stay what they
        are.

        Raises:
            ConfigurationError: the service accepts plain messages of that topic already.
        """
        topic = plain_topic(plain)
        if topic.topic in self.plains:
            raise ConfigurationError(
                f"{self.name}: it accepts plain messages of {topic.topic} already",
                hint="one Plain with events by kind: Plain({'placed': OrderPlaced, 'paid': OrderPaid}, type=…)",
            )
        self.plains[topic.topic] = topic
        return plain

    def lifespan(self, function: Lifespan) -> Lifespan:
        """Open what handlers need at start and close it after the drain.

        *function* takes the service and yields once: a mapping of plain values, found in ``context.resources``.
        """
        if self._lifespan is not None:
            raise ConfigurationError(f"{self.name}: it has a lifespan already", hint="open both things in one")
        self._lifespan = asynccontextmanager(function)
        self.lifespan_name = getattr(function, "__qualname__", repr(function))
        return function

    def open_resources(self) -> AbstractAsyncContextManager[Resources]:
        """Return the lifespan's context manager; it yields an empty mapping where there is none."""
        return self._lifespan(self) if self._lifespan is not None else _nothing()

    def _check(self, handler: Handler) -> None:
        check_name(handler.name, "handler")
        taken = [h for h in self.handlers if h.name == handler.name and h.event.type == handler.event.type]
        if taken:
            raise ConfigurationError(
                f"{self.name}: two handlers of {handler.event.type} are named {handler.name!r}",
                hint="give one of them name=…; it is part of the inbox mark",
            )
        if handler.timeout <= ZERO:
            raise ConfigurationError(f"{self.name}.{handler.name}: timeout must be above zero")
        if handler.ordering == "key" and handler.event.key is None:
            raise ConfigurationError(
                f"{self.name}.{handler.name}: ordering by key, but {handler.event.type} declares no key",
                hint='add key="…" to its @event',
            )

    def _check_batch(self, handler: Handler) -> None:
        where, takes_list = f"{self.name}.{handler.name}", _takes_list(handler.function)
        if (handler.batch and takes_list is False) or (takes_list and not handler.batch):
            raise ConfigurationError(
                f"{where}: a handler with batch=… takes a list of events, and no other does",
                hint="annotate it as list[YourEvent] and say batch=100, or take one event",
            )
        if handler.batch and handler.event.kind == "domain":
            raise ConfigurationError(f"{where}: a domain event is handled at once, it cannot wait for a batch")
        if not 0 <= handler.batch <= self.prefetch or not ZERO <= handler.batch_wait <= timedelta(minutes=1):
            raise ConfigurationError(
                f"{where}: batch is from 1 to the service's prefetch ({self.prefetch}), batch_wait at most a minute"
            )


def _takes_list(function: Callable[..., Any]) -> bool | None:
    """Whether the first parameter is annotated as a list; None where it is not annotated."""
    first = next(iter(inspect.signature(function).parameters.values()))
    if first.annotation is first.empty:
        return None
    text = first.annotation if isinstance(first.annotation, str) else str(first.annotation)
    return text.lower().removeprefix("typing.").startswith(("list[", "sequence["))


def _takes_context(function: Callable[..., Any], service: str) -> bool:
    """Whether *function* takes ``(event, context)`` rather than ``(event)``; anything else is refused."""
    where = f"{service}.{getattr(function, '__name__', function)}"
    if inspect.isgeneratorfunction(function) or inspect.isasyncgenfunction(function):
        raise ConfigurationError(f"{where}: a handler returns its events, it does not yield them")
    parameters = list(inspect.signature(function).parameters.values())
    positional = [p for p in parameters if p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)]
    needed = [p for p in parameters if p.default is p.empty and p.kind not in (p.VAR_POSITIONAL, p.VAR_KEYWORD)]
    if len(needed) > 2 or not positional or any(p.kind is p.KEYWORD_ONLY for p in needed):
        raise ConfigurationError(
            f"{where}: a handler takes (event) or (event, context), not {inspect.signature(function)}",
            hint="what else it needs comes from the service's lifespan, in context.resources",
        )
    return len(positional) >= 2


@asynccontextmanager
async def _nothing() -> AsyncGenerator[Resources]:
    yield {}
