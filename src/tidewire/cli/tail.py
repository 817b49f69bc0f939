"""``tidewire tail``: events as they are stored, and those that were stored before."""

from __future__ import annotations

import argparse
import asyncio
import json
from collections.abc import Callable, Sequence
from datetime import datetime
from typing import Any

from tidewire.cli.brokers import Broker, broker_parser, point_in_time, run_with_broker
from tidewire.cli.exits import OK, USAGE, did_you_mean, tell, whole_number
from tidewire.cli.shown import emit_line, stamp
from tidewire.clock import microseconds
from tidewire.model import Browsed, Topic

__all__ = ["main"]

DESCRIPTION = """\
Print the events of some topics, or of all, as they are stored; nothing is consumed. Ends with Ctrl-C.
"""
EPILOG = """\
examples:
  tidewire tail
  tidewire tail shop.order --type shop.order.placed --where data.customer.id=7
  tidewire tail --since 15m --no-follow --json | jq .data.total

--where compares texts: key=42, id=…, correlation_id=…, data.lines.0.sku=tea. Several must all hold.
"""
_FIELDS = (
    "topic",
    "position",
    "stored_at",
    "id",
    "source",
    "type",
    "key",
    "correlation_id",
    "causation_id",
    "data",
    "bytes",
)
_PAGE = 500
_POLL = 0.2


def main(arguments: Sequence[str]) -> int:
    """Print events until there are enough or Ctrl-C, and return the exit code."""
    parser = broker_parser("tidewire tail", DESCRIPTION, epilog=EPILOG)
    parser.add_argument("topics", nargs="*", metavar="TOPIC", help="which topics (default: all)")
    parser.add_argument("--since", type=point_in_time, metavar="TIME", help="begin there: RFC 3339, or 15m (ago)")
    parser.add_argument("--type", metavar="TYPE", help="only events of this type")
    parser.add_argument(
        "--where",
        action="append",
        type=_condition,
        default=[],
        metavar="FIELD=VALUE",
        help="only events whose field has this value; may be repeated",
    )
    parser.add_argument("--count", type=whole_number(1), metavar="N", help="end after N events")
    parser.add_argument("--no-follow", action="store_true", help="end at the last event that is there")
    options = parser.parse_all(arguments)
    return run_with_broker(options, lambda broker: Tail(broker, options).run())


def as_document(topic: str, one: Browsed) -> dict[str, Any]:
    """Return an event as ``--json`` prints it; *data* is the body where that is JSON, else None."""
    message = one.message
    headers = message.headers
    return {
        "topic": topic,
        "position": one.position,
        "stored_at": one.stored_at,
        "id": message.id,
        "source": message.source,
        "type": headers.get("ce-type", ""),
        "key": message.key,
        "correlation_id": headers.get("ce-correlationid", ""),
        "causation_id": headers.get("ce-causationid", ""),
        "data": _data(message.body),
        "bytes": len(message.body),
    }


class Tail:
    """One run of the command."""

    def __init__(self, broker: Broker, options: argparse.Namespace) -> None:
        self._broker = broker
        self._options = options
        self._after: dict[str, int | str | None] = {}
        self._printed = 0

    async def run(self) -> int:
        """Print until there are enough, or (without following) no more."""
        names = [topic.name for topic in await self._broker.topics()]
        unknown = [name for name in self._options.topics if name not in names]
        if unknown:
            hint = did_you_mean(unknown[0], names) or "`tidewire topics` lists them"
            tell(f"there is no topic {unknown[0]!r}", hint=hint)
            return USAGE
        for topic in await self._broker.topics():
            # Without a time only what comes from now on is shown, or, where nothing is followed, everything.
            from_start = self._options.since is not None or self._options.no_follow
            self._after[topic.name] = None if from_start else topic.last
        while True:
            found = await self._print_new()
            if self._enough() or (self._options.no_follow and not found):
                return OK
            if not found:
                await asyncio.sleep(_POLL)

    async def _print_new(self) -> int:
        """Print what has come since the last look, in the order of its times; return how many were looked at."""
        wanted = self._options.topics or [topic.name for topic in await self._broker.topics()]
        page: list[tuple[str, Browsed]] = []
        for name in wanted:
            found = await self._broker.browse(Topic(name), after=self._after.get(name), limit=_PAGE)
            if found:
                self._after[name] = found[-1].position
                page += [(name, one) for one in found]
        for name, one in sorted(page, key=lambda both: both[1].stored_at or 0):
            if self._enough():
                break
            if self._wanted(name, one):
                self._print(name, one)
                self._printed += 1
        return len(page)

    def _enough(self) -> bool:
        return self._options.count is not None and self._printed >= self._options.count

    def _wanted(self, topic: str, one: Browsed) -> bool:
        since: datetime | None = self._options.since
        if since is not None and one.stored_at is not None and one.stored_at < microseconds(since):
            return False
        if self._options.type not in (None, one.message.headers.get("ce-type")):
            return False
        if not self._options.where:
            return True
        document = as_document(topic, one)
        return all(condition(document) for condition in self._options.where)

    def _print(self, topic: str, one: Browsed) -> None:
        document = as_document(topic, one)
        if self._options.json:
            emit_line(document)
            return
        body = json.dumps(document["data"], ensure_ascii=False) if document["data"] is not None else ""
        text = body if len(body) <= 200 else body[:199] + "…"
        key = f" key={document['key']}" if document["key"] is not None else ""
        print(f"{stamp(one.stored_at)} {document['type'] or topic} {document['id']}{key} {text}".rstrip(), flush=True)


def _data(body: bytes) -> Any:
    try:
        return json.loads(body)
    except (ValueError, RecursionError):
        return None


def _condition(text: str) -> Callable[[dict[str, Any]], bool]:
    """Return what a ``--where`` asks for, as a test of a document.

    Raises:
        argparse.ArgumentTypeError: it is not FIELD=VALUE, or no event has such a field.
    """
    path, equals, wanted = text.partition("=")
    if not equals or not path:
        raise argparse.ArgumentTypeError(f"{text!r} is not FIELD=VALUE, for example data.customer.id=7")
    steps = path.split(".")
    if steps[0] not in _FIELDS:
        hint = did_you_mean(steps[0], _FIELDS) or f"it is one of {', '.join(_FIELDS)}"
        raise argparse.ArgumentTypeError(f"an event has no field {steps[0]!r}: {hint}")

    def holds(document: dict[str, Any]) -> bool:
        value: Any = document
        for step in steps:
            try:
                value = value[int(step) if isinstance(value, list) else step]
            except (KeyError, IndexError, TypeError, ValueError):
                return False
        return wanted == (value if isinstance(value, str) else json.dumps(value))

    return holds
