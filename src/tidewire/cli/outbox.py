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
from tidewire.model import OutboxState, Stuck
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
    parser.add_argument("--provision", action="store_true", help="for flush: create missing topics")
    parser.add_argument("--json", action="store_true", help="JSON on standard output")
    options = parser.parse_all(arguments)
    if options.verb == "requeue" and bool(options.rows) == options.all:
        parser.error("requeue takes row numbers, or --all")
    settings = settings_from(store=options.store, broker=options.broker, provision=options.provision or None)
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
            left = await relay_once(
                store, transport, owner=owner, longest=options.longest, provision=settings.provision
            )
            reached = left >= 0
        elif options.verb == "requeue":
            rows = [one.row for one in await _stuck(store)] if options.all else options.rows
            return await _requeue(store, rows, as_json=options.json)
        else:
            return _show(await _stuck(store), as_json=options.json)
    return _flushed(await look_at_store(settings.store).outbox(), reached, as_json=options.json)


async def _status(url: str, *, as_json: bool) -> int:
    state = await look_at_store(url).outbox()
    seconds = None if state.oldest_write is None else round(state.oldest_write / 1e6, 1)
    if as_json:
        emit(
            {
                "pending": state.ready + state.delayed,
                "delayed": state.delayed,
                "next_due": state.next_due,
                "stuck": state.stuck,
                "behind": state.behind,
                "stuck_since": state.stuck_since,
                "relayed": state.relayed,
                "oldest_write_s": seconds,
            }
        )
        return FAILED if state.stuck else OK
    rows = [("pending", f"{state.ready + state.delayed:,}"), ("of these delayed", f"{state.delayed:,}")]
    if state.next_due is not None:
        rows.append(("the first of these is due", stamp(state.next_due)))
    rows.append(("stuck", f"{state.stuck:,}"))
    if state.behind:
        rows.append(("of these behind a refused one", f"{state.behind:,}"))
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


def _flushed(state: OutboxState, reached: bool, *, as_json: bool) -> int:
    left = state.ready + state.delayed
    if as_json:
        emit(
            {
                "left": left,
                "ready": state.ready,
                "delayed": state.delayed,
                "next_due": state.next_due,
                "stuck": state.stuck,
                "behind": state.behind,
                "reached": reached,
                "relayed": state.relayed,
            }
        )
        return OK if reached and not left else FAILED
    print(f"{left} rows are left, {state.stuck} are stuck.")
    if state.ready or not reached:
        print(f"  {state.ready} may leave now: {_why(state, reached)}.")
    if state.delayed:
        due = "" if state.next_due is None else f": the first is at {stamp(state.next_due)}"
        print(f"  {state.delayed} not due{due}.")
    if state.stuck:
        print(f"  {state.stuck - state.behind} refused by the broker: `tidewire outbox stuck` shows what it said.")
    if state.behind:
        print(f"  {state.behind} held back by those, whose key they have.")
    return OK if reached and not left else FAILED


def _why(state: OutboxState, reached: bool) -> str:
    if not reached:
        return "the broker or the store was not there, or the broker did not store them"
    return "another process relays this outbox" if state.relayed else "--longest was too short for them"
