"""What there is of each topic and group: the SQL behind `topics`, `groups` and `stats`. Runs inside a reading's job."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import timedelta
from typing import NamedTuple

from tidewire.kit.sqllog.home import Connection
from tidewire.kit.sqllog.lanes import Lane
from tidewire.model import Stats, TopicInfo, TopicSpec

__all__ = ["Here", "Place", "describe_topics", "list_places", "live_owners", "measure", "noted", "specs_of", "waiting"]


class Place(NamedTuple):
    """A group on a topic, by its number, with the names."""

    sub: int
    topic: int
    name: str
    group: str


class Here(NamedTuple):
    """What only this process knows, and which leases count: its members, what they have *out* of each (sub, lane),
    how many deliveries that is in each sub, and the boot and ticks by which a lease is judged."""

    members: frozenset[str]
    out: Mapping[tuple[int, int], frozenset[int]]
    unsettled: Mapping[int, int]
    boot: str
    ticks: int
    now: int


class Noted(NamedTuple):
    """A lane of a member here: the row up to which all was handed out, and what is to be added to the counts."""

    topic: int
    sub: int
    number: int
    read: int
    besides: int
    now: int


def specs_of(connection: Connection, names: Sequence[str]) -> list[TopicSpec]:
    """Return how those of the topics *names* are kept that there are; nothing is counted."""
    one = "SELECT lanes, retention, size_max FROM topic WHERE name = ?"  # by the unique name
    rows = [(name, row) for name in names for row in connection.execute(one, (name,)).fetchall()]
    return [
        TopicSpec(name, lanes, None if retention is None else timedelta(microseconds=retention), size_max)
        for name, (lanes, retention, size_max) in rows
    ]


def describe_topics(connection: Connection) -> list[TopicInfo]:
    """Return every topic, by name. The bytes are counted where there is a cap, which they count towards."""
    topics = connection.execute("SELECT id, name, lanes, retention, size, size_max FROM topic ORDER BY name").fetchall()
    found: list[TopicInfo] = []
    for topic, name, lanes, retention, size, size_max in topics:
        # log_topic has all it takes, and one look at each end.
        (count,) = connection.execute("SELECT count(*) FROM log WHERE topic = ?", (topic,)).fetchone()
        ends = "SELECT seq, at FROM log WHERE topic = ? ORDER BY seq"
        first = connection.execute(f"{ends} LIMIT 1", (topic,)).fetchone() or (None, None)
        last = connection.execute(f"{ends} DESC LIMIT 1", (topic,)).fetchone() or (None, None)
        found.append(
            TopicInfo(
                name=name,
                lanes=lanes,
                messages=count,
                size_bytes=None if size_max is None else size,
                retention=None if retention is None else timedelta(microseconds=retention),
                first=first[0],
                last=last[0],
                oldest_at=first[1],
                newest_at=last[1],
                size_bytes_max=size_max,
            )
        )
    return found


def list_places(connection: Connection, topic: str | None) -> list[Place]:
    """Return every group on every topic, or on *topic*, by topic and name."""
    rows = connection.execute(
        "SELECT m.id, m.topic, t.name, m.grp FROM member_of m JOIN topic t ON t.id = m.topic "
        "WHERE CAST(?1 AS TEXT) IS NULL OR t.name = ?1 ORDER BY t.name, m.grp",
        (topic,),
    )
    return [Place(*row) for row in rows.fetchall()]


def live_owners(connection: Connection, place: Place, here: Here) -> dict[str, str]:
    """Return the member that has each lane, by the lane's name; an ended lease is nobody's."""
    rows = connection.execute(  # the primary key
        "SELECT lane, owner FROM cursor WHERE sub = ? AND owner != '' AND boot = ? AND until > ? ORDER BY lane",
        (place.sub, here.boot, here.ticks),
    )
    return {f"{place.name}/{lane}": owner for lane, owner in rows.fetchall()}


def measure(connection: Connection, place: Place, here: Here) -> Stats:
    """Count by index. *in_flight* is None while a member of another process has lanes: only it knows."""
    sub, now = place.sub, here.now

    def count(sql: str, *parameters: int) -> int:
        return int(connection.execute(f"SELECT count(*) FROM {sql}", parameters).fetchone()[0])

    cursors = connection.execute("SELECT lane, pos FROM cursor WHERE sub = ?", (sub,)).fetchall()
    above = "above a JOIN cursor c ON c.sub = a.sub AND c.lane = a.lane WHERE a.sub = ? AND a.seq > c.pos"
    unsettled = _beyond(connection, place, cursors) - count(f"{above} AND a.settled != 0", sub)
    waiting = count(f"{above} AND a.settled = 0 AND a.due > ?", sub, now)
    private = count("inbox WHERE sub = ? AND due <= ?", sub, now)
    later = count("inbox WHERE sub = ? AND due > ?", sub, now)
    delayed = count("delayed WHERE topic = ?", place.topic)
    owners = set(live_owners(connection, place, here).values())
    known = owners <= here.members
    # Something may have been settled since *here* was noted: what is gone is not in flight.
    in_flight = min(here.unsettled.get(sub, 0), unsettled + private) if known or not unsettled + private else None
    return Stats(
        ready=max(0, unsettled - waiting + private - (in_flight or 0)),
        in_flight=in_flight,
        delayed=waiting + later + delayed,
        dead=count("dead WHERE sub = ?", sub),
        oldest_ready=_oldest(connection, place, cursors, here) if unsettled else None,
    )


def noted(lane: Lane, now: int) -> Noted:
    """Note of *lane* what counting needs, to be counted in another thread at the time *now*."""
    known = sum(seq > lane.read for seq in {*lane.acked, *lane.again})
    due = sum(at <= now for at in lane.again.values())
    return Noted(lane.topic, lane.sub, lane.number, lane.read, due - known - len(lane.inbox_out), now)


def waiting(connection: Connection, lane: Noted) -> int:
    """Count what of a lane waits to be handed out: in its log, and in its inbox channel."""
    (beyond,) = connection.execute(  # log_topic, and nothing but it
        "SELECT count(*) FROM log WHERE topic = ? AND seq > ? AND lane = ?", (lane.topic, lane.read, lane.number)
    ).fetchone()
    (due,) = connection.execute(  # inbox_due
        "SELECT count(*) FROM inbox WHERE sub = ? AND lane = ? AND due <= ?", (lane.sub, lane.number, lane.now)
    ).fetchone()
    return max(0, int(beyond) + int(due) + lane.besides)


def _beyond(connection: Connection, place: Place, cursors: Sequence[tuple[int, int]]) -> int:
    """Count the rows behind the cursors: in one go behind the foremost, lane by lane up to there."""
    front = max((pos for _, pos in cursors), default=0)
    (total,) = connection.execute(  # log_topic, and nothing but it
        "SELECT count(*) FROM log WHERE topic = ? AND seq > ?", (place.topic, front)
    ).fetchone()
    for lane, pos in cursors:
        if pos < front:
            (between,) = connection.execute(  # log_topic
                "SELECT count(*) FROM log WHERE topic = ? AND seq > ? AND seq <= ? AND lane = ?",
                (place.topic, pos, front, lane),
            ).fetchone()
            total += between
    return int(total)


def _oldest(connection: Connection, place: Place, cursors: Sequence[tuple[int, int]], here: Here) -> int | None:
    """When the first row was stored that is neither settled nor out in this process."""
    out = {seq for lane, _ in cursors for seq in here.out.get((place.sub, lane), ())}
    rows = connection.execute(  # log_topic from the hindmost cursor on; the others by their primary keys
        "SELECT l.seq, l.at FROM log l CROSS JOIN cursor c ON c.sub = ?1 AND c.lane = l.lane "
        "WHERE l.topic = ?2 AND l.seq > ?3 AND l.seq > c.pos AND NOT EXISTS "
        "(SELECT 1 FROM above a WHERE a.sub = ?1 AND a.lane = l.lane AND a.seq = l.seq AND a.settled != 0) "
        "ORDER BY l.seq LIMIT ?4",
        (place.sub, place.topic, min(pos for _, pos in cursors), len(out) + 1),
    )
    return next((at for seq, at in rows if seq not in out), None)
