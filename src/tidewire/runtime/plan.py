"""A service compiled for running: everything that can be resolved or refused before the first message."""

from __future__ import annotations

import asyncio
import contextvars
from collections.abc import Callable, Sequence
from concurrent.futures import Executor
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from typing import Any, NamedTuple

import msgspec

from tidewire.errors import ConfigurationError
from tidewire.model import ZERO, Capabilities
from tidewire.protocols import Codec, Store, Surrounding
from tidewire.rules.guarantees import (
    OnDeadLetter,
    Ordering,
    ordered_topics,
    plain_refusals,
    recurring_refusals,
    refusals,
)
from tidewire.rules.plain import PlainTopic
from tidewire.rules.upcasts import decoders
from tidewire.runtime.context import Context, SyncContext
from tidewire.runtime.service import Handle, Handler, Recurring, Service
from tidewire.runtime.tx_types import tx_problems

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
    """Routes by event type, what plain messages of a topic are, topics by ordering, the handlers of domain events by
    class, and recurring runs."""

    routes: dict[str, Route]
    plains: dict[str, PlainTopic]
    topics: dict[Ordering, list[str]]
    domain: dict[type, list[Bound]]
    recurring: Sequence[tuple[Recurring, Handle]]


def compile_plan(
    service: Service,
    *,
    codec_for: Callable[[type], Codec],
    capabilities: Capabilities,
    store: Store | None,
    executor: Executor,
) -> Plan:
    """Resolve *service* against a transport's capabilities and what its store gives to handlers.

    Raises:
        ConfigurationError: names every problem at once, each with its handler.
    """
    has_store = store is not None
    place = Place(executor, store if isinstance(store, Surrounding) else None)
    problems = tx_problems(service, store)
    by_type: dict[str, list[Handler]] = {}
    domain: dict[type, list[Bound]] = {}
    for handler in service.handlers:
        if handler.event.kind == "domain":
            domain.setdefault(handler.event.cls, []).append(_bound(service, handler, place, on_dead="continue"))
        else:
            by_type.setdefault(handler.event.type, []).append(handler)
    ordered = ordered_topics(service.handlers)
    routes: dict[str, Route] = {}
    topics: dict[Ordering, list[str]] = {"key": [], "none": []}
    for type_, handlers in by_type.items():
        event = handlers[0].event
        ordering: Ordering = "key" if event.topic in ordered else "none"
        refused = refusals(service.name, handlers, ordering=ordering, capabilities=capabilities, has_store=has_store)
        problems += [finding.text for finding in refused]
        if event.topic not in topics[ordering]:
            topics[ordering].append(event.topic)
        on_dead: OnDeadLetter = "hold_key" if ordering == "key" and has_store else "continue"
        routes[type_] = Route(
            type=type_,
            topic=event.topic,
            ordering=ordering,
            decoders=decoders(event, codec_for(event.cls), service.upcasts),
            handlers=[
                _bound(service, handler, place, on_dead=handler.on_dead_letter or on_dead) for handler in handlers
            ],
            seconds_max=sum((handler.timeout for handler in handlers), ZERO).total_seconds(),
            batch=max(handlers[0].batch, 1),
            batch_seconds=handlers[0].batch_wait.total_seconds(),
        )
    refused = plain_refusals(
        service.name, service.plains.values(), handlers=service.handlers, capabilities=capabilities
    )
    problems += [finding.text for finding in refused]
    names = [one.name for one in service.recurring]
    problems += [finding.text for finding in recurring_refusals(service.name, names, has_store=has_store)]
    recurring = [(one, _shaped(one, place)) for one in service.recurring]
    if problems:
        raise ConfigurationError("; ".join(problems), hint="each is named with its handler; see docs/services.md")
    return Plan(routes=routes, plains=dict(service.plains), topics=topics, domain=domain, recurring=recurring)


def _bound(service: Service, handler: Handler, place: Place, *, on_dead: OnDeadLetter) -> Bound:
    """Return the handler ready to be called: adapted to its shape, inside its middleware, outermost first."""
    call = _shaped(handler, place)
    for wrap in reversed([*service.middleware, *handler.middleware]):
        call = wrap(call)
    call_one = partial(_as_batch, call) if handler.batch else call
    return Bound(handler=handler, call=call_one, call_many=call, on_dead_letter=on_dead)


async def _as_batch(call: Handle, event: Any, context: Context[Any]) -> Any:
    return await call([event], context)


class Place(NamedTuple):
    """Where handlers run: the threads of ``def`` ones, and what the store has to do around each, if anything."""

    executor: Executor
    around: Surrounding | None


def _shaped(handler: Handler | Recurring, place: Place) -> Handle:
    function = handler.function
    if handler.blocking:
        blocking = partial(_in_thread, function, handler.takes_context, place)
        return blocking if place.around is None else partial(_surrounded, blocking, place.around)
    call = function if handler.takes_context else _without_context(function)
    return call if place.around is None else partial(_surrounded, call, place.around)


def _without_context(function: Callable[..., Any]) -> Handle:
    def call(event: Any, context: Context[Any]) -> Any:
        return function(event)

    return call


async def _surrounded(call: Handle, around: Surrounding, event: Any, context: Context[Any]) -> Any:
    assert context.unit is not None
    async with around.around(context.unit):
        return await call(event, context)


async def _in_thread(
    function: Callable[..., Any], takes_context: bool, place: Place, event: Any, context: Context[Any]
) -> Any:
    """Run a ``def`` handler in a worker thread, in a copy of this task's context variables."""
    loop = asyncio.get_running_loop()
    arguments = (event, SyncContext[Any](context, loop)) if takes_context else (event,)
    around = (
        nullcontext() if place.around is None or context.unit is None else place.around.around_in_thread(context.unit)
    )
    return await loop.run_in_executor(place.executor, _told, contextvars.copy_context(), function, arguments, around)


def _told(
    variables: contextvars.Context,
    function: Callable[..., Any],
    arguments: Sequence[Any],
    around: AbstractContextManager[None],
) -> Any:
    """Call *function* with its *variables*. A `StopIteration` becomes another error: no future can hold one, and the
    caller would wait for ever."""
    try:
        with around:
            return variables.run(function, *arguments)
    except StopIteration as error:
        raise RuntimeError("the handler raised StopIteration") from error
