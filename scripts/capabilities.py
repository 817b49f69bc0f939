"""Write what each broker declares into docs/brokers.md.

    python scripts/capabilities.py           open every broker, and write the table
    python scripts/capabilities.py --check   write nothing; fail where the page says something else

A server is the one that TIDEWIRE_TEST_… names, else a private one.
"""

from __future__ import annotations

import argparse
import asyncio
import sys
import tempfile
from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from datetime import timedelta
from functools import partial
from pathlib import Path

import kafka_server
import postgres_server
import rabbitmq_server
from conformance import DOCS, put

from tidewire.config import open_transport
from tidewire.protocols import Transport
from tidewire.testing.servers.processes import NoServer, given_or

PAGE = DOCS / "brokers.md"
BEGIN, END = "<!-- capabilities: written by make conformance -->", "<!-- capabilities: end -->"
_DURABLE = {
    "none": "none beyond the process",
    "os": "handed to the operating system",
    "fsync": "synced to disk",
    "replicated": "on the replicas that the server asks for",
}


@contextmanager
def _file() -> Generator[str]:
    with tempfile.TemporaryDirectory() as folder:
        yield f"sqlite:///{folder}/broker.db"


BROKERS: Mapping[str, Callable[[], AbstractContextManager[str]]] = {
    "memory": lambda: nullcontext("memory://"),
    "sqlite": _file,
    "postgresql": lambda: given_or(postgres_server.VARIABLE, partial(postgres_server.private_server, durable=True)),
    "kafka": lambda: given_or(kafka_server.VARIABLE, kafka_server.private_kafka),
    "amqp": lambda: given_or(rabbitmq_server.VARIABLE, rabbitmq_server.private_rabbit),
}
"""How to come by the URL of each broker, by its scheme."""


def column(transport: Transport) -> dict[str, str]:
    """Return what *transport* declares, in the words of the page."""
    can, finds = transport.capabilities, hasattr(transport, "find")
    return {
        "what a confirmed event is": _DURABLE[can.durability],
        "order by key": _yes(can.order),
        "a lane has one owner at a time": _yes(can.lanes),
        "a silent member loses its lanes": _yes(can.lease),
        "a stale owner is fenced, up to the store": _yes(can.fencing),
        "settling is one transaction": _yes(can.atomic),
        "the broker recognises an id that is repeated": "no" if can.dedup is None else f"for {_time(can.dedup)}",
        "the broker counts hand-outs": _yes(can.native_attempts),
        "what is settled can be replayed": _yes(can.replay),
        "longest delay": "any" if can.delay_max is None else _time(can.delay_max),
        "how long an event may stay unsettled": "for ever" if can.settle_window is None else _time(can.settle_window),
        "largest event, headers included": f"{can.message_bytes_max // 1024:,} KiB",
        "a topic can have a cap in bytes": _yes(can.size_cap),
        "`find` and `trace`": "by reading everything" if can.replay and not finds else _yes(finds),
        "acts of operators are kept with the messages": _yes(hasattr(transport, "note")),
    }


def _yes(can: bool) -> str:
    return "yes" if can else "no"


def _time(span: timedelta) -> str:
    return f"{span.days} days" if span.days else f"{span.seconds // 60} minutes"


async def declared(url: str) -> dict[str, str]:
    """Open the broker at *url* and return what it declares."""
    async with open_transport(url) as transport:
        return column(transport)


def table(columns: Mapping[str, Mapping[str, str]]) -> str:
    """Return the table, with a column to each scheme."""
    rows = next(iter(columns.values()))
    lines = ["| | " + " | ".join(f"`{scheme}:`" for scheme in columns) + " |", "| --- " * (1 + len(columns)) + "|"]
    lines += [f"| {row} | " + " | ".join(one[row] for one in columns.values()) + " |" for row in rows]
    return "\n".join(lines) + "\n"


def main(arguments: Sequence[str] | None = None) -> int:
    """Open every broker, and write or check the page."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--check", action="store_true", help="write nothing; fail where the page says something else")
    check = parser.parse_args(arguments).check
    columns: dict[str, dict[str, str]] = {}
    for scheme, opened in BROKERS.items():
        try:
            with opened() as url:
                columns[scheme] = asyncio.run(declared(url))
        except NoServer as error:
            print(f"error: {error}\nhint: nothing was written", file=sys.stderr)
            return 1
    page = PAGE.read_text("utf-8")
    wanted = put(page, table(columns), markers=(BEGIN, END))
    if check and page != wanted:
        print(f"error: {PAGE.name} says something else\nhint: run `make conformance`", file=sys.stderr)
        return 1
    if not check:
        PAGE.write_text(wanted, "utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
