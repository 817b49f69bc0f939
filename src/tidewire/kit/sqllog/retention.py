"""What has been settled by every group goes after its time; what has not, stays whatever its age."""

from __future__ import annotations

from tidewire.kit.sqllog.home import Connection

__all__ = ["sweep", "trim"]

_ROWS_MAX = 2_000


def sweep(connection: Connection, now: int) -> int:
    """Delete up to a batch of old, settled rows of each topic and return how many went."""
    topics = connection.execute("SELECT id, retention FROM topic WHERE retention IS NOT NULL").fetchall()
    return sum(trim(connection, topic, now - retention) for topic, retention in topics)


def trim(connection: Connection, topic: int, before: int) -> int:
    """Delete up to a batch of a topic's settled rows stored before *before* and return how many went."""
    oldest = connection.execute(  # log_topic; asked twice a second by every process, so a look at one row is the rule
        "SELECT at FROM log WHERE topic = ? ORDER BY seq LIMIT 1", (topic,)
    ).fetchone()
    if oldest is None or oldest[0] >= before:
        return 0
    rows = connection.execute(  # log_topic: from the oldest row on
        "SELECT l.seq, length(l.body), l.at FROM (SELECT seq, lane, at, body FROM log WHERE topic = ?1 "
        "ORDER BY seq LIMIT ?2) AS l WHERE l.at < ?3 AND NOT EXISTS (SELECT 1 FROM cursor c JOIN member_of m "
        "ON m.id = c.sub WHERE m.topic = ?1 AND c.lane = l.lane AND c.pos < l.seq)",
        (topic, _ROWS_MAX, before),
    ).fetchall()
    if rows:
        connection.executemany("DELETE FROM log WHERE seq = ?", [(row[0],) for row in rows])
        connection.execute(
            "UPDATE topic SET size = CASE WHEN size_max IS NULL THEN size ELSE max(0, size - ?) END, "
            "trimmed = max(trimmed, ?), trimmed_at = max(trimmed_at, ?) WHERE id = ?",
            (sum(row[1] for row in rows), max(row[0] for row in rows), max(row[2] for row in rows), topic),
        )
    return len(rows)
