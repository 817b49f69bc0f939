"""``tidewire describe module:service``: handlers, events in and out, policies in words; opens nothing."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from tidewire.cli.exits import FAILED, OK, CommandParser, did_you_mean, tell
from tidewire.cli.shown import emit, print_points
from tidewire.cli.target import find_service
from tidewire.clock import SystemClock
from tidewire.operations.describing import (
    Described,
    DescribedEvent,
    DescribedHandler,
    DescribedPlain,
    describe_service,
    explain,
)

__all__ = ["main"]

DESCRIPTION = """\
Say what services are: which events they handle and return, topics, keys, retries with the actual waits, middleware,
recurring runs. It imports them and opens nothing; what their settings make of it is said by `tidewire check`.
"""
EPILOG = """\
examples:
  tidewire describe shop.billing:billing
  tidewire describe shop.billing shop.stock --json
  tidewire describe shop.billing shop.stock --explain shop.order.placed

exit code 1: none of the services handles or returns the event of --explain
"""
_AFTERWARDS = {
    "default": "; later events of its key wait with it (with a store; without one on_dead_letter has to be said)",
    "hold_key": "; later events of its key wait with it",
    "continue": "; later events of its key go on",
}


def main(arguments: Sequence[str]) -> int:
    """Describe services, or explain an event to them, and return the exit code.

    Raises:
        ConfigurationError: no such service.
    """
    parser = CommandParser("tidewire describe", DESCRIPTION, epilog=EPILOG)
    parser.add_argument("targets", nargs="+", metavar="module:service", help="where the services are")
    parser.add_argument("--explain", metavar="TYPE", help="where an event of this type goes, and who handles it")
    parser.add_argument("--json", action="store_true", help="JSON on standard output, its keys documented and stable")
    options = parser.parse_all(arguments)
    now = SystemClock().now()
    services = [describe_service(find_service(target), now=now) for target in dict.fromkeys(options.targets)]
    if options.explain is not None:
        return _explain(options.explain, services, as_json=options.json)
    if options.json:
        emit({"services": services})
        return OK
    for number, service in enumerate(services):
        if number:
            print()
        _print(service)
    return OK


def _explain(type_: str, services: Sequence[Described], *, as_json: bool) -> int:
    lines = explain(type_, services)
    if as_json:
        emit({"type": type_, "known": bool(lines), "explained": lines})
    elif lines:
        print("\n".join(lines))
    if not lines:
        handlers = [one for service in services for one in [*service.handlers, *service.domain]]
        known = {event.type for one in handlers for event in [one.event, *one.returns]}
        hint = did_you_mean(type_, known) or f"they know: {', '.join(sorted(known)) or 'nothing'}"
        tell(f"no service named here handles or returns {type_!r}", hint=hint)
        return FAILED
    return OK


def _print(service: Described) -> None:
    print(f"{service.name}: group {service.name}, source {service.source}")
    ordered = {"key": "by key", "none": "no order"}
    topics = ", ".join(f"{topic} ({ordered[ordering]})" for topic, ordering in service.topics.items())
    points = [
        ("topics", topics or "none"),
        ("bounds", f"{service.concurrency} handlers at a time, {service.prefetch} events unsettled"),
        ("middleware", ", ".join(service.middleware) or "none"),
        ("lifespan", service.lifespan or "none"),
    ]
    print_points(points)
    for handler in service.handlers:
        print(f"\n  {_event(handler.event)} → {handler.name}")
        print_points(_handler(handler), indent=4)
    for handler in service.domain:
        print(f"\n  domain event {handler.event.type} → {handler.name}")
        print_points([("runs", "at once, inside the unit that published it"), *_returns(handler.returns)], indent=4)
    for plain in service.plain:
        print(f"\n  plain messages of {plain.topic}")
        print_points(_plain(plain), indent=4)
    for one in service.recurring:
        print(f"\n  recurring {one.name}")
        missed = f"if due times were missed, {one.missed}"
        points = [("due", one.rule), ("next", one.next), ("missed", missed), ("retries", one.retry)]
        print_points([*points, *_returns(one.returns)], indent=4)


def _event(event: DescribedEvent) -> str:
    older = "" if len(event.versions) == 1 else f" (reads {event.versions[0]} to {event.versions[-1]})"
    return f"{event.type} version {event.version}{older} on topic {event.topic}"


def _handler(handler: DescribedHandler) -> Iterator[tuple[str, str]]:
    yield "order", f"by key {', '.join(handler.event.key)}" if handler.ordering == "key" else "none"
    yield "retries", handler.retry
    yield "timeout", f"{handler.timeout_s:g} s"
    yield "at the end", "a dead letter" + (_AFTERWARDS[handler.on_dead_letter] if handler.ordering == "key" else "")
    if handler.batch:
        yield "takes", f"lists of up to {handler.batch}, which wait for up to {handler.batch_wait_s:g} s"
    if handler.repeatable:
        yield "repeats", "do no harm (repeatable=True)"
    yield "runs", "in a thread (def)" if handler.blocking else "on the event loop (async def)"
    if handler.reads_tx:
        yield "store", "reads context.tx: it needs one"
    if handler.middleware:
        yield "middleware", ", ".join(handler.middleware)
    yield from _returns(handler.returns)


def _plain(plain: DescribedPlain) -> Iterator[tuple[str, str]]:
    kinds = ", ".join(f"{kind} → {type_ or 'skipped'}" if kind else str(type_) for kind, type_ in plain.kinds.items())
    yield "become", kinds if "" in plain.kinds else f"by {plain.kind}: {kinds}"
    yield "id", f"{plain.id}, within source {plain.source}"
    yield "key", plain.key
    yield "time", plain.time
    yield "data", f"{plain.data}, version: {plain.version}"


def _returns(events: Sequence[DescribedEvent]) -> Iterator[tuple[str, str]]:
    if events:
        yield (
            "returns",
            ", ".join(f"{event.type} (topic {event.topic})" if event.topic else event.type for event in events),
        )
