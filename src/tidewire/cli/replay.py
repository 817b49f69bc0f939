"""``tidewire replay``: give a group events once more, from a time or a position, after a look at what that means."""

from __future__ import annotations

import argparse
import re
from collections.abc import Sequence
from contextlib import AsyncExitStack
from datetime import datetime

from tidewire.chance import UUID7Ids
from tidewire.cli.brokers import Broker, broker_parser, point_in_time, run_with_broker
from tidewire.cli.dlq_options import agreed, operator
from tidewire.cli.exits import FAILED, OK
from tidewire.cli.shown import Progress, emit, stamp, table
from tidewire.clock import SystemClock
from tidewire.config import open_store, settings_from
from tidewire.errors import ConfigurationError
from tidewire.model import Act
from tidewire.operations.audit import ledger_of
from tidewire.operations.replays import Preview, beyond_marks, look_ahead, replay

__all__ = ["main"]

DESCRIPTION = """\
Move a group's cursor on a topic back (or forward). First it says how many events that is, and of which types.

What has taken effect is skipped, so a replay repairs: only what was missed happens. With --again everything from
there on takes effect once more; that needs the group's store, which forgets what has happened. Inbox marks live
for 35 days: a replay from further back is refused, but for --again and --force.
The group's service must not run meanwhile.
"""
EPILOG = """\
examples:
  tidewire replay shop.order --group billing --from 2h --dry-run
  tidewire replay shop.order --group billing --from 2026-11-24T09:00:00Z
  tidewire replay shop.order --group reports --from 1 --again --store sqlite:///data/reports.db --yes

exit codes:
  0  done, or looked at
  1  the question was answered with no
  2  a person must change something: arguments, settings, a service that still runs, no terminal to ask on
  3  the broker or the store is unavailable: time may help
"""


def main(arguments: Sequence[str]) -> int:
    """Preview and do a replay, and return the exit code."""
    parser = broker_parser("tidewire replay", DESCRIPTION, epilog=EPILOG)
    parser.add_argument("topic", metavar="TOPIC")
    parser.add_argument("--group", required=True, metavar="GROUP", help="whose cursor; no other group notices")
    parser.add_argument(
        "--from", dest="start", required=True, type=_start, metavar="TIME|POSITION",
        help="a time (2026-11-24T09:00:00Z), a duration ago (2h), or a position as `tidewire tail --json` shows it",
    )  # fmt: skip
    parser.add_argument("--again", action="store_true", help="execute what has happened once more")
    parser.add_argument("--store", metavar="URL", help="for --again: the group's own database")
    parser.add_argument("--force", action="store_true", help="also where inbox marks may be gone: older than 35 days")
    parser.add_argument("--dry-run", action="store_true", help="only say what it means")
    parser.add_argument("--yes", action="store_true", help="do not ask")
    options = parser.parse_all(arguments)
    if options.again and not settings_from(store=options.store).store:
        parser.error("--again needs the group's store: --store or TIDEWIRE_STORE")
    return run_with_broker(options, lambda broker: _act(broker, options))


async def _act(broker: Broker, options: argparse.Namespace) -> int:
    progress = Progress("messages read:")
    preview = await look_ahead(broker, options.topic, options.group, to=options.start, progress=progress.at)
    progress.end()
    if not options.json:
        _print(preview, options)
    if options.dry_run:
        return _end(preview, options, moved=False, run=None)
    if not options.again and not options.force and beyond_marks(preview, SystemClock().now_us()):
        raise ConfigurationError(
            f"the oldest event is from {stamp(preview.first_at)}: without inbox marks it may take effect again",
            hint="begin later; or --force accepts that, and --again means it",
        )
    if not agreed(options, f"replay for {options.group}?"):
        return FAILED
    async with AsyncExitStack() as stack:
        url = settings_from(store=options.store).store
        store = await stack.enter_async_context(open_store(url, create=False)) if options.again else None
        run = await replay(broker, options.topic, options.group, to=options.start, again=store)
    act = Act(
        id=UUID7Ids().event_id(),
        at=SystemClock().now_us(),
        who=operator().who,
        verb="replay",
        topic=options.topic,
        group=options.group,
        reason="again" if options.again else "repair",
        count=preview.messages,
    )
    await ledger_of(broker).note(act)
    return _end(preview, options, moved=True, run=run)


def _end(preview: Preview, options: argparse.Namespace, *, moved: bool, run: int | None) -> int:
    if options.json:
        emit(
            {
                "topic": options.topic,
                "group": options.group,
                "messages": preview.messages,
                "types": dict(preview.types),
                "first_at": preview.first_at,
                "last_at": preview.last_at,
                "members": preview.owners,
                "again": options.again,
                "moved": moved,
                "run": run,
            }
        )
    elif moved:
        print(f"Moved. Start the service: {options.group} gets them now.")
    else:
        print("Nothing changed: this was a dry run.")
    return OK


def _print(preview: Preview, options: argparse.Namespace) -> None:
    what = "take effect once more" if options.again else "come again; what has taken effect is skipped"
    print(f"{preview.messages:,} events of {options.topic} {what} for {options.group}:")
    table(("type", "events"), sorted(preview.types.items()), right=(1,))
    print(f"from {stamp(preview.first_at)} to {stamp(preview.last_at)}")
    if preview.owners:
        print(f"{preview.owners} members are active: the service must be stopped first.")


def _start(text: str) -> int | str | datetime:
    """Return a position, or a time. One of Kafka names an offset in each lane: ``2:10.4.7``.

    Raises:
        argparse.ArgumentTypeError: it is neither.
    """
    if re.fullmatch(r"[0-9]+:[0-9.]+", text):
        return text
    return int(text) if text.isdigit() else point_in_time(text)
