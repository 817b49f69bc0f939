"""What a service is, by its registrations alone: nothing is opened, no setting is needed."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from datetime import datetime

import msgspec

from tidewire.rules.events import EventType
from tidewire.rules.functions import reads_tx, returned_events
from tidewire.rules.guarantees import Ordering, ordered_topics, waits
from tidewire.rules.plain import PlainTopic
from tidewire.rules.wording import in_words, retry_in_words
from tidewire.runtime.service import Handler, Recurring, Service

__all__ = ["Described", "DescribedEvent", "DescribedHandler", "DescribedPlain", "describe_service", "explain"]

_MISSED = {"latest": "only the last of them runs", "all": "each runs, in order", "skip": "they do not run"}


class DescribedEvent(msgspec.Struct, frozen=True, kw_only=True):
    """An event's contract. *versions*: those that the service reads, by upcasts down from the current one."""

    type: str
    version: int
    versions: Sequence[int]
    topic: str
    key: Sequence[str]
    kind: str


class DescribedHandler(msgspec.Struct, frozen=True, kw_only=True):
    """A handler as it was registered; *waits_s* are ceilings. *on_dead_letter* ``default`` is ``hold_key`` with a
    store, and has to be said without."""

    name: str
    event: DescribedEvent
    function: str
    blocking: bool
    ordering: Ordering
    retry: str
    attempts: int
    waits_s: Sequence[float]
    timeout_s: float
    on_dead_letter: str
    repeatable: bool
    batch: int
    batch_wait_s: float
    reads_tx: bool
    middleware: Sequence[str]
    returns: Sequence[DescribedEvent]


class DescribedRecurring(msgspec.Struct, frozen=True, kw_only=True):
    """A recurring run, with its rule in one line and when it is due *next* (RFC 3339)."""

    name: str
    rule: str
    missed: str
    next: str
    timeout_s: float
    retry: str
    returns: Sequence[DescribedEvent]


class DescribedPlain(msgspec.Struct, frozen=True, kw_only=True):
    """What plain messages of a *topic* are: the type of each *kind* (``""``: the only one; null: it is skipped), and
    in words where the attributes come from."""

    topic: str
    kinds: dict[str, str | None]
    kind: str
    id: str
    source: str
    key: str
    time: str
    version: str
    data: str


class Described(msgspec.Struct, frozen=True, kw_only=True):
    """A service: *topics* by whether they are read in order, its handlers of integration and of domain events."""

    name: str
    source: str
    concurrency: int
    prefetch: int
    lifespan: str
    middleware: Sequence[str]
    topics: dict[str, Ordering]
    handlers: Sequence[DescribedHandler]
    domain: Sequence[DescribedHandler]
    recurring: Sequence[DescribedRecurring]
    plain: Sequence[DescribedPlain]


def describe_service(service: Service, *, now: datetime) -> Described:
    """Return what *service* is; *now* says when recurring runs are due next."""
    ordered = ordered_topics(service.handlers)
    handlers = [_handler(service, handler, ordered) for handler in service.handlers]
    integration = [one for one in handlers if one.event.kind == "integration"]
    topics: dict[str, Ordering] = {
        one.event.topic: "key" if one.event.topic in ordered else "none" for one in integration
    }
    return Described(
        name=service.name,
        source=service.source,
        concurrency=service.concurrency,
        prefetch=service.prefetch,
        lifespan=service.lifespan_name,
        middleware=[_name(one) for one in service.middleware],
        topics=topics,
        handlers=integration,
        domain=[one for one in handlers if one.event.kind == "domain"],
        recurring=[_recurring(one, now) for one in service.recurring],
        plain=[_plain(one) for one in service.plains.values()],
    )


def explain(type_: str, services: Sequence[Described]) -> list[str]:
    """Return where an event of *type_* goes and what each of *services* does with it, in sentences; empty if none of
    them handles or returns it."""
    events = [event for service in services for event in _events(service) if event.type == type_]
    if not events:
        return []
    event = events[0]
    if event.kind == "domain":
        lines = [f"{type_} is a domain event: it stays inside its service, in the unit that published it."]
        return lines + [_reaction(type_, "", service) for service in services]
    topic = event.topic
    by_default = topic == type_.rpartition(".")[0]
    why = "its type without the last segment" if by_default else "as topic= says"
    key = ", ".join(event.key)
    lines = [f"{type_} goes to topic {topic} ({why}); each group on it gets its own copy."]
    lines.append(
        f"Its key is {key}: events of one key lie in one lane, in order."
        if key
        else "It declares no key: its events spread over all lanes, without order."
    )
    makers: list[str] = []
    for service in services:
        for handler in [*service.handlers, *service.domain]:
            makers += [f"{service.name}.{handler.name}" for each in handler.returns if each.type == type_]
        for recurring in service.recurring:
            makers += [f"{service.name}.{recurring.name}" for each in recurring.returns if each.type == type_]
    lines += [f"It is returned by {', '.join(makers)}."] if makers else []
    return lines + [_reaction(type_, topic, service) for service in services]


