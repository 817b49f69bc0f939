"""``tidewire store``: the tables that tidewire keeps in a service's own database."""

from __future__ import annotations

import argparse
import asyncio
from collections.abc import Sequence

from tidewire.cli.exits import FAILED, OK, CommandParser, whole_number
from tidewire.cli.shown import emit, table
from tidewire.config import masked, settings_from, store_tables
from tidewire.errors import ConfigurationError
from tidewire.protocols import StoreTables

__all__ = ["main"]

DESCRIPTION = """\
See to the tables that tidewire keeps in a service's own database: which version they are of (status), bring them up
to date (upgrade), or print the SQL that would (sql), for whoever applies it by hand.
"""
EPILOG = """\
examples:
  tidewire store status --store postgresql://shop@db/shop
  tidewire store upgrade --store postgresql://owner@db/shop
  tidewire store sql --store 'postgresql://shop@db/shop?schema=billing'

`tidewire run` never changes the tables of a PostgreSQL database, unless --provision says so; it refuses older and newer
ones. A SQLite file is upgraded by the service that opens it.
`sql` connects to nothing, and takes the names of the tables from --store; --from says which version is there.
exit code 1: the tables are missing or older (status)
"""


def main(arguments: Sequence[str]) -> int:
    """Look at a store's tables or upgrade them, and return the exit code."""
    parser = CommandParser("tidewire store", DESCRIPTION, epilog=EPILOG)
    parser.add_argument("verb", choices=("status", "upgrade", "sql"), nargs="?", default="status")
    parser.add_argument("--store", metavar="URL", help="the service's own database (the setting store)")
    parser.add_argument(
        "--from",
        dest="version",
        type=whole_number(0),
        default=0,
        metavar="VERSION",
        help="for sql: 0, none, unless given",
    )
    parser.add_argument("--json", action="store_true", help="JSON on standard output")
    options = parser.parse_all(arguments)
    url = settings_from(store=options.store).store
    if not url or url.startswith("memory:"):
        raise ConfigurationError("no store is named", hint="--store postgresql://user@host/database, or TIDEWIRE_STORE")
    tables = store_tables(url)
    if options.verb == "sql":
        return _sql(tables, options)
    return asyncio.run(
        _upgrade(tables, options) if options.verb == "upgrade" else _status(tables, options, masked(url))
    )


def _sql(tables: StoreTables, options: argparse.Namespace) -> int:
    if options.version > tables.needed:
        raise ConfigurationError(
            f"--from {options.version}: this tidewire knows the versions 0 (no tables yet) to {tables.needed}",
            hint="`tidewire store status` says which version is there",
        )
    statements = tables.sql(options.version)
    if options.json:
        emit({"statements": list(statements)})
    elif not statements:
        print(f"-- Nothing to do: version {tables.needed} is the newest.")
    else:
        print("BEGIN;")
        for statement in statements:
            print(f"{statement};")
        print("COMMIT;")
    return OK


async def _upgrade(tables: StoreTables, options: argparse.Namespace) -> int:
    before, now = await tables.upgrade()
    if options.json:
        emit({"before": before, "version": now})
    elif before == now:
        print(f"Nothing to do: the tables are of version {now}.")
    else:
        print(f"The tables are of version {now} now; before, {f'of {before}' if before else 'there were none'}.")
    return OK


async def _status(tables: StoreTables, options: argparse.Namespace, url: str) -> int:
    found, needed = await tables.versions()
    facts = list(await tables.facts())
    state = "up to date" if found == needed else "newer" if found > needed else "older" if found else "missing"
    if options.json:
        emit({"store": url, "version": found, "needed": needed, "state": state, "tables": dict(facts)})
    else:
        table(("store", url), [("version", f"{found} of {needed}: {state}"), *facts])
        if state in ("older", "missing"):
            print("`tidewire store upgrade` brings them up to date; `tidewire store sql` prints how.")
    return OK if found == needed else FAILED
