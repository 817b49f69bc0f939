"""What commands that look into a broker share: their options, and opening it."""

from __future__ import annotations

import argparse
import asyncio
import re
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import asynccontextmanager
from datetime import datetime, timedelta
from typing import Protocol, runtime_checkable

from tidewire.cli.exits import CommandParser
from tidewire.clock import SystemClock
from tidewire.config import masked, open_transport, settings_from
from tidewire.errors import ConfigurationError
from tidewire.protocols import Finder, Inspector, Transport

__all__ = ["Broker", "broker_parser", "duration", "finder_of", "opened", "point_in_time", "run_with_broker"]

_DURATION = re.compile(r"(\d+(?:\.\d+)?)\s*(ms|s|m|min|h|d)\Z")
_UNITS = {"ms": 0.001, "s": 1.0, "m": 60.0, "min": 60.0, "h": 3_600.0, "d": 86_400.0}


@runtime_checkable
class Broker(Transport, Inspector, Protocol):
    """A transport that can be looked into."""


@runtime_checkable
class _Finding(Finder, Protocol):
    """What `isinstance` can see of a `Finder`."""


def broker_parser(prog: str, description: str, *, epilog: str = "") -> CommandParser:
    """Return a parser with ``--broker`` and ``--json``."""
    parser = CommandParser(prog, description, epilog=epilog)
    parser.add_argument("--broker", metavar="URL", help="the broker (default: the setting broker, TIDEWIRE_BROKER)")
    parser.add_argument("--json", action="store_true", help="JSON on standard output, its keys documented and stable")
    return parser


@asynccontextmanager
async def opened(options: argparse.Namespace) -> AsyncGenerator[Broker]:
    """Open the broker that *options* or the settings name.

    Raises:
        ConfigurationError: one that lives in a process, or cannot be looked into.
        TransportUnavailable, TransportRefused: it cannot be opened, or is not there.
    """
    settings = settings_from(broker=options.broker)
    if settings.broker.startswith("memory:"):
        raise ConfigurationError(
            "a memory:// broker lives inside the process that runs it: there is nothing to look into from outside",
            hint="name the broker with --broker or TIDEWIRE_BROKER",
        )
    async with open_transport(settings.broker, create=False) as transport:
        if not isinstance(transport, Broker):
            raise ConfigurationError(f"the broker {masked(settings.broker)} cannot be looked into")
        yield transport


def run_with_broker(options: argparse.Namespace, action: Callable[[Broker], Awaitable[int]]) -> int:
    """Open the broker, run *action* on it, and return its exit code."""

    async def act() -> int:
        async with opened(options) as broker:
            return await action(broker)

    return asyncio.run(act())


def finder_of(broker: Broker) -> Finder | None:
    """Return the broker as one that finds messages by id, or None: then they have to be read one by one."""
    found: object = broker
    return found if isinstance(found, _Finding) else None


def duration(text: str) -> timedelta:
    """Return a duration as people write it: ``90s``, ``15m``, ``2h``, ``7d``.

    Raises:
        argparse.ArgumentTypeError: it is not one.
    """
    found = _DURATION.match(text.strip())
    if found is None:
        raise argparse.ArgumentTypeError(f"{text!r} is no duration: 90s, 15m, 2h, 7d")
    return timedelta(seconds=float(found[1]) * _UNITS[found[2]])


def point_in_time(text: str) -> datetime:
    """Return a time as people write it: RFC 3339 (``2026-11-24T09:30:00Z``), or a duration ago (``2h``).

    Raises:
        argparse.ArgumentTypeError: it is neither, or has no time zone.
    """
    if _DURATION.match(text.strip()):
        return SystemClock().now() - duration(text)
    try:
        found = datetime.fromisoformat(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is no time: 2026-11-24T09:30:00Z, or 2h (ago)") from None
    if found.tzinfo is None:
        raise argparse.ArgumentTypeError(f"{text!r} has no time zone: add Z or +01:00")
    return found
