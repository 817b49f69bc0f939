"""Recurring runs in PostgreSQL: one row each, a lease while it happens, judged by the database's clock."""

from __future__ import annotations

from datetime import timedelta

from tidewire.errors import AlreadyMarked
from tidewire.kit.postgres.text import kept
from tidewire.protocols import Unit
from tidewire.stores.postgres.access import Access
from tidewire.stores.postgres.unit import Core, own_unit

__all__ = ["PostgresTimetable"]


class PostgresTimetable:
    """See `tidewire.protocols.Timetable`."""

    def __init__(self, access: Access) -> None:
        self._access = access
        table = access.table("timetable")
        self._look = f"SELECT rule, due FROM {table} WHERE name = $1::text"
        self._ensure = (
            f"INSERT INTO {table} AS t (name, rule, due, owner, until) "
            "VALUES ($1::text, $2::text, $3::bigint, '', '-infinity') "
            "ON CONFLICT (name) DO UPDATE SET rule = excluded.rule, due = excluded.due, owner = '', "
            "until = '-infinity' WHERE t.rule <> excluded.rule"
        )
        self._take = (
            f"UPDATE {table} SET owner = $2::text, until = clock_timestamp() + $3::bigint * interval '1 microsecond' "
            "WHERE name = $1::text AND due <= $4::bigint AND (owner IN ('', $2::text) OR until <= clock_timestamp())"
        )
        self._advance = (
            f"UPDATE {table} SET due = $4::bigint, owner = '', until = '-infinity' "
            "WHERE name = $1::text AND owner = $2::text AND due = $3::bigint RETURNING 1"
        )
        self._core: Core | None = None

    def attach(self, core: Core) -> None:
        """Say whose units are ours."""
        self._core = core

    async def claim(
        self, name: str, rule: str, *, first: int, now: int, owner: str, lease: timedelta
    ) -> tuple[int, bool]:
        """Look, which costs no write until it is due; then take the lease."""
        place = kept(name)
        for row in (await self._access.run("reading the timetable", (self._look, (place,)))).rows():
            if row[0] == kept(rule) and row[1] > now:
                return int(row[1]), False
        answers = await self._access.run(
            "claiming a recurring run",
            (self._ensure, (place, kept(rule), first)),
            (self._take, (place, kept(owner), lease // timedelta(microseconds=1), now)),
            (self._look, (place,)),
        )
        return int(answers.rows(2)[0][1]), answers.count(1) == 1

    async def advance(self, unit: Unit, name: str, *, owner: str, due: int, to: int) -> None:
        """Move on, in *unit*, whose transaction holds the row until it ends."""
        own = own_unit(unit, self._core)
        if not await own.rows(self._advance, (kept(name), kept(owner), due, to)):
            raise AlreadyMarked(f"the run of {name} at {due} is not {owner}'s")
