"""What the SQLite store remembers besides effects: attempts, held keys, lane epochs."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TypeAlias, TypeVar

import msgspec

from tidewire.errors import LaneFenced
from tidewire.model import Failure, Held
from tidewire.stores.sqlite.reading import Reader
from tidewire.stores.sqlite.unit import SqliteUnit

__all__ = ["NewUnit", "SqliteAttempts", "SqliteHeldKeys", "SqliteLanes", "durably"]

NewUnit: TypeAlias = Callable[[], SqliteUnit]
T = TypeVar("T")
_encode = msgspec.json.Encoder().encode
_decode = msgspec.json.Decoder(Failure).decode


async def durably(new_unit: NewUnit, action: Callable[[SqliteUnit], T], *, patient: bool = False) -> T:
    """Run *action* in a unit of its own and return its result once that is durable; a *patient* one waits a little
    for others to share a transaction with."""
    unit = new_unit()
    if patient:
        await unit.turns.company()
    await unit.begin()
    try:
        result = action(unit)
    except BaseException:
        await unit.rollback()
        raise
    await (await unit.seal())
    return result


class SqliteAttempts:
    """See `tidewire.protocols.Attempts`."""

    def __init__(self, reader: Reader, new_unit: NewUnit) -> None:
        self._reader = reader
        self._new_unit = new_unit

    async def get(self, group: str, source: str, event_id: str) -> Failure | None:
        """Return what is remembered of the event."""
        with self._reader.reading() as read:
            row = read(  # the primary key
                "SELECT starts, failure FROM tidewire_attempt WHERE grp = ? AND source = ? AND event_id = ?",
                (group, source, event_id),
            ).fetchone()
        return None if row is None else msgspec.structs.replace(_decode(row[1]), starts=row[0])

    async def begin(self, group: str, source: str, event_id: str) -> int:
        """Count a start that has not ended."""

        def count(unit: SqliteUnit) -> int:
            row = unit.execute(
                "INSERT INTO tidewire_attempt (grp, source, event_id, starts, failure) VALUES (?, ?, ?, 1, '{}') "
                "ON CONFLICT DO UPDATE SET starts = starts + 1 RETURNING starts",
                (group, source, event_id),
            ).fetchone()
            return int(row[0])

        return await durably(self._new_unit, count)

    async def fail(self, group: str, source: str, event_id: str, failure: Failure) -> None:
        """Store the failure; the start it belongs to has ended."""
        text = _encode(msgspec.structs.replace(failure, starts=0)).decode()
        await durably(
            self._new_unit,
            lambda unit: unit.execute(
                "INSERT INTO tidewire_attempt (grp, source, event_id, starts, failure) VALUES (?, ?, ?, 0, ?) "
                "ON CONFLICT DO UPDATE SET starts = 0, failure = excluded.failure",
                (group, source, event_id, text),
            ),
        )

    async def forget(self, group: str, source: str, event_id: str) -> None:
        """Remove the row; a missing one is no matter."""
        await durably(
            self._new_unit,
            lambda unit: unit.execute(
                "DELETE FROM tidewire_attempt WHERE grp = ? AND source = ? AND event_id = ?", (group, source, event_id)
            ),
        )


class SqliteHeldKeys:
    """See `tidewire.protocols.HeldKeys`."""

    def __init__(self, reader: Reader, new_unit: NewUnit) -> None:
        self._reader = reader
        self._new_unit = new_unit

    async def keys(self, group: str, topics: Sequence[str]) -> Sequence[tuple[str, str]]:
        """Return the held keys; one index scan per topic, over keys and not over events."""
        with self._reader.reading() as read:
            found: list[tuple[str, str]] = []
            for topic in topics:
                rows = read("SELECT DISTINCT key FROM tidewire_held WHERE grp = ? AND topic = ?", (group, topic))
                found += [(topic, row[0]) for row in rows]
            return found

    async def head(self, group: str, topic: str, key: str) -> Held | None:
        """Return the oldest row of the key."""
        with self._reader.reading() as read:
            row = read(  # tidewire_held_head
                "SELECT source, event_id, state, due, sequence FROM tidewire_held "
                "WHERE grp = ? AND topic = ? AND key = ? ORDER BY sequence LIMIT 1",
                (group, topic, key),
            ).fetchone()
        return None if row is None else Held(group, topic, key, *row)

    async def put(self, rows: Sequence[Held]) -> Sequence[Held]:
        """Insert or update; a row that exists keeps its place in the order."""

        def insert(unit: SqliteUnit) -> list[Held]:
            stored: list[Held] = []
            for row in rows:
                sequence = unit.execute(
                    "INSERT INTO tidewire_held (grp, topic, key, source, event_id, state, due) "
                    "VALUES (?, ?, ?, ?, ?, ?, ?) "
                    "ON CONFLICT DO UPDATE SET state = excluded.state, due = excluded.due RETURNING sequence",
                    (row.group, row.topic, row.key, row.source, row.event_id, row.state, row.due),
                ).fetchone()[0]
                stored.append(msgspec.structs.replace(row, sequence=sequence))
            return stored

        return await durably(self._new_unit, insert)

    async def free(self, rows: Sequence[Held]) -> None:
        """Remove rows."""

        def delete(unit: SqliteUnit) -> None:
            for row in rows:
                unit.execute(
                    "DELETE FROM tidewire_held WHERE grp = ? AND topic = ? AND key = ? AND source = ? AND event_id = ?",
                    (row.group, row.topic, row.key, row.source, row.event_id),
                )

        await durably(self._new_unit, delete)


class SqliteLanes:
    """See `tidewire.protocols.Lanes`."""

    def __init__(self, new_unit: NewUnit) -> None:
        self._new_unit = new_unit

    async def adopt(self, group: str, lane: str, epoch: int) -> int:
        """Record the epoch, unless a higher one has been."""

        def record(unit: SqliteUnit) -> int:
            row = unit.execute(
                "INSERT INTO tidewire_lane (grp, lane, epoch) VALUES (?, ?, ?) "
                "ON CONFLICT DO UPDATE SET epoch = excluded.epoch WHERE excluded.epoch >= epoch RETURNING epoch",
                (group, lane, epoch),
            ).fetchone()
            if row is None:
                raise LaneFenced(f"{group}: a later epoch than {epoch} has taken lane {lane} over")
            unit.forget_guards()
            return int(row[0])

        return await durably(self._new_unit, record)
