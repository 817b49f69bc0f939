"""The tables that tidewire keeps beside the user's own, in the service's database file."""

from __future__ import annotations

from tidewire.errors import StoreRefused, StoreUnavailable, TransactionClosed
from tidewire.kit.sqlite_errors import FileErrors
from tidewire.kit.sqlite_file import FileKind

__all__ = ["STORE"]

_FIRST = (
    # Scopes of inbox marks, interned: the four texts would otherwise be in every row and index entry.
    """CREATE TABLE tidewire_scope (
        id INTEGER PRIMARY KEY, grp TEXT NOT NULL, handler TEXT NOT NULL, run INTEGER NOT NULL, source TEXT NOT NULL,
        UNIQUE (grp, handler, run, source)) STRICT""",
    # Rows in the order of their time, so that pruning reads only what it deletes.
    """CREATE TABLE tidewire_mark (
        id INTEGER PRIMARY KEY, scope INTEGER NOT NULL, event_id ANY NOT NULL, digest BLOB NOT NULL,
        at INTEGER NOT NULL) STRICT""",
    "CREATE UNIQUE INDEX tidewire_mark_once ON tidewire_mark (scope, event_id)",
    "CREATE TABLE tidewire_run (grp TEXT PRIMARY KEY, run INTEGER NOT NULL) STRICT, WITHOUT ROWID",
    # Only what may leave now: no index besides the row number, which grows in commit order.
    """CREATE TABLE tidewire_outbox (
        row INTEGER PRIMARY KEY AUTOINCREMENT, id TEXT NOT NULL, source TEXT NOT NULL, aggregatetype TEXT NOT NULL,
        aggregateid TEXT, type TEXT NOT NULL, headers TEXT NOT NULL, payload BLOB NOT NULL,
        attempts INTEGER NOT NULL DEFAULT 0) STRICT""",
    """CREATE TABLE tidewire_outbox_delayed (
        row INTEGER PRIMARY KEY, due INTEGER NOT NULL, id TEXT NOT NULL, source TEXT NOT NULL,
        aggregatetype TEXT NOT NULL, aggregateid TEXT, type TEXT NOT NULL, headers TEXT NOT NULL,
        payload BLOB NOT NULL) STRICT""",
    "CREATE INDEX tidewire_outbox_due ON tidewire_outbox_delayed (due)",
    # Quarantine: what the broker refuses for good, and what comes behind it of the same key, under its old row.
    """CREATE TABLE tidewire_outbox_refused (
        row INTEGER PRIMARY KEY, id TEXT NOT NULL, source TEXT NOT NULL, aggregatetype TEXT NOT NULL,
        aggregateid TEXT, type TEXT NOT NULL, headers TEXT NOT NULL, payload BLOB NOT NULL,
        attempts INTEGER NOT NULL, detail TEXT NOT NULL, at INTEGER NOT NULL) STRICT""",
    "CREATE INDEX tidewire_outbox_refused_key ON tidewire_outbox_refused (aggregatetype, aggregateid)",
    """CREATE TABLE tidewire_lease (
        name TEXT PRIMARY KEY, owner TEXT NOT NULL, boot TEXT NOT NULL, until INTEGER NOT NULL)
        STRICT, WITHOUT ROWID""",
    """CREATE TABLE tidewire_attempt (
        grp TEXT NOT NULL, source TEXT NOT NULL, event_id TEXT NOT NULL, starts INTEGER NOT NULL, failure TEXT NOT NULL,
        PRIMARY KEY (grp, source, event_id)) STRICT, WITHOUT ROWID""",
    """CREATE TABLE tidewire_held (
        sequence INTEGER PRIMARY KEY AUTOINCREMENT, grp TEXT NOT NULL, topic TEXT NOT NULL, key TEXT NOT NULL,
        source TEXT NOT NULL, event_id TEXT NOT NULL, state TEXT NOT NULL, due INTEGER,
        UNIQUE (grp, topic, key, source, event_id)) STRICT""",
    "CREATE INDEX tidewire_held_head ON tidewire_held (grp, topic, key, sequence)",
    """CREATE TABLE tidewire_lane (
        grp TEXT NOT NULL, lane TEXT NOT NULL, epoch INTEGER NOT NULL, PRIMARY KEY (grp, lane))
        STRICT, WITHOUT ROWID""",
)

_SECOND = (
    # Recurring runs: the rule in one line, when it is due next, and whose lease is on it by which boot's ticks.
    """CREATE TABLE tidewire_timetable (
        name TEXT PRIMARY KEY, rule TEXT NOT NULL, due INTEGER NOT NULL, owner TEXT NOT NULL, boot TEXT NOT NULL,
        until INTEGER NOT NULL) STRICT, WITHOUT ROWID""",
)

STORE = FileKind(
    noun="store",
    application_id=0x74775374,
    migrations=(_FIRST, _SECOND),
    errors=FileErrors(StoreUnavailable, StoreRefused, TransactionClosed),
)
