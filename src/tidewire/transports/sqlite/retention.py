"""What has been settled by every group goes after its time; what has not, stays whatever its age."""

from __future__ import annotations

import sqlite3

__all__ = ["sweep"]

_ROWS_MAX = 2_000


def sweep(connection: sqlite3.Connection, now: int) -> int:
    """Delete up to a batch of old, settled rows of each topic and return how many went."""
    gone = 0
    topics = connection.execute("SELECT id, retention, size_max FROM topic WHERE retention IS NOT NULL").fetchall()
    for topic, retention, size_max in topics:
        rows = connection.execute(  # log_topic: from the oldest row on
            "SELECT l.seq, length(l.body) FROM (SELECT seq, lane, at, body FROM log WHERE topic = ?1 "
            "ORDER BY seq LIMIT ?2) l WHERE l.at < ?3 AND NOT EXISTS (SELECT 1 FROM cursor c JOIN member_of m "
            "ON m.id = c.sub WHERE m.topic = ?1 AND c.lane = l.lane AND c.pos < l.seq)",
            (topic, _ROWS_MAX, now - retention),
        ).fetchall()
        if not rows:
            continue
        connection.executemany("DELETE FROM log WHERE seq = ?", [(row[0],) for row in rows])
        size = sum(row[1] for row in rows) if size_max is not None else 0
        connection.execute(
            "UPDATE topic SET size = size - ?, trimmed = max(trimmed, ?) WHERE id = ?",
            (size, max(row[0] for row in rows), topic),
        )
        gone += len(rows)
    return gone
