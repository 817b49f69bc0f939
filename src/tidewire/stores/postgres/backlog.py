"""The outbox in PostgreSQL, as the relay sees it: 64 partitions, shared out fairly among the relays that are alive.

A claim begins at the first row of each partition every time, so a row that becomes visible late, under a number that
others have passed, is found by the next claim: there is no cursor that could have passed it.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Iterable, Sequence, Set
from dataclasses import dataclass, field
from datetime import timedelta

from tidewire.kit.postgres.text import kept
from tidewire.kit.postgres.wire import Statement
from tidewire.model import Message, Pending
from tidewire.rules.relaying import BEHIND, CLAIM_BYTES_MAX, up_to
from tidewire.stores.postgres.access import PLAN, Access
from tidewire.stores.postgres.backlog_sql import BacklogSql
from tidewire.stores.postgres.events import PARTITIONS, message_of
from tidewire.stores.postgres.outbox import PostgresOutbox
from tidewire.stores.postgres.wake import RELAYS_CHANGED

__all__ = ["PostgresBacklog"]

_DETAIL_MAX = 1_000


@dataclass
class _Holding:
    """What one owner has: its partitions with their tokens, and those that it gives up once nothing of them is on its
    way. *flying* are the partitions of what was on its way at the last claim, or was claimed since."""

    duration: timedelta
    tokens: dict[int, int] = field(default_factory=dict[int, int])
    leaving: set[int] = field(default_factory=set[int])
    flying: frozenset[int] = frozenset()
    relays_seen: int = -1


@dataclass(slots=True)
class _Found:
    """A row as a claim sees it first: its *size* is that of its body."""

    number: int
    attempts: int
    size: int
    blocked: bool


class PostgresBacklog:
    """See `tidewire.protocols.Backlog`."""

    def __init__(self, access: Access, outbox: PostgresOutbox) -> None:
        self._access = access
        self._outbox = outbox
        self._sql = BacklogSql(access)
        self._holdings: dict[str, _Holding] = {}

    async def lease(self, owner: str, duration: timedelta) -> bool:
        """Take or extend a fair share of the partitions. What is above it is given up, at once where nothing of it is
        on its way; other relays are told, and take it."""
        if duration <= timedelta(0):
            self._holdings.pop(owner, None)
            self._tell_parts()
            await self._access.run("giving partitions back", *self._sql.leave(owner), self._sql.tell(RELAYS_CHANGED))
            return True
        holding = self._holdings.setdefault(owner, _Holding(duration))
        holding.duration = duration
        holding.relays_seen = self._outbox.wake.relays_changed
        answers = await self._access.run("taking partitions", *self._sql.take(owner, duration))
        is_new = bool(answers.rows(1)[0][0])
        taken, live = answers.rows(2), answers.rows(3)[0][0]
        holding.tokens = dict(taken)
        share = -(-PARTITIONS // max(1, live))
        # Idle ones first, and of those always the same: nothing goes to and fro.
        surplus = sorted(holding.tokens, key=lambda part: (part not in holding.flying, part))[share:]
        holding.leaving = {*surplus}
        await self._give_up(owner, holding)
        self._tell_parts()
        if is_new and live > 1:
            await self._access.run("telling other relays", self._sql.tell(RELAYS_CHANGED))
        return bool(holding.tokens)

    async def claim(self, owner: str, *, after: int, limit: int, without: Set[int] = frozenset()) -> Sequence[Pending]:
        """Return due rows; those that have become due join them first, those behind a quarantined one leave."""
        holding = self._holdings.get(owner)
        if holding is None:
            return ()
        if after == 0:
            holding.flying = frozenset(number & 63 for number in without)
            if holding.relays_seen != self._outbox.wake.relays_changed:
                await self.lease(owner, holding.duration)
            else:
                await self._give_up(owner, holding)
        while True:
            found = await self._find(owner, holding, after=after, limit=limit, without=without)
            blocked = [row.number for row in found if row.blocked]
            if not blocked:
                rows = await self._read(found, limit)
                holding.flying |= {row.row & 63 for row in rows}
                return rows
            await self._access.run("putting events aside", PLAN, self._sql.sideline(owner, blocked, BEHIND))
            self._forget(blocked)

    async def done(self, owner: str, rows: Sequence[int]) -> bool:
        """Delete the rows whose partitions *owner* still has, by the tokens that it knows."""
        holding = self._holdings.get(owner)
        if holding is None:
            return False
        parts = {number & 63 for number in rows} or {*holding.tokens}
        tokens = [holding.tokens.get(number & 63, -1) for number in rows]
        answers = await self._access.run(
            "marking events done", PLAN, self._sql.held(owner), self._sql.done(owner, rows, tokens)
        )
        held: dict[int, int] = dict(answers.rows(1))
        self._forget(rows)
        return bool(held) and all(part in held and held[part] == holding.tokens.get(part) for part in parts)

    async def refused(self, owner: str, row: int, *, detail: str, attempts_max: int) -> bool:
        """Count a refusal; at the limit the row moves to the quarantine, under its number."""
        refuse = self._sql.refuse(owner, row, kept(detail[:_DETAIL_MAX]), attempts_max)
        quarantined = bool((await self._access.run("counting a refusal", PLAN, refuse)).rows()[0][0])
        if quarantined:
            self._forget([row])
        return quarantined

    async def _give_up(self, owner: str, holding: _Holding) -> None:
        idle = holding.leaving - holding.flying
        if idle:
            for part in idle:
                holding.tokens.pop(part, None)
            holding.leaving -= idle
            self._tell_parts()
            await self._access.run(
                "giving partitions up", self._sql.give_up(owner, idle), self._sql.tell(RELAYS_CHANGED)
            )

    def _tell_parts(self) -> None:
        """Say which partitions are read here; what others read now need not be kept for us."""
        parts = frozenset(part for holding in self._holdings.values() for part in holding.tokens)
        if not parts.issuperset(self._outbox.wake.parts):
            self._forget([number for number in self._outbox.window if number & 63 not in parts])
        self._outbox.wake.parts = parts

    def _forget(self, numbers: Iterable[int]) -> None:
        for number in numbers:
            self._outbox.window.pop(number, None)

    async def _find(
        self, owner: str, holding: _Holding, *, after: int, limit: int, without: Set[int]
    ) -> Sequence[_Found]:
        """Find the first *limit* rows of all partitions together, without their bodies.

        Of each partition only as many rows are read as are likely to be needed; where one has more and they were
        needed, more of each are read.
        """
        on_their_way = max(Counter(number & 63 for number in without).values(), default=0)
        parts = max(1, len(holding.tokens))
        depth = on_their_way + max(8, 2 * limit // parts)
        most = limit + on_their_way
        release: list[Statement] = [self._sql.release_due(owner)] if after == 0 else []
        while True:
            depth = min(depth, most)
            answers = await self._access.run(
                "claiming events", PLAN, *release, self._sql.next_due(),
                self._sql.find(owner, after=after, depth=depth, leaving=holding.leaving),
            )  # fmt: skip
            self._note_due(answers.rows(-2)[0][0])
            rows = answers.rows()
            seen = Counter(number & 63 for number, *_ in rows)
            ends = {number & 63: number for number, *_ in rows if seen[number & 63] >= depth}
            end = min(ends.values(), default=None)
            found = [
                _Found(number, attempts, size, blocked)
                for number, attempts, size, blocked in rows
                if number not in without and (end is None or number <= end)
            ]
            if len(found) >= limit or end is None or depth >= most:
                return found[:limit]
            depth, release = depth * 4, []

    async def _read(self, found: Sequence[_Found], limit: int) -> Sequence[Pending]:
        """Return the rows that were found, up to the size of a claim, with their messages."""
        wanted: list[_Found] = []
        size = 0
        for row in found:
            if size >= CLAIM_BYTES_MAX:
                break
            wanted.append(row)
            size += row.size
        window = self._outbox.window
        missing = [row.number for row in wanted if row.number not in window]
        messages: dict[int, Message] = {}
        if missing:
            answers = await self._access.run("reading events", PLAN, self._sql.read(missing))
            messages = {number: message_of(columns) for number, *columns in answers.rows()}
        rows = [(row, messages.get(row.number) or window.get(row.number)) for row in wanted]
        return up_to((Pending(row.number, one, row.attempts) for row, one in rows if one is not None), limit)

    def _note_due(self, microseconds: int | None) -> None:
        now = asyncio.get_running_loop().time()
        self._outbox.due_at = float("inf") if microseconds is None else now + microseconds / 1e6
