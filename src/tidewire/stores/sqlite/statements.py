"""What the SQLite store writes in units, as statements for any handle that leads to its file."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

from tidewire.errors import AlreadyMarked, LaneFenced
from tidewire.kit.handles import AsyncSql
from tidewire.kit.lent import Step
from tidewire.model import Guard, Mark, Message
from tidewire.protocols import Clock
from tidewire.stores.sqlite.callers import FILES, check_dialect, check_file, insertions
from tidewire.stores.sqlite.inbox import packed
from tidewire.stores.sqlite.rows import leaving_row
from tidewire.stores.sqlite.turns import Leaving

__all__ = ["SqliteStatements"]


class SqliteStatements:
    """See `tidewire.kit.lent.Statements`. A lent transaction has SQLite's lock, so what is checked stays so."""

    def __init__(self, path: Path, clock: Clock, wake: Callable[[], None]) -> None:
        self._path = path
        self._clock = clock
        self._wake = wake

    def written(self, rows: Sequence[Leaving]) -> None:
        """Wake the relay of this process; others look."""
        self._wake()

    async def check(self, sql: AsyncSql, what: str) -> None:
        """Compare the files."""
        check_dialect(what, sql.dialect, self._path)
        check_file(what, await sql.rows(FILES), self._path)

    def guard(self, guard: Guard) -> Step:
        """Look for the epoch by the primary key."""
        return Step(
            "SELECT 1 FROM tidewire_lane WHERE grp = $1 AND lane = $2 AND epoch = $3",
            (guard.group, guard.lane, guard.epoch),
            LaneFenced(f"{guard.group}: epoch {guard.epoch} of lane {guard.lane} has been taken over"),
        )

    async def mark(self, mark: Mark, digest: bytes) -> Sequence[Step]:
        """Make the scope where it is missing, then the mark; tidewire_mark_once keeps it single."""
        scope = (mark.group, mark.handler, mark.run, mark.source)
        return (
            Step(
                "INSERT INTO tidewire_scope (grp, handler, run, source) VALUES ($1, $2, $3, $4) ON CONFLICT DO NOTHING",
                scope,
            ),
            Step(
                "INSERT INTO tidewire_mark (scope, event_id, digest, at) SELECT id, $5, $6, $7 FROM tidewire_scope "
                "WHERE grp = $1 AND handler = $2 AND run = $3 AND source = $4 ON CONFLICT DO NOTHING RETURNING 1",
                (*scope, packed(mark.event_id), digest, self._clock.now_us()),
                AlreadyMarked(f"{mark.group}.{mark.handler}: event {mark.event_id} has already taken effect"),
            ),
        )

    def rows(self, messages: Sequence[Message]) -> Sequence[Leaving]:
        """Return the rows, of which some may wait for their time."""
        now = self._clock.now_us()
        return [leaving_row(message, now) for message in messages]

    def put(self, rows: Sequence[Leaving]) -> Sequence[Step]:
        """One statement for what may leave now, one for what may not."""
        return [Step(text, parameters) for text, parameters in insertions(rows)]

    def advance(self, name: str, *, owner: str, due: int, to: int) -> Step:
        """Move on by the primary key."""
        return Step(
            "UPDATE tidewire_timetable SET due = $1, owner = '', until = 0 "
            "WHERE name = $2 AND owner = $3 AND due = $4 RETURNING 1",
            (to, name, owner, due),
            AlreadyMarked(f"the run of {name} at {due} is not {owner}'s"),
        )