def _reaction(type_: str, topic: str, service: Described) -> str:
    handlers = [one.name for one in [*service.handlers, *service.domain] if one.event.type == type_]
    if len(handlers) == 1:
        return f"{service.name}: {handlers[0]} handles it."
    if handlers:
        return f"{service.name}: {', '.join(handlers)} handle it, in one unit with a mark each."
    if topic in service.topics:
        others = ", ".join(dict.fromkeys(one.event.type for one in service.handlers if one.event.topic == topic))
        return f"{service.name}: reads {topic} for {others}, and skips it: no handler asks for it."
    return f"{service.name}: does not read topic {topic}." if topic else f"{service.name}: no handler asks for it."


def _events(service: Described) -> Iterable[DescribedEvent]:
    """Return every event that *service* handles or returns."""
    for handler in [*service.handlers, *service.domain]:
        yield handler.event
        yield from handler.returns
    for recurring in service.recurring:
        yield from recurring.returns


def _handler(service: Service, handler: Handler, ordered: set[str]) -> DescribedHandler:
    event = handler.event
    ordering: Ordering = "key" if event.topic in ordered and event.key is not None else "none"
    return DescribedHandler(
        name=handler.name,
        event=_event(event, service),
        function=_name(handler.function),
        blocking=handler.blocking,
        ordering=ordering,
        retry=retry_in_words(handler.retry),
        attempts=handler.retry.attempts,
        waits_s=[wait.total_seconds() for wait in waits(handler.retry)],
        timeout_s=handler.timeout.total_seconds(),
        on_dead_letter=handler.on_dead_letter or ("default" if ordering == "key" else "continue"),
        repeatable=handler.repeatable,
        batch=handler.batch,
        batch_wait_s=handler.batch_wait.total_seconds(),
        reads_tx=reads_tx(handler.function),
        middleware=[_name(one) for one in handler.middleware],
        returns=[_event(one, None) for one in returned_events(handler.function)],
    )


def _recurring(one: Recurring, now: datetime) -> DescribedRecurring:
    return DescribedRecurring(
        name=one.name,
        rule=one.rule.text,
        missed=_MISSED[one.missed],
        next=one.rule.after(now).isoformat(),
        timeout_s=one.timeout.total_seconds(),
        retry=f"until it succeeds, first after up to {in_words(one.retry.first_delay)}, "
        f"then up to {in_words(one.retry.max_delay)}",
        returns=[_event(each, None) for each in returned_events(one.function)],
    )


def _plain(topic: PlainTopic) -> DescribedPlain:
    plain = topic.plain
    return DescribedPlain(
        topic=topic.topic,
        kinds={kind: None if event is None else event.type for kind, event in topic.kinds.items()},
        kind="the only one" if plain.type is None else str(plain.type),
        id=", else ".join(map(str, topic.ids)),
        source=str(plain.source) or topic.topic,
        key="the broker's, else what the event declares" if plain.key is None else str(plain.key),
        time="when the broker took it, unless it has a ce-time" if plain.time is None else str(plain.time),
        version="the class's own" if plain.version is None else str(plain.version),
        data="the whole body" if plain.data is None else str(plain.data),
    )


def _event(event: EventType, service: Service | None) -> DescribedEvent:
    steps = {step.from_version for step in service.upcasts if step.type == event.type} if service else set[int]()
    oldest = event.version
    while oldest - 1 in steps:
        oldest -= 1
    return DescribedEvent(
        type=event.type,
        version=event.version,
        versions=list(range(oldest, event.version + 1)),
        topic=event.topic,
        key=event.key or (),
        kind=event.kind,
    )


def _name(thing: object) -> str:
    """Return what a function is called, or how an object shows itself."""
    name = getattr(thing, "__qualname__", "")
    return f"{getattr(thing, '__module__', '')}.{name}".lstrip(".") if name else repr(thing)
