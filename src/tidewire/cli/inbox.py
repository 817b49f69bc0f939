"""``tidewire inbox``: the marks by which a service's store knows what has taken effect."""

from __future__ import annotations

import argparse
import asyncio
from collections.abc import Sequence
from datetime import timedelta

from tidewire.cli.brokers import duration
from tidewire.cli.exits import OK, CommandParser
from tidewire.cli.shown import Progress, emit, stamp, table
from tidewire.clock import SystemClock
from tidewire.config import look_at_store, open_store, settings_from
from tidewire.errors import ConfigurationError
from tidewire.rules.letters import DEDUP_WINDOW

__all__ = ["main"]

DESCRIPTION = """\
Look at the inbox marks of a service's store (status), or remove old ones now (prune). A mark makes an effect happen
once: an event that comes again after its mark is gone takes effect again.
"""
EPILOG = """\
examples:
  tidewire inbox status --store sqlite:///data/billing.db
  tidewire inbox prune --store postgresql://shop@db/shop

A service that relays prunes by itself what is older than 35 days, a batch now and then: prune is for a store whose
service is gone, or has been away for long.
"""
_BATCH = 1_000


def main(arguments: Sequence[str]) -> int:
    """Look at the marks or prune them, and return the exit code."""
    parser = CommandParser("tidewire inbox", DESCRIPTION, epilog=EPILOG)
    parser.add_argument("verb", choices=("status", "prune"), nargs="?", default="status")
    parser.add_argument("--store", metavar="URL", help="the service's own database (the setting store)")
    parser.add_argument(
        "--older-than", type=duration, default=DEDUP_WINDOW, metavar="TIME", help="for prune: 35d unless given"
    )
    parser.add_argument("--force", action="store_true", help="for prune: also what is younger than 35 days")
    parser.add_argument("--json", action="store_true", help="JSON on standard output")
    options = parser.parse_all(arguments)
    url = settings_from(store=options.store).store
    if not url or url.startswith("memory:"):
        raise ConfigurationError(
            "inbox marks are in a service's store, and none is named",
            hint="--store sqlite:///path, or TIDEWIRE_STORE",
        )
    if options.verb == "status":
        return asyncio.run(_status(url, as_json=options.json))
    if options.older_than < DEDUP_WINDOW and not options.force:
        raise ConfigurationError(
            "what a dead letter or a replay brings back within 35 days would take effect again without its mark",
            hint="leave --older-than out, or give --force as well",
        )
    return asyncio.run(_prune(url, options))


async def _status(url: str, *, as_json: bool) -> int:
    open_store(url, create=False)  # refuses a file that is not there
    groups = await look_at_store(url).inbox()
    if as_json:
        emit({"groups": [{"group": one.group, "marks": one.marks, "oldest": one.oldest} for one in groups]})
    elif not groups:
        print("There are no marks.")
    else:
        table(
            ("group", "marks", "oldest"),
            [(one.group, f"{one.marks:,}", stamp(one.oldest)) for one in groups],
            right=(1,),
        )
    return OK


async def _prune(url: str, options: argparse.Namespace) -> int:
    older: timedelta = options.older_than
    before = SystemClock().now_us() - older // timedelta(microseconds=1)
    gone = 0
    progress = Progress("marks removed:")
    async with open_store(url, create=False) as store:
        while batch := await store.inbox.prune(before, _BATCH):
            gone += batch
            progress.at(gone)
    progress.end()
    if options.json:
        emit({"pruned": gone})
    else:
        print(f"{gone:,} marks are gone.")
    return OK
