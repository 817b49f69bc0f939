"""``tidewire dlq export | import``: dead letters into a file, and back into their dead channels."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

from tidewire.cli.brokers import Broker, broker_parser, run_with_broker
from tidewire.cli.dlq_options import operator, selecting_parser, selection_of
from tidewire.cli.exits import OK, CommandParser
from tidewire.cli.shown import emit
from tidewire.clock import SystemClock
from tidewire.operations.letter_files import export_letters, import_letters, read_file

__all__ = ["export_parser", "exported", "import_parser", "imported"]


def export_parser() -> CommandParser:
    """Return the parser of ``dlq export``."""
    parser = selecting_parser(
        "export",
        "Write dead letters to a file, one JSON object a line, with every header and the body. They stay where they\n"
        "are. The file is readable for its owner only; it appears whole or not at all.",
        examples="  tidewire dlq export --group billing --output letters.jsonl",
    )
    parser.add_argument("--output", required=True, metavar="FILE", help="the file; one that is there is replaced")
    return parser


def exported(arguments: Sequence[str]) -> int:
    """Export dead letters, and return the exit code."""
    options = export_parser().parse_all(arguments)
    now = SystemClock().now_us()

    async def act(broker: Broker) -> int:
        count = await export_letters(broker, selection_of(options, now=now), Path(options.output))
        if options.json:
            emit({"file": options.output, "count": count})
        else:
            print(f"{count} dead letters in {options.output}")
        return OK

    return run_with_broker(options, act)


def import_parser() -> CommandParser:
    """Return the parser of ``dlq import``."""
    parser = broker_parser(
        "tidewire dlq import",
        "Put exported letters back into their dead channels, in the order of the file; `dlq redrive` takes them from\n"
        "there. A letter that is there already is skipped. Damaged lines are named, and then nothing is imported.",
        epilog="example:\n  tidewire dlq import letters.jsonl --dry-run",
    )
    parser.add_argument("file", metavar="FILE", help="what `dlq export` wrote")
    parser.add_argument("--dry-run", action="store_true", help="check every line and change nothing")
    return parser


def imported(arguments: Sequence[str]) -> int:
    """Import dead letters, and return the exit code."""
    options = import_parser().parse_all(arguments)

    async def act(broker: Broker) -> int:
        path = Path(options.file)
        if options.dry_run:
            counts = await read_file(path)
            channels = [{"topic": one.topic, "group": one.group, "count": count} for one, count in counts.items()]
            if options.json:
                emit({"dry_run": True, "lines": sum(counts.values()), "channels": channels})
                return OK
            for channel in channels:
                print(f"would import {channel['count']} of group {channel['group']} on topic {channel['topic']}")
            print(f"{sum(counts.values())} letters, no line is damaged", file=sys.stderr)
            return OK
        result = await import_letters(broker, path, by=operator())
        if options.json:
            seen = {"lines": result.lines, "added": result.added, "there": result.there}
            emit({"dry_run": False, "act": result.act_id, "changed": result.changed, **seen})
        else:
            print(f"imported {result.added} dead letters" if result.changed else "nothing changed")
            print(f"{result.there} of {result.lines} were there already")
        return OK

    return run_with_broker(options, act)
