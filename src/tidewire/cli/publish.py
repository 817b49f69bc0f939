"""``tidewire publish``: an event from JSON, checked against its class before it leaves."""

from __future__ import annotations

import argparse
import asyncio
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, cast

import msgspec

from tidewire.cli.brokers import duration
from tidewire.cli.exits import OK, CommandParser, did_you_mean, warn
from tidewire.cli.shown import Progress, emit_line
from tidewire.cli.target import find_event
from tidewire.config import Settings, open_transport, settings_from
from tidewire.errors import ConfigurationError, DecodeError
from tidewire.model import ZERO
from tidewire.rules.events import EventType
from tidewire.runtime.parts import Parts
from tidewire.runtime.serve import Options, open_publisher

__all__ = ["main"]

DESCRIPTION = """\
Publish an event of a class of yours, from JSON. The class checks it first: what is not such an event never leaves.
Prints the id when the broker has stored it.
"""
EPILOG = """\
examples:
  tidewire publish shop.events:OrderPlaced --data '{"order_id": "1", "total": "9.90"}'
  tidewire publish shop.events:OrderPlaced --data @order.json --delay 10m
  cat orders.jsonl | tidewire publish shop.events:OrderPlaced --data - --lines --json

With --lines each line is one event; the first bad line ends the command with its number, those before it are out.
Publishing again with the same --id is always right.
"""
_BATCH = 200


def main(arguments: Sequence[str]) -> int:
    """Publish, and return the exit code.

    Raises:
        ConfigurationError: no such class, or data that is not such an event; names the line and the path.
        PublishRejected, PublishUnknown, TransportUnavailable, TransportRefused: the broker has not stored it.
    """
    parser = CommandParser("tidewire publish", DESCRIPTION, epilog=EPILOG)
    parser.add_argument("event", metavar="module:Class", help="the event's class, for example shop.events:OrderPlaced")
    parser.add_argument("--data", required=True, metavar="JSON", help="the event, @file, or - for standard input")
    parser.add_argument("--lines", action="store_true", help="JSON lines: one event in each")
    parser.add_argument("--broker", metavar="URL", help="the broker (default: the setting broker, TIDEWIRE_BROKER)")
    parser.add_argument("--source", default="tidewire-cli", metavar="NAME", help="the CloudEvents source")
    parser.add_argument("--id", metavar="ID", help="the event's id, so that a repeat is recognised")
    parser.add_argument("--delay", type=duration, default=ZERO, metavar="TIME", help="not before: 90s, 15m, 2h")
    parser.add_argument(
        "--provision", action="store_true", help="create the topic, or the broker's file, if it is missing"
    )
    parser.add_argument("--json", action="store_true", help="one JSON object for each event")
    options = parser.parse_all(arguments)
    if options.id == "":
        parser.error("--id is empty, so a repeat would not be recognised")
    if options.lines and options.id:
        parser.error("--id names one event, --lines brings many")
    settings = settings_from(broker=options.broker, provision=options.provision or None)
    if settings.broker.startswith("memory:"):
        raise ConfigurationError(
            "a memory:// broker would be gone when this command ends", hint="name one with --broker or TIDEWIRE_BROKER"
        )
    definition = find_event(options.event)
    events = _events(definition, options)
    return asyncio.run(_publish(definition, events, options, settings))


async def _publish(
    definition: EventType, events: Iterator[Any], options: argparse.Namespace, settings: Settings
) -> int:
    progress = Progress("events published:")
    count = 0
    async with (
        open_transport(settings.broker, create=settings.provision) as transport,
        open_publisher(
            options.source, transport=transport, options=Options(provision=settings.provision, lanes=settings.lanes)
        ) as publisher,
    ):
        bad: ConfigurationError | None = None
        while bad is None:
            batch, bad = _take(events)
            if not batch:
                break
            if options.id or options.delay:
                ids = [await publisher.publish(event, id=options.id or "", delay=options.delay) for event in batch]
            else:
                ids = list(await publisher.publish_all(batch))
            count += len(ids)
            _print(definition, ids, as_json=options.json)
            progress.at(count)
    progress.end()
    if bad is not None:
        raise bad
    return OK


def _take(events: Iterator[Any]) -> tuple[list[Any], ConfigurationError | None]:
    """Return up to a batch of events, and the error that ended it: those before a bad one are to go out."""
    batch: list[Any] = []
    try:
        for event in events:
            batch.append(event)
            if len(batch) == _BATCH:
                break
    except ConfigurationError as error:
        return batch, error
    return batch, None


def _events(definition: EventType, options: argparse.Namespace) -> Iterator[Any]:
    """Read and check events.

    Raises:
        ConfigurationError: at the first that is none, with its line.
    """
    codec = Parts().codec_for(definition.cls)
    told = set[str]()
    data = _read(options.data)
    for number, line in enumerate(data.splitlines() if options.lines else [data], 1):
        if options.lines and not line.strip():
            continue
        try:
            event = codec.decode(line)
        except DecodeError as error:
            where = f"line {number}" if options.lines else "--data"
            raise ConfigurationError(
                f"{where} is no {definition.type}: {error.message}", hint=_shape(definition)
            ) from None
        left_out = _left_out(line, codec.encode(event), definition) - told
        for name in sorted(left_out):
            near = did_you_mean(name, _fields(definition))
            warn(f"{definition.cls.__qualname__} has no field {name!r}: it is left out" + (f"; {near}" if near else ""))
        told |= left_out
        yield event


def _left_out(given: bytes, made: bytes, definition: EventType) -> set[str]:
    """Return the names in *given* that neither the event *made* of it nor its class knows: newer fields, or typos."""
    found, kept = msgspec.json.decode(given), msgspec.json.decode(made)
    if not isinstance(found, dict) or not isinstance(kept, dict):
        return set()
    names = cast("dict[str, object]", found), cast("dict[str, object]", kept)
    return set(names[0]) - set(names[1]) - set(_fields(definition))


def _fields(definition: EventType) -> list[str]:
    return [name for cls in definition.cls.__mro__ for name in getattr(cls, "__annotations__", {})]


def _shape(definition: EventType) -> str:
    return f"{definition.cls.__qualname__} has the fields: {', '.join(_fields(definition))}"


def _read(data: str) -> bytes:
    if data == "-":
        return sys.stdin.buffer.read()
    if not data.startswith("@"):
        return data.encode()
    try:
        return Path(data[1:]).read_bytes()
    except OSError as error:
        raise ConfigurationError(f"--data {data}: {error.strerror}", hint="@ names a file") from None


def _print(definition: EventType, ids: Sequence[str], *, as_json: bool) -> None:
    for event_id in ids:
        if as_json:
            emit_line({"id": event_id, "type": definition.type, "topic": definition.topic})
        else:
            print(event_id)
