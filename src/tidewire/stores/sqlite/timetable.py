"""Recurring runs in SQLite: one row each, a lease while it happens."""

from __future__ import annotations

from datetime import timedelta

from tidewire.errors import AlreadyMarked
from tidewire.protocols import Clock, Unit
from tidewire.stores.sqlite.reading import Reader
from tidewire.stores.sqlite.records import NewUnit, durably
from tidewire.stores.sqlite.unit import SqliteUnit, own_unit

__all__ = ["SqliteTimetable"]


class SqliteTimetable:
    """See `tidewire.protocols.Timetable`. *boot* names this start of the machine: ticks of another mean nothing."""

    def __init__(self, reader: Reader, new_unit: NewUnit, clock: Clock, boot: str) -> None:
        self._reader = reader
        self._new_unit = new_unit
        self._clock = clock
        self._boot = boot

    async def claim(
        self, name: str, rule: str, *, first: int, now: int, owner: str, lease: timedelta
    ) -> tuple[int, bool]:
        """Look, which costs no write until it is due; then take the lease."""
        with self._reader.reading() as read:
            row = read("SELECT rule, due FROM tidewire_timetable WHERE name = ?", (name,)).fetchone()
        if row is not None and row[0] == rule and row[1] > now:
            return row[1], False

        def take(unit: SqliteUnit) -> tuple[int, bool]:
            ticks = self._clock.ticks()
            unit.execute(
                "INSERT INTO tidewire_timetable (name, rule, due, owner, boot, until) VALUES (?, ?, ?, '', '', 0) "
                "ON CONFLICT DO UPDATE SET rule = excluded.rule, due = excluded.due, owner = '', until = 0 "
                "WHERE rule != excluded.rule",
                (name, rule, first),
            )
            taken = unit.execute(
                "UPDATE tidewire_timetable SET owner = ?1, boot = ?2, until = ?3 WHERE name = ?4 AND due <= ?5 "
                "AND (owner IN ('', ?1) OR boot != ?2 OR until <= ?6)",
                (owner, self._boot, ticks + lease // timedelta(microseconds=1) * 1_000, name, now, ticks),
            )
            due = unit.execute("SELECT due FROM tidewire_timetable WHERE name = ?", (name,)).fetchone()[0]
            return int(due), taken.rowcount == 1

        return await durably(self._new_unit, take)

    async def advance(self, unit: Unit, name: str, *, owner: str, due: int, to: int) -> None:
        """Move on, in *unit*."""
        own = own_unit(unit, self._reader.file)
        await own.begin()
        moved = own.execute(  # the primary key
            "UPDATE tidewire_timetable SET due = ?, owner = '', until = 0 WHERE name = ? AND owner = ? AND due = ?",
            (to, name, owner, due),
        )
        if moved.rowcount == 0:
            raise AlreadyMarked(f"the run of {name} at {due} is not {owner}'s")
