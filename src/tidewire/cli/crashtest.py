"""``tidewire crashtest module:service --events FILE``: which handler repeats an effect when its process dies."""

from __future__ import annotations

import argparse
import inspect
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tidewire.cli.exits import FAILED, OK, CommandParser
from tidewire.cli.shown import Progress, emit
from tidewire.cli.target import find_function, find_service
from tidewire.config import settings_from
from tidewire.errors import ConfigurationError

if TYPE_CHECKING:
    from tidewire.testing.simulation.crashtest import Incoming, Probe, Setting, Verdict

__all__ = ["main"]

DESCRIPTION = """\
Run the handlers of a service in a simulation: once without a crash, then once for each point at which its process can
die, and once for each event that the broker hands out twice. Say which handler repeats or loses an effect, with the
shortest history that shows it. Nothing is connected to: the broker and the store are in memory, the network is shut.
"""
EPILOG = """\
examples:
  tidewire crashtest shop.billing:billing --events orders.jsonl
  tidewire crashtest shop.billing:billing --events orders.jsonl --probe shop.outside:world
  tidewire crashtest shop.billing:billing --events orders.jsonl --store sqlite:///data/billing.db --points 200 --json

FILE has one event in each line: {"type": "shop.order.placed", "data": {...}}, or a CloudEvent in JSON.
The store's file is copied and not changed. The probe prepares what the service calls, and looks at it in the end.

exit codes:
  0  idempotent, as far as was tried
  1  a handler is not idempotent
  2  a person must change something: no such service or probe, a line that is no event, a service that does not run
"""
_SQLITE = "sqlite:///"


def main(arguments: Sequence[str]) -> int:
    """Test a service, print what was found, and return the exit code.

    Raises:
        ConfigurationError: no such service, probe or file; a line that is no event; a service that does not run.
        StoreRefused: the store's file is not one.
    """
    parser = CommandParser("tidewire crashtest", DESCRIPTION, epilog=EPILOG)
    parser.add_argument("target", metavar="module:service", help="where the service is")
    parser.add_argument(
        "--events", required=True, metavar="FILE", help="what comes in: JSON lines, - for standard input"
    )
    parser.add_argument("--probe", metavar="module:function", help="what prepares and looks at the outside")
    parser.add_argument("--store", metavar="URL", help="the tables to begin with (default: the setting store, or none)")
    parser.add_argument("--no-store", action="store_true", help="the service has no store")
    parser.add_argument("--points", type=_count, default=1_000, metavar="N", help="the most points to die at (1000)")
    parser.add_argument("--seconds", type=_count, default=120, metavar="N", help="the longest it may take (120)")
    parser.add_argument("--json", action="store_true", help="JSON on standard output, its keys documented and stable")
    options = parser.parse_all(arguments)
    if options.store and options.no_store:
        parser.error("--store and --no-store exclude each other")
    from tidewire.testing.simulation.crashtest import Limits, crash_test, events_in

    setting = _setting(options)
    incoming = events_in(_read(options.events), setting.service, where=options.events)
    progress = Progress("worlds run:", every=10)
    verdict = crash_test(
        setting,
        incoming,
        limits=Limits(points=options.points, seconds=options.seconds),
        on_progress=lambda done, of: progress.at(done),
    )
    progress.end()
    if options.json:
        emit(_document(setting, verdict, incoming))
    else:
        _print(setting, verdict, incoming)
    return OK if verdict.idempotent else FAILED


def _setting(options: argparse.Namespace) -> Setting:
    from tidewire.testing.simulation.crashtest import Setting, copied

    service = find_service(options.target)
    start: bytes | None = None
    if not options.no_store:
        store = settings_from(store=options.store).store or "memory://"
        if not store.startswith((_SQLITE, "memory:")):
            raise ConfigurationError(
                f"a crash test copies the tables of sqlite:/// stores, not of {store.partition(':')[0]}",
                hint="--store memory:// begins with an empty one",
            )
        start = copied(Path(store.removeprefix(_SQLITE))) if store.startswith(_SQLITE) else b""
    return Setting(service=service, start=start, probe=_probe(options.probe) if options.probe else None)


def _probe(target: str) -> Probe:
    """Return the probe that *target* names: ``probe(folder)`` prepares and returns what looks, ``probe()`` looks."""
    function = find_function(target)
    return function if inspect.signature(function).parameters else lambda folder: function


def _read(events: str) -> bytes:
    if events == "-":
        return sys.stdin.buffer.read()
    try:
        return Path(events).read_bytes()
    except OSError as error:
        raise ConfigurationError(f"--events {events}: {error.strerror}", hint="a file of JSON lines") from None


def _count(text: str) -> int:
    if not text.isascii() or not text.isdigit() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"a number above zero, not {text!r}")
    return int(text)


def _print(setting: Setting, verdict: Verdict, incoming: Sequence[Incoming]) -> None:
    from tidewire.testing.simulation.crashtest import told

    for defect in verdict.defects:
        print("\n".join(told(defect, incoming)), end="\n\n")
    print(
        f"{setting.service.name}: {len(incoming)} events, died at {verdict.tried} of {verdict.points} points, "
        f"{verdict.duplicates} duplicates"
    )
    print(f"compared: {', '.join(verdict.seen) or 'nothing, for nothing was done'}")
    for place, columns in verdict.varying.items():
        print(f"differs in every run, so only counted: {place} ({', '.join(columns)})")
    if setting.probe is None and not any(place.startswith("effect ") for place in verdict.seen):
        print("not compared: what is outside of the store and the broker; --probe names what looks there")
    print("idempotent, as far as was tried" if verdict.idempotent else "not idempotent")


def _document(setting: Setting, verdict: Verdict, incoming: Sequence[Incoming]) -> dict[str, Any]:
    from tidewire.testing.simulation.crashtest import told

    return {
        "idempotent": verdict.idempotent,
        "service": setting.service.name,
        "store": setting.start is not None,
        "events": len(incoming),
        "points": verdict.points,
        "tried": verdict.tried,
        "duplicates": verdict.duplicates,
        "compared": verdict.seen,
        "varying": verdict.varying,
        "defects": [
            {
                "handlers": defect.handlers,
                "lines": [incoming[number].line for number in defect.events],
                "crash": defect.where or None,
                "differences": defect.differences,
                "history": defect.history,
                "in_words": told(defect, incoming),
            }
            for defect in verdict.defects
        ],
    }
