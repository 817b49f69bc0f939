"""The embedded broker's tables: one log for all topics, a cursor per (group, lane), and the private channels."""

from __future__ import annotations

from tidewire.errors import TransportClosed, TransportRefused, TransportUnavailable
from tidewire.kit.sqlite_errors import FileErrors
from tidewire.kit.sqlite_file import FileKind

__all__ = ["BROKER"]

_MESSAGE = "id TEXT NOT NULL, source INTEGER NOT NULL, key TEXT, headers TEXT NOT NULL, body BLOB NOT NULL"

_FIRST = (
    """CREATE TABLE topic (
        id INTEGER PRIMARY KEY, name TEXT NOT NULL UNIQUE, lanes INTEGER NOT NULL, retention INTEGER,
        size_max INTEGER, size INTEGER NOT NULL DEFAULT 0, trimmed INTEGER NOT NULL DEFAULT 0,
        trimmed_at INTEGER NOT NULL DEFAULT 0) STRICT""",
    # Sources of events, interned.
    "CREATE TABLE source (id INTEGER PRIMARY KEY, name TEXT NOT NULL UNIQUE) STRICT",
    # A group on a topic.
    """CREATE TABLE member_of (
        id INTEGER PRIMARY KEY, grp TEXT NOT NULL, topic INTEGER NOT NULL REFERENCES topic, UNIQUE (grp, topic))
        STRICT""",
    f"""CREATE TABLE log (
        seq INTEGER PRIMARY KEY AUTOINCREMENT, topic INTEGER NOT NULL, lane INTEGER NOT NULL, at INTEGER NOT NULL,
        {_MESSAGE}) STRICT""",
    # Reading on: flat in the length of the log and in the number of topics.
    "CREATE INDEX log_topic ON log (topic, seq, lane)",
    # An id is stored once per topic and source; ids made in order are appended; foreign messages may have none.
    "CREATE UNIQUE INDEX log_once ON log (topic, id, source) WHERE id != ''",
    f"""CREATE TABLE delayed (
        row INTEGER PRIMARY KEY, due INTEGER NOT NULL, topic INTEGER NOT NULL, {_MESSAGE}) STRICT""",
    "CREATE INDEX delayed_due ON delayed (due)",
    f"""CREATE TABLE inbox (
        seq INTEGER PRIMARY KEY AUTOINCREMENT, sub INTEGER NOT NULL, lane INTEGER NOT NULL, due INTEGER NOT NULL,
        at INTEGER NOT NULL, attempt INTEGER NOT NULL, suspect INTEGER NOT NULL, {_MESSAGE}) STRICT""",
    "CREATE INDEX inbox_due ON inbox (sub, lane, due, seq)",
    f"""CREATE TABLE dead (
        seq INTEGER PRIMARY KEY AUTOINCREMENT, sub INTEGER NOT NULL, at INTEGER NOT NULL, {_MESSAGE}) STRICT""",
    "CREATE INDEX dead_sub ON dead (sub, seq)",
    # All rows of the lane up to pos are settled. owner '' is nobody; clean: the last owner gave the lane back.
    """CREATE TABLE cursor (
        sub INTEGER NOT NULL, lane INTEGER NOT NULL, pos INTEGER NOT NULL, epoch INTEGER NOT NULL,
        owner TEXT NOT NULL, boot TEXT NOT NULL, until INTEGER NOT NULL, prefetch INTEGER NOT NULL,
        PRIMARY KEY (sub, lane)) STRICT, WITHOUT ROWID""",
    # What is known of rows above the cursor: settled, or handed out before.
    """CREATE TABLE above (
        sub INTEGER NOT NULL, lane INTEGER NOT NULL, seq INTEGER NOT NULL, settled INTEGER NOT NULL,
        attempt INTEGER NOT NULL, suspect INTEGER NOT NULL, due INTEGER NOT NULL,
        PRIMARY KEY (sub, lane, seq)) STRICT, WITHOUT ROWID""",
    """CREATE TABLE member (
        name TEXT PRIMARY KEY, grp TEXT NOT NULL, topics TEXT NOT NULL, address TEXT NOT NULL, boot TEXT NOT NULL,
        until INTEGER NOT NULL) STRICT, WITHOUT ROWID""",
)

_SECOND = (
    # What operators did, as JSON.
    "CREATE TABLE act (number INTEGER PRIMARY KEY AUTOINCREMENT, text TEXT NOT NULL) STRICT",
    "CREATE TRIGGER act_stays BEFORE UPDATE ON act BEGIN SELECT RAISE(ABORT, 'an act is never changed'); END",
    "CREATE TRIGGER act_is_kept BEFORE DELETE ON act BEGIN SELECT RAISE(ABORT, 'an act is never removed'); END",
    # Where an event lies. The log, which every publish writes, has log_once for it and gets no index more; a row of
    # these three costs about 2 µs more on its way in and out, and a dead channel may grow to any size.
    "CREATE INDEX delayed_id ON delayed (id)",
    "CREATE INDEX inbox_id ON inbox (id)",
    "CREATE INDEX dead_id ON dead (id)",
)

BROKER = FileKind(
    noun="broker",
    application_id=0x74776272,
    migrations=(_FIRST, _SECOND),
    errors=FileErrors(TransportUnavailable, TransportRefused, TransportClosed),
)
