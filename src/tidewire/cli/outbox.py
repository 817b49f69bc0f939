"""``tidewire outbox``: what a service's store has still to publish, and what the broker would not take."""

from __future__ import annotations

import argparse
import asyncio
from collections.abc import Sequence
from contextlib import AsyncExitStack
from datetime import timedelta
from typing import Any

from tidewire.chance import UUID7Ids
from tidewire.cli.brokers import duration
from tidewire.cli.exits import FAILED, OK, CommandParser
from tidewire.cli.shown import emit, stamp, table
from tidewire.config import Settings, look_at_store, open_store, open_transport, settings_from
from tidewire.errors import ConfigurationError
from tidewire.model import Stuck
from tidewire.protocols import Store
from tidewire.runtime.serve import relay_once

__all__ = ["main"]

DESCRIPTION = """\
Look at the outbox of a service's store: what waits to be published (status), what the broker has refused for good
and what waits behind that (stuck). Publish what is due from here (flush), or let refused rows try again (requeue).
"""
EPILOG = """\
examples:
  tidewire outbox status --store sqlite:///data/billing.db
  tidewire outbox stuck --store sqlite:///data/billing.db
  tidewire outbox requeue --all --store sqlite:///data/billing.db
  tidewire outbox flush --store sqlite:///data/billing.db --broker sqlite:///data/broker.db

A service that runs publishes its outbox by itself: flush is for a store whose service is gone.
exit code 1: rows are left (flush), or rows are stuck (status)
"""
_ALL = 10_000


def main(arguments: Sequence[str]) -> int:
    """Look at an outbox or act on it, and return the exit code."""
    parser = CommandParser("tidewire outbox", DESCRIPTION, epilog=EPILOG)
    parser.add_argument("verb", choices=("status", "stuck", "flush", "requeue"), nargs="?", default="status")
    parser.add_argument("rows", nargs="*", type=int, metavar="ROW", help="for requeue: numbers as `stuck` shows them")
    parser.add_argument("--store", metavar="URL", help="the service's own database (the setting store)")
    parser.add_argument("--broker", metavar="URL", help="for flush: the broker (the setting broker)")
    parser.add_argument("--all", action="store_true", help="for requeue: every stuck row")
    parser.add_argument("--longest", type=duration, default=timedelta(seconds=30), metavar="TIME", help="for flush")
    parser.add_argument("--json", action="store_true", help="JSON on standard output")
    options = parser.parse_all(arguments)
    if options.verb == "requeue" and bool(options.rows) == options.all:
        parser.error("requeue takes row numbers, or --all")
    settings = settings_from(store=options.store, broker=options.broker)
    if not settings.store or settings.store.startswith("memory:"):
        raise ConfigurationError(
            "an outbox is in a service's store, and none is named", hint="--store sqlite:///path, or TIDEWIRE_STORE"
        )
    return asyncio.run(_act(options, settings))


async def _act(options: argparse.Namespace, settings: Settings) -> int:
    opening = open_store(settings.store, create=False)  # refuses a file that is not there
    if options.verb == "status":
        return await _status(settings.store, as_json=options.json)
    async with AsyncExitStack() as stack:
        store = await stack.enter_async_context(opening)
        if options.verb == "flush":
            transport = await stack.enter_async_context(open_transport(settings.broker, create=False))
            owner = f"tidewire-cli-{UUID7Ids().event_id()}"
            left = await relay_once(store, transport, owner=owner, longest=options.longest)
            return await _flushed(store, left, as_json=options.json)
        if options.verb == "requeue":
            rows = [one.row for one in await _stuck(store)] if options.all else options.rows
            return await _requeue(store, rows, as_json=options.json)
        return _show(await _stuck(store), as_json=options.json)


async def _status(url: str, *, as_json: bool) -> int:
    state = await look_at_store(url).outbox()
    seconds = None if state.oldest_write is None else round(state.oldest_write / 1e6, 1)
    if as_json:
        emit(
            {
                "pending": state.ready + state.delayed,
                "delayed": state.delayed,
                "stuck": state.stuck,
                "stuck_since": state.stuck_since,
                "relayed": state.relayed,
                "oldest_write_s": seconds,
            }
        )
        return FAILED if state.stuck else OK
    rows = [("pending", f"{state.ready + state.delayed:,}"), ("of these delayed", f"{state.delayed:,}")]
    rows.append(("stuck", f"{state.stuck:,}"))
    if state.stuck_since is not None:
        rows.append(("stuck since", stamp(state.stuck_since)))
    if state.relayed is not None:
        rows.append(("a relay works on it", "yes" if state.relayed else "no"))
    if seconds is not None:
        rows.append(("oldest open write transaction", f"{seconds} s"))
    table(("outbox", ""), rows, right=(1,))
    return FAILED if state.stuck else OK


async def _stuck(store: Store) -> list[Stuck]:
    found: list[Stuck] = []
    while page := await store.outbox.stuck(after=found[-1].row if found else 0, limit=500):
        found += page
        if len(found) >= _ALL:
            break
    return found


def _show(rows: Sequence[Stuck], *, as_json: bool) -> int:
    if as_json:
        emit({"stuck": [_document(one) for one in rows]})
    elif not rows:
        print("Nothing is stuck.")
    else:
        table(
            ("row", "since", "type", "key", "attempts", "event", "the broker said"),
            [
                (one.row, stamp(one.at), one.message.headers.get("ce-type", ""), one.message.key, one.attempts,
                 one.message.id, one.detail)
                for one in rows
            ],
            right=(0, 4),
        )  # fmt: skip
    return OK


def _document(one: Stuck) -> dict[str, Any]:
    return {
        "row": one.row,
        "at": one.at,
        "id": one.message.id,
        "type": one.message.headers.get("ce-type", ""),
        "key": one.message.key,
        "attempts": one.attempts,
        "detail": one.detail,
    }


async def _requeue(store: Store, rows: Sequence[int], *, as_json: bool) -> int:
    moved = await store.outbox.requeue(rows)
    if as_json:
        emit({"requeued": moved})
    else:
        print(f"{moved} of {len(rows)} rows leave again." if moved else "Nothing changed: no such row is stuck.")
    return OK


async def _flushed(store: Store, left: int, *, as_json: bool) -> int:
    _, stuck = await store.outbox.count()
    if as_json:
        emit({"left": max(left, 0), "stuck": stuck, "reached": left >= 0})
    elif left < 0:
        print("The broker or the store could not be reached; what is there stays there.")
    else:
        print(f"{left} rows are left (delayed ones included), {stuck} are stuck.")
    return OK if left == 0 else FAILED
