"""``tidewire find`` and ``tidewire trace``: where an event is, how far each group is with it, what it caused."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from tidewire.cli.brokers import Broker, broker_parser, finder_of, run_with_broker
from tidewire.cli.exits import FAILED, OK, tell
from tidewire.cli.shown import Progress, emit, stamp, table
from tidewire.model import DeadChannel, Found, Topic
from tidewire.operations.search import Node, cause_tree, find_by_id, find_related, states, summary

__all__ = ["find", "trace"]

FIND = """\
Say where an event lies, by its id: in which topic, inbox channel or dead channel, and how far each group is with it.
"""
TRACE = """\
Show the tree of what an event caused and what caused it: every event with the same correlation id, oldest first,
with how far each group is. Takes the id of any event of the tree, or the correlation id.
"""
EXITS = "exit code 1: nothing was found"


def find(arguments: Sequence[str]) -> int:
    """Say where an event lies, and return the exit code."""
    epilog = f"example:\n  tidewire find 0199e3c2-7e21-7d4e-9c58-5f0a3b1f2d11\n\n{EXITS}"
    parser = broker_parser("tidewire find", FIND, epilog=epilog)
    parser.add_argument("id", metavar="ID", help="the id of an event")
    options = parser.parse_all(arguments)

    async def act(broker: Broker) -> int:
        progress = Progress("messages read:")
        found = await find_by_id(broker, finder_of(broker), options.id, progress=progress.at)
        progress.end()
        if options.json:
            emit({"id": options.id, "found": [summary(one) for one in found]})
        elif found:
            known = states(found)
            for one in found:
                _print_place(one, known)
        if not found:
            tell(f"no event has the id {options.id!r}", hint=_gone(options.id))
            return FAILED
        return OK

    return run_with_broker(options, act)


def trace(arguments: Sequence[str]) -> int:
    """Show what an event caused, and return the exit code."""
    epilog = f"example:\n  tidewire trace 0199e3c2-7e21-7d4e-9c58-5f0a3b1f2d11\n\n{EXITS}"
    parser = broker_parser("tidewire trace", TRACE, epilog=epilog)
    parser.add_argument("id", metavar="ID", help="the id of any event of the tree, or the correlation id")
    options = parser.parse_all(arguments)

    async def act(broker: Broker) -> int:
        progress = Progress("messages read:")
        finder = finder_of(broker)
        itself = await find_by_id(broker, finder, options.id, progress=progress.at)
        known = itself[0].message.headers.get("ce-correlationid") if itself else None
        correlation: str = known or options.id
        found = await find_related(broker, finder, correlation, progress=progress.at)
        progress.end()
        roots = cause_tree(found)
        if options.json:
            emit({"id": options.id, "correlation_id": correlation, "events": [_node(root) for root in roots]})
        else:
            for root in roots:
                _print_tree(
                    root, marked=options.id, otherwise="nobody reads it" if finder else "nobody can tell who read it"
                )
        if not found:
            tell(f"no event has {options.id!r} as id or correlation id", hint=_gone(options.id))
            return FAILED
        return OK

    return run_with_broker(options, act)


def _gone(event_id: str) -> str:
    return "is it the whole id? what every group has settled goes with the topic's retention (`tidewire topics`)"


def _print_place(found: Found, known: Mapping[str, str]) -> None:
    one = summary(found)
    rows: list[tuple[str, object]] = [(name, one[name]) for name in ("type", "source", "key") if one[name]]
    rows += [("correlation", one["correlation_id"])] if one["correlation_id"] else []
    rows += [("caused by", one["causation_id"])] if one["causation_id"] else []
    rows += [("stored", stamp(found.stored_at)), ("position", found.position)]
    rows += [("reason", f"{one['reason']}: {found.message.headers.get('dl-detail', '')}")] if one["reason"] else []
    rows += [(f"group {standing.group}", known[standing.group]) for standing in found.standings]
    table((_place(found), found.message.id), rows)
    print()


def _place(found: Found) -> str:
    to = found.message.to
    if isinstance(to, Topic):
        return f"topic {to.name}"
    kind = "dead letter" if isinstance(to, DeadChannel) else "inbox channel"
    return f"{kind} of {to.group} on {to.topic}"


def _node(node: Node) -> dict[str, Any]:
    return {
        "id": node.event_id,
        "places": [summary(one) for one in node.found],
        "effects": [_node(one) for one in node.effects],
    }


def _print_tree(root: Node, *, marked: str, otherwise: str) -> None:
    """Print a tree line by line, and *otherwise* where no group is said to have an event. The depth of a tree is its
    producers', so this does not recurse."""
    todo: list[tuple[int, Node]] = [(0, root)]
    while todo:
        depth, node = todo.pop()
        first = node.found[0]
        headers = first.message.headers
        standing = ", ".join(f"{group} {state}" for group, state in states(node.found).items())
        mark = "  <" if node.event_id == marked else ""
        key = f" key={first.message.key}" if first.message.key else ""
        print(f"{'  ' * depth}{headers.get('ce-type', '?')} {node.event_id}{key}{mark}")
        print(f"{'  ' * depth}  {stamp(first.stored_at)} from {first.message.source}: {standing or otherwise}")
        todo += [(depth + 1, effect) for effect in reversed(node.effects)]
