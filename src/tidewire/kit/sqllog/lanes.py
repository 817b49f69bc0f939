"""Lanes as one member holds them: the SQL of taking, keeping, settling and giving back, and what is in memory."""

from __future__ import annotations

from collections.abc import Container, Iterable, Sequence
from typing import NamedTuple

from tidewire.kit.sqllog.home import Connection
from tidewire.model import Delivery, InboxChannel

__all__ = ["Lane", "Past", "extend", "give_back", "move_cursor", "take", "wanted"]


class Past(NamedTuple):
    """What is known of a row above the cursor."""

    settled: int
    attempt: int
    suspect: int
    due: int


class Lane:
    """A lane that this member owns. Lives on the event loop.

    *pos*: everything up to it is settled, durably. *read*: everything up to it has been handed out or was settled
    before. *out*: what is handed out, by row; *acked*: rows above *pos* that are settled. *again*: rows to be
    handed out again, with their time. *inbox_out*: rows of the inbox channel that are handed out; *inbox_settled*: how
    often some of them were settled or released.
    """

    __slots__ = (
        "acked", "again", "deadline", "epoch", "inbox_out", "inbox_settled", "name", "number", "out", "past", "paused",
        "pos", "read", "revoking", "sub", "topic",
    )  # fmt: skip

    def __init__(
        self, *, name: str, sub: int, topic: int, number: int, epoch: int, pos: int, past: dict[int, Past]
    ) -> None:
        self.name = name
        self.sub = sub
        self.topic = topic
        self.number = number
        self.epoch = epoch
        self.pos = pos
        self.read = pos
        self.past = past
        self.out: dict[int, None] = {}
        self.acked: set[int] = {seq for seq, known in past.items() if known.settled}
        self.again: dict[int, int] = {}
        self.inbox_out: dict[int, None] = {}
        self.inbox_settled = 0
        self.paused = False
        self.revoking = False
        self.deadline = 0

    @property
    def unsettled(self) -> int:
        """How many deliveries are out."""
        return len(self.out) + len(self.inbox_out)

    def has_out(self, delivery: Delivery) -> bool:
        """Whether *delivery* is out: not settled or given back before."""
        return delivery.position in (self.inbox_out if isinstance(delivery.message.to, InboxChannel) else self.out)

    def prefix(self, settling: Container[int] = ()) -> int:
        """Return the row up to which everything is settled, or will be with *settling*."""
        first = next((seq for seq in sorted(self.out) if seq not in settling), None)
        if self.again:
            returned = min(self.again)
            first = returned if first is None else min(first, returned)
        return self.read if first is None else first - 1


def wanted(members: Sequence[str], me: str, lanes: Iterable[tuple[int, int]]) -> set[tuple[int, int]]:
    """Return the (sub, lane) that fall to *me*: the same answer in every member that sees the same *members*."""
    order = sorted(members)
    place = order.index(me)
    return {(sub, number) for sub, number in lanes if number % len(order) == place}


def take(
    connection: Connection, sub: int, number: int, *, owner: str, boot: str, now_ticks: int, until: int,
    now_us: int, prefetch: int,
) -> tuple[int, int, dict[int, Past]] | None:  # fmt: skip
    """Take a lane that is free or whose lease has ended; return its epoch, position and past, or None.

    What a member that did not give it back may have had in hand, the first *prefetch* unsettled rows, comes back
    with an attempt more and as suspect, and that is written in the same transaction.
    """
    row = connection.execute(
        "SELECT pos, epoch, owner, boot, until, prefetch FROM cursor WHERE sub = ? AND lane = ?", (sub, number)
    ).fetchone()
    if row is None:
        return None
    pos, epoch, before, before_boot, before_until, before_prefetch = row
    if before and before != owner and before_boot == boot and before_until > now_ticks:
        return None
    epoch = max(epoch + 1, now_us)  # also grows when the file has been made anew
    connection.execute(
        "UPDATE cursor SET epoch = ?, owner = ?, boot = ?, until = ?, prefetch = ? WHERE sub = ? AND lane = ?",
        (epoch, owner, boot, until, prefetch, sub, number),
    )
    if before:
        _suspect(connection, sub, number, pos=pos, prefetch=before_prefetch, now_us=now_us)
    past = {
        seq: Past(*known)
        for seq, *known in connection.execute(
            "SELECT seq, settled, attempt, suspect, due FROM above WHERE sub = ? AND lane = ? AND seq > ?",
            (sub, number, pos),
        )
    }
    return epoch, pos, past


