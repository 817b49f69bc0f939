"""Native twins: the same rows and the same syncs with the standard library's `sqlite3` and msgspec, and nothing else.

They do what a program without a framework could not do without: bytes are made of events and events of bytes, and
what is stored for exactly-once (mark, digest, outgoing event) is stored. Nothing is checked, scheduled, held,
retried, fenced or observed, and nobody else is let in.
"""

from __future__ import annotations

import sqlite3
from hashlib import blake2b
from pathlib import Path
from typing import Any

import msgspec

from benchmarks.work import OrderPlaced, OrderSeen, order
from tidewire.chance import UUID7Ids

__all__ = ["NativeLog", "NativeStore"]

_encode = msgspec.json.Encoder().encode
_decode = msgspec.json.Decoder(OrderPlaced).decode
_decode_headers = msgspec.json.Decoder(dict[str, str]).decode
_SHARED = {
    "ce-specversion": "1.0",
    "ce-source": "bench",
    "ce-type": "bench.order.placed",
    "ce-schemaversion": "1",
    "content-type": "application/json",
}
_INSERT = "INSERT INTO log (topic, lane, at, id, source, key, headers, body) VALUES (?, ?, 1, ?, 1, ?, ?, ?)"


def connect(path: Path) -> sqlite3.Connection:
    """Open a file with the broker's durability: WAL, every commit synced, the log copied after 4 MiB."""
    connection = sqlite3.connect(path, isolation_level=None)
    for pragma in ("journal_mode=WAL", "synchronous=FULL", "wal_autocheckpoint=1000", "mmap_size=0"):
        connection.execute(f"PRAGMA {pragma}").fetchall()
    return connection


def headers_of(event_id: str, key: str, correlation: str) -> str:
    """Return the headers of one event as the log has them."""
    headers = {**_SHARED, "ce-id": event_id, "ce-time": "2026-11-24T09:30:00.000000Z"}
    headers["ce-correlationid"] = correlation
    headers["ce-partitionkey"] = key
    return _encode(headers).decode()


class NativeLog:
    """The broker's log: one table, its two indexes, and a cursor."""

    def __init__(self, path: Path) -> None:
        self.connection = connect(path)
        self._ids = UUID7Ids()
        for sql in (
            "CREATE TABLE log (seq INTEGER PRIMARY KEY AUTOINCREMENT, topic INTEGER, lane INTEGER, at INTEGER, id TEXT,"
            " source INTEGER, key TEXT, headers TEXT, body BLOB)",
            "CREATE INDEX log_topic ON log (topic, seq, lane)",
            "CREATE UNIQUE INDEX log_once ON log (topic, id, source)",
            "CREATE TABLE cursor (lane INTEGER PRIMARY KEY, pos INTEGER)",
            "INSERT INTO cursor VALUES (0, 0)",
        ):
            self.connection.execute(sql)

    def append(self, count: int, batch: int) -> None:
        """Append *count* rows of bytes that are there already, *batch* to a commit."""
        body, headers = _encode(order(1)), headers_of("0" * 36, "order-000000", "0" * 36)
        for start in range(0, count, batch):
            self.write(
                [(1, n % 8, self._ids.event_id(), f"order-{n}", headers, body) for n in range(start, start + batch)]
            )

    def publish(self, events: list[OrderPlaced], batch: int) -> None:
        """Encode and append *events*, *batch* to a commit."""
        for start in range(0, len(events), batch):
            rows: list[tuple[Any, ...]] = []
            for event in events[start : start + batch]:
                event_id, key = self._ids.event_id(), event.order_id
                rows.append((1, hash(key) % 8, event_id, key, headers_of(event_id, key, event_id), _encode(event)))
            self.write(rows)

    def write(self, rows: list[tuple[Any, ...]]) -> None:
        """Append *rows* in one commit."""
        self.connection.execute("BEGIN IMMEDIATE")
        self.connection.executemany(_INSERT, rows)
        self.connection.execute("COMMIT")


class NativeStore:
    """A unit by hand: look the mark up, insert mark, user's row and outgoing event; then relay and delete it."""

    def __init__(self, path: Path) -> None:
        self.connection = connect(path / "native-store.db")
        self.log = NativeLog(path / "native-broker.db")
        self._ids = UUID7Ids()
        for sql in (
            "CREATE TABLE seen (id TEXT PRIMARY KEY, number INTEGER)",
            "CREATE TABLE mark (id INTEGER PRIMARY KEY, scope INTEGER, event_id BLOB, digest BLOB, at INTEGER)",
            "CREATE UNIQUE INDEX mark_once ON mark (scope, event_id)",
            "CREATE TABLE outbox (row INTEGER PRIMARY KEY AUTOINCREMENT, id TEXT, source TEXT, topic TEXT, key TEXT,"
            " type TEXT, headers TEXT, body BLOB)",
        ):
            self.connection.execute(sql)

    def handle(self, events: list[OrderPlaced], batch: int) -> None:
        """Append *events*, handle each once in units of *batch* to a commit, relay what they publish, ack."""
        store, broker = self.connection, self.log.connection
        for start in range(0, len(events), batch):
            self.log.publish(events[start : start + batch], batch)
            rows = broker.execute(
                "SELECT seq, id, headers, body FROM log WHERE topic = 1 ORDER BY seq DESC LIMIT ?", (batch,)
            ).fetchall()
            store.execute("BEGIN IMMEDIATE")
            for row in rows:
                self._handle(*row[1:])
            store.execute("COMMIT")
            out = store.execute("SELECT row, id, key, headers, body FROM outbox ORDER BY row").fetchall()
            broker.execute("BEGIN IMMEDIATE")
            broker.executemany(_INSERT, [(2, 0, *row[1:]) for row in out])
            broker.execute("UPDATE cursor SET pos = ? WHERE lane = 0", (rows[0][0],))
            broker.execute("COMMIT")
            store.execute("BEGIN IMMEDIATE")
            store.execute("DELETE FROM outbox WHERE row <= ?", (out[-1][0],))
            store.execute("COMMIT")

    def _handle(self, event_id: str, headers: str, body: bytes) -> None:
        execute = self.connection.execute
        packed, digest = bytes.fromhex(event_id.replace("-", "")), blake2b(body, digest_size=16).digest()
        correlation = _decode_headers(headers)["ce-correlationid"]
        if execute("SELECT digest FROM mark WHERE scope = 1 AND event_id = ?", (packed,)).fetchone() is not None:
            return
        placed = _decode(body)
        execute("INSERT INTO seen VALUES (?, 1)", (placed.order_id,))
        execute("INSERT INTO mark (scope, event_id, digest, at) VALUES (1, ?, ?, 1)", (packed, digest))
        new_id, key = self._ids.event_id(), placed.order_id
        execute(
            "INSERT INTO outbox (id, source, topic, key, type, headers, body) VALUES (?, 's', 't', ?, 'y', ?, ?)",
            (new_id, key, headers_of(new_id, key, correlation), _encode(OrderSeen(key))),
        )
