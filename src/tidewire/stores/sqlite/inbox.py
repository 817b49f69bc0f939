"""Inbox marks in SQLite."""

from __future__ import annotations

from collections.abc import Sequence

from tidewire.errors import AlreadyMarked
from tidewire.model import Mark
from tidewire.protocols import Clock, Unit
from tidewire.stores.sqlite.reading import Read, Reader
from tidewire.stores.sqlite.records import NewUnit, durably
from tidewire.stores.sqlite.unit import SqliteUnit, own_unit

__all__ = ["SqliteInbox"]

Scope = tuple[str, str, int, str]
_SCOPES_MAX = 10_000
_TOGETHER = 32
_KNOWN = "SELECT event_id, digest FROM tidewire_mark WHERE scope = ? AND event_id = ?"
_KNOWN_TOGETHER = (
    f"SELECT event_id, digest FROM tidewire_mark WHERE scope = ? AND event_id IN ({', '.join('?' * _TOGETHER)})"
)


class SqliteInbox:
    """See `tidewire.protocols.Inbox`."""

    def __init__(self, reader: Reader, clock: Clock, new_unit: NewUnit) -> None:
        self._reader = reader
        self._clock = clock
        self._new_unit = new_unit
        self._scopes: dict[Scope, int] = {}

    async def known(self, marks: Sequence[Mark]) -> Sequence[bytes | None]:
        """Look the marks up in what is committed, in one read transaction."""
        asked: dict[int, list[bytes | str]] = {}
        digests: dict[tuple[int | None, bytes | str], bytes] = {}
        with self._reader.reading(len(marks) > 1) as read:
            places = [(self._scope(read, mark), packed(mark.event_id)) for mark in marks]
            for scope, event_id in places:
                if scope is not None:
                    asked.setdefault(scope, []).append(event_id)
            for scope, event_ids in asked.items():
                for start in range(0, len(event_ids), _TOGETHER):
                    some = event_ids[start : start + _TOGETHER]
                    several = len(some) > 1
                    rows = read(  # tidewire_mark_once; one statement, so what is short is filled up with its last
                        _KNOWN_TOGETHER if several else _KNOWN,
                        (scope, *some, *some[-1:] * (_TOGETHER - len(some))) if several else (scope, *some),
                    )
                    digests.update({(scope, event_id): digest for event_id, digest in rows})
        return [digests.get(place) for place in places]

    async def mark(self, unit: Unit, mark: Mark, digest: bytes) -> None:
        """Insert the mark; a committed one makes it `AlreadyMarked`."""
        own = own_unit(unit, self._reader.file)
        await own.begin()
        key = (mark.group, mark.handler, mark.run, mark.source)
        scope = self._scopes.get(key)
        if scope is None:
            scope = _make_scope(own, key)
        written = own.execute(  # tidewire_mark_once keeps it single
            "INSERT INTO tidewire_mark (scope, event_id, digest, at) VALUES (?, ?, ?, ?) ON CONFLICT DO NOTHING",
            (scope, packed(mark.event_id), digest, self._clock.now_us()),
        )
        if written.rowcount == 0:
            raise AlreadyMarked(f"{mark.group}.{mark.handler}: event {mark.event_id} has already taken effect")

    async def run_of(self, group: str) -> int:
        """Return the group's current run."""
        with self._reader.reading() as read:
            row = read("SELECT run FROM tidewire_run WHERE grp = ?", (group,)).fetchone()
            return 0 if row is None else int(row[0])

    async def next_run(self, group: str) -> int:
        """Raise the group's run; processes that run already keep theirs until they join anew."""

        def raise_it(unit: SqliteUnit) -> int:
            row = unit.execute(
                "INSERT INTO tidewire_run (grp, run) VALUES (?, 1) "
                "ON CONFLICT DO UPDATE SET run = run + 1 RETURNING run",
                (group,),
            ).fetchone()
            return int(row[0])

        return await durably(self._new_unit, raise_it)

    async def prune(self, before: int, limit: int) -> int:
        """Delete up to *limit* marks older than *before*; reads only what it deletes, because rows lie in time."""
        unit = self._new_unit()
        await unit.begin()
        try:
            last = unit.execute(
                "SELECT max(id) FROM (SELECT id, at FROM tidewire_mark ORDER BY id LIMIT ?) WHERE at < ?",
                (limit, before),
            ).fetchone()[0]
            if last is None:
                await unit.rollback()
                return 0
            gone = unit.execute("DELETE FROM tidewire_mark WHERE id <= ? AND at < ?", (last, before)).rowcount
        except BaseException:
            await unit.rollback()
            raise
        await (await unit.seal())
        return gone

    def _scope(self, read: Read, mark: Mark) -> int | None:
        key = (mark.group, mark.handler, mark.run, mark.source)
        scope = self._scopes.get(key)
        if scope is None:
            row = read(
                "SELECT id FROM tidewire_scope WHERE grp = ? AND handler = ? AND run = ? AND source = ?", key
            ).fetchone()
            if row is None:
                return None
            if len(self._scopes) >= _SCOPES_MAX:
                self._scopes.clear()
            scope = self._scopes[key] = int(row[0])
        return scope


def _make_scope(unit: SqliteUnit, key: Scope) -> int:
    """Return the id of a scope that this process has not yet seen committed, made in *unit* where it is missing."""
    unit.execute(
        "INSERT INTO tidewire_scope (grp, handler, run, source) VALUES (?, ?, ?, ?) ON CONFLICT DO NOTHING", key
    )
    found = unit.execute(
        "SELECT id FROM tidewire_scope WHERE grp = ? AND handler = ? AND run = ? AND source = ?", key
    ).fetchone()
    return int(found[0])


def packed(event_id: str) -> bytes | str:
    """Return a UUID in its canonical form as 16 bytes, any other id as it is; no two ids share one form."""
    if len(event_id) == 36 and event_id[8] == event_id[13] == event_id[18] == event_id[23] == "-":
        digits = event_id.replace("-", "")
        if len(digits) == 32 and digits.isalnum() and digits == digits.lower():
            try:
                return bytes.fromhex(digits)
            except ValueError:
                return event_id
    return event_id
