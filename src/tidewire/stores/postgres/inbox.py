"""Inbox marks in PostgreSQL."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from tidewire.errors import AlreadyMarked
from tidewire.kit.postgres.text import kept
from tidewire.kit.postgres.wire import Statement
from tidewire.model import Mark
from tidewire.protocols import Clock, Unit
from tidewire.stores.postgres.access import PLAN, Access
from tidewire.stores.postgres.unit import Core, own_unit

__all__ = ["PostgresInbox", "packed"]

Scope = tuple[str, str, int, str]
_SCOPES_MAX = 10_000


class PostgresInbox:
    """See `tidewire.protocols.Inbox`."""

    def __init__(self, access: Access, clock: Clock) -> None:
        self._access = access
        self._clock = clock
        self._scopes: dict[Scope, int] = {}
        mark, scope, run = access.table("mark"), access.table("scope"), access.table("run")
        self._known = (  # mark_once
            f"SELECT event_id, digest FROM {mark} WHERE scope = $1::integer AND event_id = ANY($2::bytea[])"
        )
        self._mark = (  # mark_once waits for an open transaction with the same mark, and refuses a committed one
            f"INSERT INTO {mark} (scope, at, event_id, digest) VALUES ($1::integer, $2::bigint, $3::bytea, $4::bytea)"
        )
        self._find_scope = (
            f"SELECT id FROM {scope} WHERE grp = $1::text AND handler = $2::text AND run = $3::bigint "
            "AND source = $4::text"
        )
        self._make_scope = (
            f"INSERT INTO {scope} (grp, handler, run, source) VALUES ($1::text, $2::text, $3::bigint, $4::text) "
            "ON CONFLICT DO NOTHING"
        )
        self._run_of = f"SELECT run FROM {run} WHERE grp = $1::text"
        self._next_run = (
            f"INSERT INTO {run} AS r (grp, run) VALUES ($1::text, 1) "
            "ON CONFLICT (grp) DO UPDATE SET run = r.run + 1 RETURNING run"
        )
        self._prune = (  # mark_at, then the rows by their place
            f"DELETE FROM {mark} WHERE ctid = ANY(ARRAY("
            f"SELECT ctid FROM {mark} WHERE at < $1::bigint ORDER BY at LIMIT $2::bigint))"
        )
        self._core: Core | None = None

    def attach(self, core: Core) -> None:
        """Say whose units are ours."""
        self._core = core

    async def known(self, marks: Sequence[Mark]) -> Sequence[bytes | None]:
        """Look the marks up in what is committed, a statement per scope, all in one round trip."""
        if not marks:
            return []
        keys = [_key(mark) for mark in marks]
        scopes = await self._scopes_of(dict.fromkeys(keys))
        places = [(scopes.get(key), packed(mark.event_id)) for key, mark in zip(keys, marks, strict=True)]
        asked: dict[int, list[bytes]] = {}
        for scope, event_id in places:
            if scope is not None:
                asked.setdefault(scope, []).append(event_id)
        digests: dict[tuple[int | None, bytes], bytes] = {}
        if asked:
            statements: list[Statement] = [(self._known, (scope, event_ids)) for scope, event_ids in asked.items()]
            answers = await self._access.run("looking up inbox marks", PLAN, *statements)
            for index, scope in enumerate(asked, 1):
                digests.update({(scope, bytes(event_id)): bytes(digest) for event_id, digest in answers.rows(index)})
        return [digests.get(place) for place in places]

    async def mark(self, unit: Unit, mark: Mark, digest: bytes) -> None:
        """Insert the mark with the seal of *unit*; a committed one makes that `AlreadyMarked`."""
        own = own_unit(unit, self._core)
        own.check_open()
        key, event_id = _key(mark), packed(mark.event_id)
        scope = self._scopes.get(key) or await self._made(key)
        if not own.mark(scope, event_id):
            raise AlreadyMarked(f"{mark.group}.{mark.handler}: event {mark.event_id} is marked in this unit already")
        own.later((self._mark, (scope, self._clock.now_us(), event_id, digest)))

    async def scope_of(self, mark: Mark) -> int:
        """Return the number of the mark's scope, made where it is missing."""
        key = _key(mark)
        return self._scopes.get(key) or await self._made(key)

    async def run_of(self, group: str) -> int:
        """Return the group's current run."""
        rows = (await self._access.run("reading a group's run", (self._run_of, (kept(group),)))).rows()
        return int(rows[0][0]) if rows else 0

    async def next_run(self, group: str) -> int:
        """Raise the group's run; processes that run already keep theirs until they join anew."""
        answers = await self._access.run("raising a group's run", (self._next_run, (kept(group),)))
        return int(answers.rows()[0][0])

    async def prune(self, before: int, limit: int) -> int:
        """Delete up to *limit* marks older than *before*; reads only what it deletes."""
        return (await self._access.run("pruning inbox marks", PLAN, (self._prune, (before, limit)))).count()

    async def _scopes_of(self, keys: Iterable[Scope]) -> dict[Scope, int]:
        """Return the scopes of *keys* that there are, looking up those that this process does not know."""
        found = {key: self._scopes[key] for key in keys if key in self._scopes}
        missing = [key for key in keys if key not in found]
        if missing:
            answers = await self._access.run("looking up scopes", *[(self._find_scope, key) for key in missing])
            for index, key in enumerate(missing):
                for (scope,) in answers.rows(index):
                    found[key] = self._remember(key, int(scope))
        return found

    async def _made(self, key: Scope) -> int:
        """Make a scope in a transaction of its own: no unit waits for another that makes the same."""
        find: Statement = (self._find_scope, key)
        answers = await self._access.run("making a scope", (self._make_scope, key), find)
        if not answers.rows():  # a snapshot older than somebody's insert, where the database isolates more
            answers = await self._access.run("looking up a scope", find)
        return self._remember(key, int(answers.rows()[0][0]))

    def _remember(self, key: Scope, scope: int) -> int:
        if len(self._scopes) >= _SCOPES_MAX:
            self._scopes.clear()
        self._scopes[key] = scope
        return scope


def _key(mark: Mark) -> Scope:
    return kept(mark.group), kept(mark.handler), mark.run, kept(mark.source)


def packed(event_id: str) -> bytes:
    """Return a UUID in its canonical form as 16 bytes, any other id as its text behind a byte; no two share a form."""
    if len(event_id) == 36:
        try:
            uuid = bytes.fromhex(event_id.replace("-", ""))
        except ValueError:
            uuid = b""
        digits = uuid.hex()
        if f"{digits[:8]}-{digits[8:12]}-{digits[12:16]}-{digits[16:20]}-{digits[20:]}" == event_id:
            return uuid
    text = event_id.encode()
    return b"::" + text if len(text) == 15 else b"=" + text
