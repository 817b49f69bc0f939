"""A service compiled for running: everything that can be resolved or refused before the first message."""

from __future__ import annotations

import asyncio
import contextvars
from collections.abc import Callable, Sequence
from concurrent.futures import Executor
from functools import partial
from typing import Any

import msgspec

from tidewire.errors import ConfigurationError
from tidewire.model import ZERO, Capabilities
from tidewire.protocols import Codec
from tidewire.rules.upcasts import decoders
from tidewire.runtime.context import Context, SyncContext
from tidewire.runtime.service import Handle, Handler, OnDeadLetter, Ordering, Recurring, Service

__all__ = ["Bound", "Plan", "Route", "compile_plan"]


class Bound(msgspec.Struct, frozen=True, kw_only=True):
    """A handler ready to be called, with every default resolved. *call_many* takes a list of events."""

    handler: Handler
    call: Handle
    call_many: Handle
    on_dead_letter: OnDeadLetter

    @property
    def name(self) -> str:
        """The handler's name, as inbox marks hold it."""
        return self.handler.name


class Route(msgspec.Struct, frozen=True, kw_only=True):
    """What this service does with events of one type: how to decode each version, and who handles them.

    *batch*: how many events its one handler takes at a time, 1 where it takes no list; *batch_seconds*: how long it
    waits for that many.
    """

    type: str
    topic: str
    ordering: Ordering
    decoders: dict[str, Callable[[bytes], Any]]
    handlers: Sequence[Bound]
    seconds_max: float
    batch: int
    batch_seconds: float


class Plan(msgspec.Struct, frozen=True, kw_only=True):
    """Routes by event type, topics by ordering, the handlers of domain events by class, and recurring runs."""

    routes: dict[str, Route]
    topics: dict[Ordering, list[str]]
    domain: dict[type, list[Bound]]
    recurring: Sequence[tuple[Recurring, Handle]]


def compile_plan(
    service: Service,
    *,
    codec_for: Callable[[type], Codec],
    capabilities: Capabilities,
    has_store: bool,
    executor: Executor,
) -> Plan:
    """Resolve *service* against a transport's capabilities.

    Raises:
        ConfigurationError: names every problem at once, each with its handler.
    """
    problems: list[str] = []
    by_type: dict[str, list[Handler]] = {}
    domain: dict[type, list[Bound]] = {}
    for handler in service.handlers:
        if handler.event.kind == "domain":
            domain.setdefault(handler.event.cls, []).append(_bound(service, handler, executor, on_dead="continue"))
        else:
            by_type.setdefault(handler.event.type, []).append(handler)
    ordered = _ordered_topics(by_type.values())
    routes: dict[str, Route] = {}
    topics: dict[Ordering, list[str]] = {"key": [], "none": []}
    for type_, handlers in by_type.items():
        event = handlers[0].event
        ordering: Ordering = "key" if event.topic in ordered else "none"
        problems += _problems(service.name, handlers, ordering, capabilities, has_store)
        if event.topic not in topics[ordering]:
            topics[ordering].append(event.topic)
        on_dead: OnDeadLetter = "hold_key" if ordering == "key" and has_store else "continue"
        routes[type_] = Route(
            type=type_,
            topic=event.topic,
            ordering=ordering,
            decoders=decoders(event, codec_for(event.cls), service.upcasts),
            handlers=[
                _bound(service, handler, executor, on_dead=handler.on_dead_letter or on_dead) for handler in handlers
            ],
            seconds_max=sum((handler.timeout for handler in handlers), ZERO).total_seconds(),
            batch=max(handlers[0].batch, 1),
            batch_seconds=handlers[0].batch_wait.total_seconds(),
        )
    if service.recurring and not has_store:
        problems.append(f"{service.name}: recurring runs need a store, which remembers when they are due")
    recurring = [(one, _shaped(one, executor)) for one in service.recurring]
    if problems:
        raise ConfigurationError("; ".join(problems), hint="each is named with its handler; see docs/services.md")
    return Plan(routes=routes, topics=topics, domain=domain, recurring=recurring)


def _ordered_topics(by_type: Any) -> set[str]:
    """Topics in which some handler asks for order (or its event declares a key and it asks for nothing)."""
    ordered: set[str] = set()
    for handlers in by_type:
        for handler in handlers:
            if (handler.ordering or ("key" if handler.event.key is not None else "none")) == "key":
                ordered.add(handler.event.topic)
    return ordered


def _problems(
    service: str, handlers: Sequence[Handler], ordering: Ordering, capabilities: Capabilities, has_store: bool
) -> list[str]:
    problems: list[str] = []
    first = handlers[0].event
    for handler in handlers:
        where = f"{service}.{handler.name}"
        if handler.event.cls is not first.cls:
            problems.append(
                f"{where}: {first.type} is handled as {handler.event.cls.__qualname__} and as "
                f"{first.cls.__qualname__}; use one class, and @upcast for older versions"
            )
        if ordering == "key" and not capabilities.order:
            problems.append(f'{where}: this broker cannot keep order by key; say ordering="none"')
        if handler.on_dead_letter == "hold_key" and not has_store:
            problems.append(f'{where}: on_dead_letter="hold_key" needs a store; give one, or say "continue"')
        if ordering == "key" and not has_store and handler.on_dead_letter is None:
            problems.append(
                f"{where}: ordered and without a store, so what follows a dead letter goes on; "
                f'say on_dead_letter="continue", or give the service a store'
            )
        if len(handlers) > 1 and handler.batch:
            problems.append(f"{where}: a batch handler must be the only one of its event in a service")
        if len(handlers) > 1 and not has_store and not handler.repeatable:
            problems.append(
                f"{where}: {len(handlers)} handlers of {first.type} without a store: when one fails all run again; "
                f"say repeatable=True on each, or give the service a store"
            )
    return problems


def _bound(service: Service, handler: Handler, executor: Executor, *, on_dead: OnDeadLetter) -> Bound:
    """Return the handler ready to be called: adapted to its shape, inside its middleware, outermost first."""
    call = _shaped(handler, executor)
    for wrap in reversed([*service.middleware, *handler.middleware]):
        call = wrap(call)
    call_one = partial(_as_batch, call) if handler.batch else call
    return Bound(handler=handler, call=call_one, call_many=call, on_dead_letter=on_dead)


async def _as_batch(call: Handle, event: Any, context: Context[Any]) -> Any:
    return await call([event], context)


def _shaped(handler: Handler | Recurring, executor: Executor) -> Handle:
    function = handler.function
    if handler.blocking:
        return partial(_in_thread, function, handler.takes_context, executor)
    if handler.takes_context:
        return function

    def without_context(event: Any, context: Context[Any]) -> Any:
        return function(event)

    return without_context


async def _in_thread(
    function: Callable[..., Any], takes_context: bool, executor: Executor, event: Any, context: Context[Any]
) -> Any:
    """Run a ``def`` handler in a worker thread, in a copy of this task's context variables."""
    loop = asyncio.get_running_loop()
    arguments = (event, SyncContext[Any](context, loop)) if takes_context else (event,)
    return await loop.run_in_executor(executor, partial(contextvars.copy_context().run, function, *arguments))
