"""``tidewire bridge``: copies topics from one broker to another, live, for a migration."""

from __future__ import annotations

import argparse
import asyncio
import signal
import sys
from collections.abc import Sequence
from contextlib import AsyncExitStack
from datetime import timedelta

from tidewire.chance import UUID7Ids
from tidewire.cli.brokers import Broker
from tidewire.cli.exits import OK, CommandParser, whole_number
from tidewire.cli.shown import Progress, emit
from tidewire.config import masked, open_transport
from tidewire.config.urls import one_file
from tidewire.errors import ConfigurationError
from tidewire.operations.bridging import Bridge, prepare
from tidewire.protocols import Transport

__all__ = ["main"]

DESCRIPTION = """\
Copy topics from one broker to another while both are in use. Ids, sources, keys and headers stay, so an inbox knows
what it has seen; of one key the order stays. What is copied is noted as the position of a group of its own, after the
other broker has confirmed it: killed at any point, the same command goes on, and repeats at most one batch.

RabbitMQ keeps nothing for a group that is made later: to it, --provision also makes the groups that read a topic on
FROM, and a topic without any is refused; from it, only what comes once this group is there is copied.

It ends when nothing is left, or with --follow at SIGTERM or Ctrl-C. Dead letters, and retries that wait, stay with
the groups they belong to: let those drain, and take dead letters along by `tidewire dlq export` and `import`.
"""
EPILOG = """\
examples:
  tidewire bridge sqlite:///data/broker.db kafka://kafka:9092 --topic shop.order --topic shop.payment --provision
  tidewire bridge sqlite:///data/broker.db postgresql://shop@db/broker --topic shop.order --follow

exit codes:
  0  nothing is left, or it was stopped
  2  a person must change something: a topic that is missing, an event that the other broker refuses
  3  a broker was away for longer than --patience: time may help
"""
_ONLY_LATER = "only what is published from now on is copied"


def main(arguments: Sequence[str]) -> int:
    """Copy, and return the exit code.

    Raises:
        ConfigurationError, TransportRefused, TransportUnavailable: as the exit codes say.
    """
    parser = CommandParser("tidewire bridge", DESCRIPTION, epilog=EPILOG)
    parser.add_argument("source", metavar="FROM", help="URL of the broker to copy from")
    parser.add_argument("target", metavar="TO", help="URL of the broker to copy to")
    parser.add_argument(
        "--topic", dest="topics", action="append", required=True, metavar="TOPIC", help="may be repeated"
    )
    parser.add_argument(
        "--group", default="tidewire-bridge", help="whose position on FROM it is (default: %(default)s)"
    )
    ends = parser.add_mutually_exclusive_group()
    ends.add_argument("--follow", action="store_true", help="copy what comes, until a signal")
    ends.add_argument("--until-empty", action="store_true", help="end when nothing is left (the default)")
    parser.add_argument(
        "--provision", action="store_true", help="make what is missing on TO: topics, and a broker's file or tables"
    )
    parser.add_argument(
        "--lanes", type=whole_number(1, 10_000), metavar="N", help="for --provision (default: as on FROM)"
    )
    parser.add_argument(
        "--patience", type=float, default=60.0, metavar="SECONDS", help="how long a side may be away (default: 60)"
    )
    parser.add_argument("--json", action="store_true", help="JSON on standard output, its keys documented and stable")
    options = parser.parse_all(arguments)
    if options.source == options.target or one_file(options.source, options.target):
        parser.error("FROM and TO are one broker")
    for url in (options.source, options.target):
        if url.startswith("memory:"):
            parser.error("a memory:// broker lives inside the process that runs it")
    return asyncio.run(_bridge(options))


async def _bridge(options: argparse.Namespace) -> int:
    topics = sorted(set(options.topics))
    progress = Progress("messages copied:", every=100)
    async with AsyncExitStack() as stack:
        source: Transport = await stack.enter_async_context(open_transport(options.source, create=False))
        if not isinstance(source, Broker):
            raise ConfigurationError(f"the broker {masked(options.source)} cannot be looked into")
        target = await stack.enter_async_context(open_transport(options.target, create=options.provision))
        begun = await prepare(
            source, target, topics, group=options.group, create=options.provision, lanes=options.lanes
        )
        if not begun and not source.capabilities.replay:
            print(
                f"{masked(options.source)} keeps nothing for a group that is made later: {_ONLY_LATER}", file=sys.stderr
            )
        member = f"bridge-{UUID7Ids().event_id()}"
        bridge = Bridge(source, target, group=options.group, topics=topics, member=member, progress=progress.at)
        patience = timedelta.max if options.follow else timedelta(seconds=options.patience)
        stopped = await _until_signal(bridge, until_empty=not options.follow, patience=patience)
    progress.end()
    copied = bridge.copied
    if options.json:
        emit({"stored": copied.stored, "known": copied.known, "topics": topics, "stopped": stopped})
    else:
        known = f", {copied.known:,} were there already" if copied.known else ""
        print(f"{copied.stored:,} messages copied{known}; {'stopped' if stopped else 'nothing is left'}.")
    return OK


async def _until_signal(bridge: Bridge, *, until_empty: bool, patience: timedelta) -> bool:
    """Run *bridge* to its end, or until SIGTERM or SIGINT: then True. What is on its way comes again."""
    loop, task = asyncio.get_running_loop(), asyncio.current_task()
    asked = asyncio.Event()
    assert task is not None, "it runs in one"

    def stop() -> None:
        if not asked.is_set():
            asked.set()
            task.cancel()

    signals = (signal.SIGTERM, signal.SIGINT)
    for number in signals:
        loop.add_signal_handler(number, stop)
    try:
        await bridge.run(until_empty=until_empty, patience=patience)
    except asyncio.CancelledError:
        if not asked.is_set() or task.uncancel() > 0:
            raise
    finally:
        for number in signals:
            loop.remove_signal_handler(number)
    return asked.is_set()
