"""The outbox in SQLite: as its writers see it, and as the relay does.

Only rows that may leave now are in ``tidewire_outbox``; delayed and quarantined ones lie in tables of their own,
so that reading the next batch is a scan from the first row and inserting touches no index but the row number.
SQLite has one writer, so row numbers grow in commit order and no lower one can appear later.
"""

from __future__ import annotations

import asyncio
import sqlite3
from collections.abc import Iterator, Sequence, Set
from datetime import timedelta
from itertools import chain

import msgspec

from tidewire.kit.handles import CallersUnit
from tidewire.kit.waits import happens
from tidewire.model import Message, Pending, Stuck
from tidewire.protocols import Clock, Unit
from tidewire.rules.relaying import BEHIND, up_to
from tidewire.stores.sqlite.callers import put_in_callers
from tidewire.stores.sqlite.reading import Reader
from tidewire.stores.sqlite.records import NewUnit, durably
from tidewire.stores.sqlite.rows import COLUMNS, leaving_row, message_of, topic_name
from tidewire.stores.sqlite.turns import Leaving
from tidewire.stores.sqlite.unit import SqliteUnit, own_unit

__all__ = ["SqliteBacklog", "SqliteOutbox"]

_encode = msgspec.json.Encoder().encode
_WINDOW_MAX = 8_192
_PATIENT_ROWS = 256
_TOGETHER = 32
_INSERT = f"INSERT INTO tidewire_outbox ({COLUMNS}) VALUES (?, ?, ?, ?, ?, ?, ?)"
_INSERT_TOGETHER = _INSERT + ", (?, ?, ?, ?, ?, ?, ?)" * (_TOGETHER - 1)


class SqliteOutbox:
    """See `tidewire.protocols.Outbox`. *window* holds rows of this process that are committed and not yet relayed,
    so that the relay need not read and decode what it has just written."""

    def __init__(self, reader: Reader, clock: Clock, new_unit: NewUnit, *, poll: timedelta) -> None:
        self._reader = reader
        self._new_unit = new_unit
        self._poll = poll.total_seconds()
        self._clock = clock
        self._committed = asyncio.Event()
        self._seen = -1
        self.window: dict[int, Message] = {}

    async def put(self, unit: Unit, messages: Sequence[Message]) -> None:
        """Insert rows with the commit of *unit*, in order: all that commits together is written by one statement.

        In a caller's transaction, of another library, at once.
        """
        now = self._clock.now_us()
        if isinstance(unit, CallersUnit):
            await put_in_callers(unit, messages, path=self._reader.file.path, now=now)
            return
        own_unit(unit, self._reader.file).leave([leaving_row(message, now) for message in messages])

    def write(self, connection: sqlite3.Connection, leaving: Sequence[Leaving]) -> None:
        """Insert what leaves with a transaction, and number what may leave now."""
        at_once = [one for one in leaving if one.due is None]
        for start in range(0, len(at_once), _TOGETHER):
            some = at_once[start : start + _TOGETHER]
            if len(some) == _TOGETHER:
                columns = chain.from_iterable(one.columns for one in some)
                last = connection.execute(_INSERT_TOGETHER, [*columns]).lastrowid
            else:
                connection.executemany(_INSERT, [one.columns for one in some])
                last = connection.execute("SELECT last_insert_rowid()").fetchone()[0]
            assert last is not None
            # One writer, AUTOINCREMENT: rows of one statement are numbered one by one.
            for row, one in enumerate(some, last - len(some) + 1):
                one.row = row
        later = [(*one.columns, one.due) for one in leaving if one.due is not None]
        if later:
            connection.executemany(
                f"INSERT INTO tidewire_outbox_delayed ({COLUMNS}, due) VALUES (?, ?, ?, ?, ?, ?, ?, ?)", later
            )

    def written(self, leaving: Sequence[Leaving]) -> None:
        """Keep what has been committed for the relay, as far as there is room, and wake it."""
        if len(self.window) + len(leaving) <= _WINDOW_MAX:
            self.window.update({one.row: one.message for one in leaving if one.due is None})
        self._committed.set()

    def nudge(self) -> None:
        """Rows have been committed past this store's own units: let the relay look."""
        self._committed.set()

    async def wait(self, longest: timedelta) -> bool:
        """Wait for a commit of this process, one of another (looked for every *poll*), or a due time."""
        loop = asyncio.get_running_loop()
        deadline = loop.time() + longest.total_seconds()
        while not self._committed.is_set():
            version = self._reader.version()
            if version != self._seen:
                self._seen = version
                if self._has_rows():
                    break
            rest = min(deadline - loop.time(), self._poll, self._until_due())
            if rest <= 0:
                return self._until_due() <= 0
            await happens(self._committed, rest)
        self._committed.clear()
        return True

    async def count(self) -> tuple[int, int]:
        """Return how many rows are pending (delayed ones included) and how many are quarantined."""
        with self._reader.reading(together=True) as read:
            ready = read("SELECT count(*) FROM tidewire_outbox").fetchone()[0]
            delayed = read("SELECT count(*) FROM tidewire_outbox_delayed").fetchone()[0]
            refused = read("SELECT count(*) FROM tidewire_outbox_refused").fetchone()[0]
        return ready + delayed, refused

    async def stuck(self, *, after: int = 0, limit: int = 100) -> Sequence[Stuck]:
        """Return quarantined rows."""
        with self._reader.reading() as read:
            rows = read(  # by row number
                f"SELECT row, attempts, detail, at, {COLUMNS} FROM tidewire_outbox_refused WHERE row > ? "
                "ORDER BY row LIMIT ?",
                (after, limit),
            ).fetchall()
        return [
            Stuck(row, message_of(tuple(columns)), attempts, detail, at) for row, attempts, detail, at, *columns in rows
        ]

    async def requeue(self, rows: Sequence[int]) -> int:
        """Append quarantined rows under new numbers, in their order."""
        wanted = _encode(list(rows)).decode()

        def move(unit: SqliteUnit) -> int:
            moved = unit.execute(
                f"INSERT INTO tidewire_outbox ({COLUMNS}) SELECT {COLUMNS} FROM tidewire_outbox_refused "
                "WHERE row IN (SELECT value FROM json_each(?)) ORDER BY row",
                (wanted,),
            )
            unit.execute("DELETE FROM tidewire_outbox_refused WHERE row IN (SELECT value FROM json_each(?))", (wanted,))
            return max(0, moved.rowcount)

        moved = await durably(self._new_unit, move)
        self._committed.set()
        return moved

    def _has_rows(self) -> bool:
        with self._reader.reading() as read:
            return read("SELECT 1 FROM tidewire_outbox LIMIT 1").fetchone() is not None

    def _until_due(self) -> float:
        """Seconds until the first delayed row is due; for ever if there is none."""
        with self._reader.reading() as read:
            due = read("SELECT min(due) FROM tidewire_outbox_delayed").fetchone()[0]  # tidewire_outbox_due
        return float("inf") if due is None else max(0.0, (due - self._clock.now_us()) / 1e6)


