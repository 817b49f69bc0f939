"""Writers that commit out of order and roll back, readers of several kinds, and the checker that judges them all."""

from __future__ import annotations

import asyncio
import random
import threading
import time
from collections.abc import Mapping, Sequence
from datetime import timedelta

import psycopg

from tidewire.clock import SystemClock
from tidewire.kit.postgres.place import postgres_place
from tidewire.kit.postgres.pool import PostgresPool
from tidewire.model import Message, Topic
from tidewire.stores.postgres import open_postgres_store
from tidewire.stores.postgres.access import Access
from tidewire.stores.postgres.migrate import STORE_ERRORS
from tidewire.stores.postgres.outbox import PostgresOutbox

__all__ = ["CURSORS", "committed_by", "read_by_claims", "read_by_cursor", "wrong_about"]

Sent = dict[str, list[str]]
_COLUMNS = 'o.xid::text, o."row", o.aggregateid, o.id'
# What each reader asks for behind the last row that it has seen, and in which order.
CURSORS: Mapping[str, str] = {
    "row": 'WHERE o."row" > $2::bigint AND $1::text IS NOT NULL ORDER BY o."row" LIMIT 500',
    "row, below the horizon": (
        'WHERE o."row" > $2::bigint AND $1::text IS NOT NULL AND o.xid < pg_snapshot_xmin(pg_current_snapshot()) '
        'ORDER BY o."row" LIMIT 500'
    ),
    "xid and row": (
        'WHERE (o.xid, o."row") > ($1::text::xid8, $2::bigint) AND o.xid < pg_snapshot_xmin(pg_current_snapshot()) '
        'ORDER BY o.xid, o."row" LIMIT 500'
    ),
}


class Writers:
    """Threads that insert rows at once and commit them a while later, or never."""

    def __init__(self, url: str, *, writers: int, rows: int, batch: int, pause: float, seed: int = 1) -> None:
        place = postgres_place(url)
        access = Access(place, PostgresPool(place, STORE_ERRORS, size=1))
        self._outbox = PostgresOutbox(access, SystemClock(), poll=timedelta(seconds=1))
        self._url = place.url
        self._batch, self._pause = batch, pause
        self._each, self._seed = rows // writers, seed
        self.sent: Sent = {}
        self._threads = [threading.Thread(target=self._write, args=(number,)) for number in range(writers)]

    def start(self) -> None:
        """Begin to write."""
        for thread in self._threads:
            thread.start()

    def busy(self) -> bool:
        """Whether one of them still writes."""
        return any(thread.is_alive() for thread in self._threads)

    def _write(self, writer: int) -> None:
        chance = random.Random(f"{self._seed}-{writer}")
        number = 0
        with psycopg.connect(self._url) as connection, psycopg.RawCursor(connection) as cursor:
            while number < self._each:
                several = chance.randint(1, self._batch)
                rows = [
                    Message(Topic("t"), f"{writer}-{number + step}", "s", f"{writer}-{chance.randrange(50)}", {}, b"")
                    for step in range(several)
                ]
                cursor.execute(b"SELECT pg_current_xact_id()")  # the user's own rows come first
                time.sleep(chance.random() * self._pause)
                for sql, parameters in self._outbox.statements(self._outbox.rows(rows)):
                    cursor.execute(sql.encode(), list(parameters))
                time.sleep(chance.random() * self._pause)
                if chance.random() < 0.1:
                    connection.rollback()
                    continue
                connection.commit()
                number += several
                for row in rows:
                    self.sent.setdefault(row.key or "", []).append(row.id)


def read_by_cursor(
    url: str, cursor: str, *, writers: int, rows: int, batch: int = 3, pause: float = 0.01
) -> tuple[Sent, list[tuple[str, str]]]:
    """Let *writers* write and one reader of the kind *cursor* follow; return what was committed and what was seen."""

    async def prepare() -> None:
        async with open_postgres_store(url, provision=True):
            return

    asyncio.run(prepare())
    writing = Writers(url, writers=writers, rows=rows, batch=batch, pause=pause)
    seen: list[tuple[str, str]] = []
    last: tuple[str, int] = ("0", 0)
    sql = f"SELECT {_COLUMNS} FROM tidewire_outbox AS o {CURSORS[cursor]}".encode()
    writing.start()
    with psycopg.connect(url, autocommit=True) as connection, psycopg.RawCursor(connection) as reader:
        while True:
            over = not writing.busy()
            page = reader.execute(sql, last).fetchall()
            seen += [(key, name) for _, _, key, name in page]
            if page:
                last = page[-1][0], page[-1][1]
            elif over:
                return writing.sent, seen
            else:
                time.sleep(0.003)


def read_by_claims(
    url: str,
    *,
    writers: int,
    rows: int,
    batch: int = 3,
    pause: float = 0.01,
    seed: int = 1,
) -> tuple[Sent, list[tuple[str, str]]]:
    """The same with a relay's claims: claim, publish (that is, note), mark done."""
    seen: list[tuple[str, str]] = []

    async def read() -> Sent:
        async with open_postgres_store(url, provision=True) as store:
            writing = Writers(url, writers=writers, rows=rows, batch=batch, pause=pause, seed=seed)
            writing.start()
            while True:
                over = not writing.busy()
                assert await store.backlog.lease("reader", timedelta(minutes=1))
                page = await store.backlog.claim("reader", after=0, limit=512)
                seen.extend((row.message.key or "", row.message.id) for row in page)
                if page:
                    assert await store.backlog.done("reader", [row.row for row in page])
                elif over:
                    return writing.sent
                else:
                    await asyncio.sleep(0.003)

    return asyncio.run(read()), seen


def wrong_about(sent: Sent, seen: Sequence[tuple[str, str]]) -> tuple[int, int]:
    """Return how many rows were never seen, and how many keys were seen in another order than they were committed."""
    found: dict[str, dict[str, None]] = {}
    for key, name in seen:
        found.setdefault(key, {})[name] = None
    lost = sum(name not in found.get(key, {}) for key, names in sent.items() for name in names)
    crossed = sum(
        [name for name in names if name in found.get(key, {})] != [*found.get(key, {})] for key, names in sent.items()
    )
    return lost, crossed


def committed_by(sent: Sent) -> int:
    """Return how many rows were committed."""
    return sum(map(len, sent.values()))
