"""``tidewire groups``: who reads what, how far behind, and who owns which lane."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any

from tidewire.cli.brokers import Broker, broker_parser, run_with_broker
from tidewire.cli.exits import OK, USAGE, did_you_mean, tell
from tidewire.cli.shown import age, emit, table
from tidewire.clock import SystemClock
from tidewire.model import GroupInfo

__all__ = ["main"]

DESCRIPTION = """\
List the groups of a broker: what waits, what is in progress, what waits for its time, how many dead letters,
how old the oldest waiting event is, and which member has how many lanes.
"""
EPILOG = """\
examples:
  tidewire groups
  tidewire groups --topic shop.order
  tidewire groups billing --json

A dash is a count that the broker cannot tell.
"""


def main(arguments: Sequence[str]) -> int:
    """List groups and return the exit code."""
    parser = broker_parser("tidewire groups", DESCRIPTION, epilog=EPILOG)
    parser.add_argument("group", nargs="?", metavar="GROUP", help="only this one, with its members")
    parser.add_argument("--topic", metavar="TOPIC", help="only on this topic")
    options = parser.parse_all(arguments)

    async def act(broker: Broker) -> int:
        if options.topic is not None:
            names = [topic.name for topic in await broker.topics()]
            if options.topic not in names:
                hint = did_you_mean(options.topic, names) or "`tidewire topics` lists them"
                tell(f"there is no topic {options.topic!r}", hint=hint)
                return USAGE
        everything = await broker.groups(options.topic)
        found = [one for one in everything if options.group in (None, one.group)]
        if options.group is not None and not found:
            hint = did_you_mean(options.group, {one.group for one in everything}) or "`tidewire groups` lists them"
            tell(f"there is no group {options.group!r}", hint=hint)
            return USAGE
        if options.json:
            emit({"groups": [as_document(one) for one in found]})
        else:
            _print(found, members=options.group is not None)
        return OK

    return run_with_broker(options, act)


def as_document(info: GroupInfo) -> dict[str, Any]:
    """Return *info* as ``--json`` prints it."""
    stats = info.stats
    return {
        "topic": info.topic,
        "group": info.group,
        "ready": stats.ready,
        "in_flight": stats.in_flight,
        "delayed": stats.delayed,
        "dead": stats.dead,
        "oldest_ready": stats.oldest_ready,
        "owners": info.owners,
    }


def _print(found: Sequence[GroupInfo], *, members: bool) -> None:
    if not found:
        print("There is no group yet: a service that starts makes its own.")
        return
    now = SystemClock().now_us()
    rows: list[Sequence[object]] = []
    for one in found:
        stats = one.stats
        counts = [_count(count) for count in (stats.ready, stats.in_flight, stats.delayed, stats.dead)]
        owners = "-" if one.owners is None else str(len(set(one.owners.values())))
        rows.append((one.group, one.topic, *counts, age(stats.oldest_ready, now), owners))
    headings = ("group", "topic", "ready", "in flight", "delayed", "dead", "oldest", "members")
    table(headings, rows, right=(2, 3, 4, 5, 6, 7))
    if members:
        print()
        lanes = [
            (one.topic, member, count)
            for one in found
            for member, count in Counter((one.owners or {}).values()).items()
        ]
        table(("topic", "member", "lanes"), lanes, right=(2,))


def _count(count: int | None) -> str:
    return "-" if count is None else f"{count:,}"