class SqliteBacklog:
    """See `tidewire.protocols.Backlog`. *boot* names this start of the machine: ticks of another mean nothing."""

    def __init__(self, reader: Reader, outbox: SqliteOutbox, new_unit: NewUnit, clock: Clock, boot: str) -> None:
        self._reader = reader
        self._outbox = outbox
        self._new_unit = new_unit
        self._clock = clock
        self._boot = boot

    async def lease(self, owner: str, duration: timedelta) -> bool:
        """Take, extend or (zero) give back the lease, by ticks of this machine's boot clock."""
        now = self._clock.ticks()
        until = now + duration // timedelta(microseconds=1) * 1_000

        def take(unit: SqliteUnit) -> bool:
            if duration <= timedelta(0):
                unit.execute("DELETE FROM tidewire_lease WHERE name = 'relay' AND owner = ?", (owner,))
                return True
            row = unit.execute(
                "INSERT INTO tidewire_lease (name, owner, boot, until) VALUES ('relay', ?, ?, ?) "
                "ON CONFLICT DO UPDATE SET owner = excluded.owner, boot = excluded.boot, until = excluded.until "
                "WHERE owner = excluded.owner OR boot != excluded.boot OR until <= ? RETURNING owner",
                (owner, self._boot, until, now),
            ).fetchone()
            return row is not None

        return await durably(self._new_unit, take)

    async def claim(self, owner: str, *, after: int, limit: int, without: Set[int] = frozenset()) -> Sequence[Pending]:
        """Return the next rows; what has become due joins them first, what is behind a quarantined row leaves."""
        if not self._leads(owner):
            return ()
        await self._release_due()
        while True:
            rows = self._read(after, limit, without)
            blocked = self._blocked(rows)
            if not blocked:
                return rows
            await self._sideline(blocked)

    async def done(self, owner: str, rows: Sequence[int]) -> bool:
        """Delete the rows while the lease holds, in one statement."""
        if not rows:
            return self._leads(owner)
        first, last = min(rows), max(rows)
        wanted: tuple[int | str, ...]
        if last - first + 1 == len({*rows}):
            which, wanted = "row BETWEEN ? AND ?", (first, last)
        else:  # something in between is to stay
            which, wanted = "row IN (SELECT value FROM json_each(?))", (_encode(list(rows)).decode(),)

        def delete(unit: SqliteUnit) -> bool:
            gone = unit.execute(  # by row number
                f"DELETE FROM tidewire_outbox WHERE {which} AND EXISTS "
                "(SELECT 1 FROM tidewire_lease WHERE name = 'relay' AND owner = ? AND boot = ? AND until > ?)",
                (*wanted, owner, self._boot, self._clock.ticks()),
            )
            return gone.rowcount > 0

        # Where no more is known to wait, a row that goes a little later costs nothing, and after a crash a repeat.
        patient = len(self._outbox.window) <= len(rows) < _PATIENT_ROWS
        if not await durably(self._new_unit, delete, patient=patient):
            return self._leads(owner)
        for row in rows:
            self._outbox.window.pop(row, None)
        return True

    async def refused(self, owner: str, row: int, *, detail: str, attempts_max: int) -> bool:
        """Count a refusal; at the limit the row moves to the quarantine, under its number."""
        now = self._clock.ticks()

        def count(unit: SqliteUnit) -> bool:
            found = unit.execute(
                "UPDATE tidewire_outbox SET attempts = attempts + 1 WHERE row = ? AND EXISTS "
                "(SELECT 1 FROM tidewire_lease WHERE name = 'relay' AND owner = ? AND boot = ? AND until > ?) "
                "RETURNING attempts",
                (row, owner, self._boot, now),
            ).fetchone()
            if found is None or found[0] < attempts_max:
                return False
            self._quarantine(unit, [row], detail)
            return True

        quarantined = await durably(self._new_unit, count)
        if quarantined:
            self._outbox.window.pop(row, None)
        return quarantined

    def leaders(self) -> list[str]:
        """Return who has the lease: one, or nobody."""
        with self._reader.reading() as read:
            rows = read("SELECT owner, boot, until FROM tidewire_lease WHERE name = 'relay'").fetchall()
        return [owner for owner, boot, until in rows if boot == self._boot and until > self._clock.ticks()]

    def _leads(self, owner: str) -> bool:
        return owner in self.leaders()

    def _read(self, after: int, limit: int, without: Set[int]) -> list[Pending]:
        """Read the next rows in row order; of those in the window only their numbers."""
        window = self._outbox.window
        with self._reader.reading(together=True) as read:

            def rows() -> Iterator[Pending]:
                for row, attempts in numbers:
                    if row in without:
                        continue
                    message = window.get(row)
                    if message is None:
                        columns = read(f"SELECT {COLUMNS} FROM tidewire_outbox WHERE row = ?", (row,)).fetchone()
                        message = message_of(columns)
                    yield Pending(row, message, attempts)

            numbers = read(  # by row number
                "SELECT row, attempts FROM tidewire_outbox WHERE row > ? ORDER BY row LIMIT ?",
                (after, limit + len(without)),
            ).fetchall()
            return up_to(rows(), limit)

    def _blocked(self, rows: Sequence[Pending]) -> list[int]:
        """Return which of *rows* stand behind a quarantined row of their key."""
        with self._reader.reading() as read:
            if read("SELECT 1 FROM tidewire_outbox_refused LIMIT 1").fetchone() is None:
                return []
            return [
                row.row
                for row in rows
                if row.message.key is not None
                and read(  # tidewire_outbox_refused_key
                    "SELECT 1 FROM tidewire_outbox_refused WHERE aggregatetype = ? AND aggregateid = ? AND row < ? "
                    "LIMIT 1",
                    (topic_name(row.message), row.message.key, row.row),
                ).fetchone()
                is not None
            ]

    async def _sideline(self, rows: Sequence[int]) -> None:
        await durably(self._new_unit, lambda unit: self._quarantine(unit, rows, BEHIND))

    def _quarantine(self, unit: SqliteUnit, rows: Sequence[int], detail: str) -> None:
        wanted = _encode(list(rows)).decode()
        unit.execute(
            f"INSERT INTO tidewire_outbox_refused (row, {COLUMNS}, attempts, detail, at) "
            f"SELECT row, {COLUMNS}, attempts, ?, ? FROM tidewire_outbox "
            "WHERE row IN (SELECT value FROM json_each(?))",
            (detail[:1_024], self._clock.now_us(), wanted),
        )
        unit.execute("DELETE FROM tidewire_outbox WHERE row IN (SELECT value FROM json_each(?))", (wanted,))

    async def _release_due(self) -> None:
        """Append delayed rows whose time has come, in the order of their times."""
        now = self._clock.now_us()
        with self._reader.reading() as read:
            due = read("SELECT min(due) FROM tidewire_outbox_delayed").fetchone()[0]
        if due is None or due > now:
            return

        def append(unit: SqliteUnit) -> None:
            rows = unit.execute(  # tidewire_outbox_due
                f"SELECT row, {COLUMNS} FROM tidewire_outbox_delayed WHERE due <= ? ORDER BY due, row LIMIT 1000",
                (now,),
            ).fetchall()
            for row in rows:
                unit.execute(f"INSERT INTO tidewire_outbox ({COLUMNS}) VALUES (?, ?, ?, ?, ?, ?, ?)", row[1:])
                unit.execute("DELETE FROM tidewire_outbox_delayed WHERE row = ?", (row[0],))

        await durably(self._new_unit, append)