def _suspect(connection: Connection, sub: int, number: int, *, pos: int, prefetch: int, now_us: int) -> None:
    connection.execute(
        "INSERT INTO above AS o (sub, lane, seq, settled, attempt, suspect, due) "
        "SELECT CAST(?1 AS BIGINT), CAST(?2 AS BIGINT), l.seq, 0, 2, 1, 0 FROM log l "
        "WHERE l.topic = (SELECT topic FROM member_of WHERE id = ?1) AND l.lane = ?2 AND l.seq > ?3 "
        "AND NOT EXISTS (SELECT 1 FROM above a WHERE a.sub = ?1 AND a.lane = ?2 AND a.seq = l.seq AND a.settled != 0) "
        "ORDER BY l.seq LIMIT ?4 "
        "ON CONFLICT (sub, lane, seq) DO UPDATE SET attempt = o.attempt + 1, suspect = 1 WHERE o.settled = 0",
        (sub, number, pos, prefetch),
    )
    connection.execute(
        "UPDATE inbox SET attempt = attempt + 1, suspect = 1 WHERE seq IN "
        "(SELECT seq FROM inbox WHERE sub = ? AND lane = ? AND due <= ? ORDER BY due, seq LIMIT ?)",
        (sub, number, now_us, prefetch),
    )


def extend(connection: Connection, owner: str, until: int) -> bool:
    """Extend the lease of everything *owner* has, and of the membership itself; False if there is none."""
    connection.execute("UPDATE cursor SET until = ? WHERE owner = ?", (until, owner))
    return connection.execute("UPDATE member SET until = ? WHERE name = ?", (until, owner)).rowcount > 0


def move_cursor(connection: Connection, lane: Lane, owner: str, pos: int, acked: Sequence[int]) -> bool:
    """Settle *acked* rows and move the cursor to *pos*; False if the lane is somebody else's now."""
    changed = connection.execute(
        "UPDATE cursor SET pos = max(pos, ?) WHERE sub = ? AND lane = ? AND epoch = ? AND owner = ?",
        (pos, lane.sub, lane.number, lane.epoch, owner),
    ).rowcount
    if not changed:
        return False
    beyond = [(lane.sub, lane.number, seq) for seq in acked if seq > pos]
    if beyond:
        connection.executemany(
            "INSERT INTO above AS o (sub, lane, seq, settled, attempt, suspect, due) VALUES (?, ?, ?, 1, 1, 0, 0) "
            "ON CONFLICT (sub, lane, seq) DO UPDATE SET settled = 1 WHERE o.settled = 0",
            beyond,
        )
    if lane.past or lane.acked:
        connection.execute("DELETE FROM above WHERE sub = ? AND lane = ? AND seq <= ?", (lane.sub, lane.number, pos))
    return True


def give_back(connection: Connection, lanes: Sequence[Lane], owner: str, *, clean: bool, now_us: int) -> None:
    """Give lanes back: what is unsettled goes to the next owner, uncounted if *clean*, else as after a crash."""
    for lane in lanes:
        row = connection.execute(
            "UPDATE cursor SET owner = '', until = 0 WHERE sub = ? AND lane = ? AND epoch = ? AND owner = ? "
            "RETURNING pos, prefetch",
            (lane.sub, lane.number, lane.epoch, owner),
        ).fetchone()
        if row is not None and not clean:
            _suspect(connection, lane.sub, lane.number, pos=row[0], prefetch=row[1], now_us=now_us)
