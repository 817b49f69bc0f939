"""``tidewire topics``: what topics there are; make one, or look at one."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from tidewire.cli.brokers import Broker, broker_parser, duration, run_with_broker
from tidewire.cli.exits import FAILED, OK, USAGE, did_you_mean, tell
from tidewire.cli.shown import age, emit, size, stamp, table
from tidewire.clock import SystemClock
from tidewire.model import TopicInfo, TopicSpec

__all__ = ["main"]

DESCRIPTION = """\
List the topics of a broker, show one with its groups, or make one. Nothing is ever deleted or changed.
"""
EPILOG = """\
examples:
  tidewire topics
  tidewire topics shop.order --json
  tidewire topics shop.order --create --lanes 16 --retention 30d --dry-run
"""


def main(arguments: Sequence[str]) -> int:
    """List, show or make topics, and return the exit code."""
    parser = broker_parser("tidewire topics", DESCRIPTION, epilog=EPILOG)
    parser.add_argument("topic", nargs="?", metavar="TOPIC", help="only this one, with its groups")
    parser.add_argument("--create", action="store_true", help="make TOPIC if it is missing")
    parser.add_argument("--lanes", type=int, default=8, metavar="N", help="its lanes; fixed for ever (default: 8)")
    parser.add_argument("--retention", type=duration, metavar="TIME", help="how long settled messages stay (7d)")
    parser.add_argument("--dry-run", action="store_true", help="with --create: say what would happen")
    options = parser.parse_all(arguments)
    if options.create and not options.topic:
        parser.error("--create needs the name of a topic")

    async def act(broker: Broker) -> int:
        if options.create:
            return await _create(broker, options)
        topics = await broker.topics()
        if options.topic is None:
            return _list(topics, as_json=options.json)
        found = [topic for topic in topics if topic.name == options.topic]
        if not found:
            hint = did_you_mean(options.topic, [topic.name for topic in topics]) or "`tidewire topics` lists them"
            tell(f"there is no topic {options.topic!r}", hint=hint)
            return USAGE
        return await _show(broker, found[0], as_json=options.json)

    return run_with_broker(options, act)


def as_document(topic: TopicInfo) -> dict[str, Any]:
    """Return *topic* as ``--json`` prints it."""
    return {
        "name": topic.name,
        "lanes": topic.lanes,
        "messages": topic.messages,
        "size_bytes": topic.size_bytes,
        "retention_s": None if topic.retention is None else topic.retention.total_seconds(),
        "first": topic.first,
        "last": topic.last,
        "oldest_at": topic.oldest_at,
        "newest_at": topic.newest_at,
    }


def _count(messages: int | None) -> str:
    return "-" if messages is None else f"{messages:,}"


def _list(topics: Sequence[TopicInfo], *, as_json: bool) -> int:
    if as_json:
        emit({"topics": [as_document(topic) for topic in topics]})
        return OK
    now = SystemClock().now_us()
    rows = [
        (topic.name, topic.lanes, _count(topic.messages), age(topic.oldest_at, now), age(topic.newest_at, now))
        for topic in topics
    ]
    if not rows:
        print("There is no topic yet: a service that starts with --provision makes its own.")
        return OK
    table(("topic", "lanes", "messages", "oldest", "newest"), rows, right=(1, 2, 3, 4))
    return OK


async def _show(broker: Broker, topic: TopicInfo, *, as_json: bool) -> int:
    groups = await broker.groups(topic.name)
    if as_json:
        emit({**as_document(topic), "groups": [group.group for group in groups]})
        return OK
    retention = "for ever" if topic.retention is None else f"{topic.retention.total_seconds() / 86_400:g} d"
    table(
        ("topic", topic.name),
        [
            ("lanes", topic.lanes),
            ("messages", _count(topic.messages)),
            ("size", size(topic.size_bytes)),
            ("retention", retention),
            ("positions", "-" if topic.first is None else f"{topic.first} to {topic.last}"),
            ("oldest", stamp(topic.oldest_at)),
            ("newest", stamp(topic.newest_at)),
            ("groups", ", ".join(group.group for group in groups) or "none"),
        ],
    )
    return OK


async def _create(broker: Broker, options: Any) -> int:
    spec = TopicSpec(options.topic, lanes=options.lanes)
    if options.retention is not None:
        spec = TopicSpec(options.topic, lanes=options.lanes, retention=options.retention)
    (change,) = await broker.provision([spec], [], dry_run=options.dry_run)
    if options.json:
        emit({"topic": options.topic, "change": change.kind, "detail": change.detail, "dry_run": options.dry_run})
    else:
        would = "would be " if options.dry_run else ""
        words = {"create": f"{would}created", "unchanged": "nothing changed: it is there", "conflict": "refused"}
        print(f"{options.topic}: {words[change.kind]}{' (' + change.detail + ')' if change.detail else ''}")
    return FAILED if change.kind == "conflict" else OK
