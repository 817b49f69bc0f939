"""Native twins: the same SQL and the same syncs with the standard library's `sqlite3` and nothing else."""

from __future__ import annotations

import sqlite3
from pathlib import Path

import msgspec

from benchmarks.work import order
from tidewire.chance import UUID7Ids
from tidewire.codecs.json import json_codec

__all__ = ["NativeLog", "NativeStore"]

_HEADERS = msgspec.json.encode(
    {
        "ce-specversion": "1.0",
        "ce-source": "bench",
        "ce-type": "bench.order.placed",
        "ce-schemaversion": "1",
        "content-type": "application/json",
        "ce-id": "0" * 36,
        "ce-time": "2026-11-24T09:30:00.000000Z",
        "ce-correlationid": "0" * 36,
        "ce-partitionkey": "order-000000",
    }
).decode()


def connect(path: Path) -> sqlite3.Connection:
    """Open a file with the broker's durability: WAL, every commit synced."""
    connection = sqlite3.connect(path, isolation_level=None)
    for pragma in ("journal_mode=WAL", "synchronous=FULL", "wal_autocheckpoint=0", "mmap_size=0"):
        connection.execute(f"PRAGMA {pragma}").fetchall()
    return connection


class NativeLog:
    """The broker's log: one table, its two indexes, and a cursor."""

    def __init__(self, path: Path) -> None:
        self.connection = connect(path)
        self._ids = UUID7Ids()
        self._body = json_codec(type(order(1))).encode(order(1))
        self._commits = 0
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
        """Append *count* rows, *batch* to a commit."""
        for start in range(0, count, batch):
            self.connection.execute("BEGIN IMMEDIATE")
            self.connection.executemany(
                "INSERT INTO log (topic, lane, at, id, source, key, headers, body) VALUES (1, ?, 1, ?, 1, ?, ?, ?)",
                [
                    (n % 8, self._ids.event_id(), f"order-{n}", _HEADERS, self._body)
                    for n in range(start, start + batch)
                ],
            )
            self.connection.execute("COMMIT")
            self._commits += 1
            if self._commits % 4_000 == 0:
                self.connection.execute("PRAGMA wal_checkpoint(PASSIVE)").fetchall()


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

    def handle(self, count: int, batch: int) -> None:
        """Append *count* events, handle each once in units of *batch* to a commit, relay what they publish, ack."""
        body = b'{"order_id":"order-000000"}'
        for _ in range(0, count, batch):
            self.log.append(batch, batch)
            rows = self.log.connection.execute(
                "SELECT seq, id, headers, body FROM log WHERE topic = 1 ORDER BY seq DESC LIMIT ?", (batch,)
            ).fetchall()
            ids = [bytes.fromhex(row[1].replace("-", "")) for row in rows]
            for packed in ids:
                self.connection.execute(
                    "SELECT digest FROM mark WHERE scope = 1 AND event_id = ?", (packed,)
                ).fetchone()
            self.connection.execute("BEGIN IMMEDIATE")
            for packed, row in zip(ids, rows, strict=True):
                self.connection.execute("INSERT INTO seen VALUES (?, 1)", (row[1],))
                self.connection.execute(
                    "INSERT INTO mark (scope, event_id, digest, at) VALUES (1, ?, ?, 1)", (packed, packed)
                )
                self.connection.execute(
                    "INSERT INTO outbox (id, source, topic, key, type, headers, body) VALUES (?, 's', 't', 'k', 'y', ?, ?)",
                    (self._ids.event_id(), _HEADERS, body),
                )
            self.connection.execute("COMMIT")
            out = self.connection.execute("SELECT row, id, key, headers, body FROM outbox ORDER BY row").fetchall()
            connection = self.log.connection
            connection.execute("BEGIN IMMEDIATE")
            connection.executemany(
                "INSERT INTO log (topic, lane, at, id, source, key, headers, body) VALUES (2, 0, 1, ?, 1, ?, ?, ?)",
                [row[1:] for row in out],
            )
            connection.execute("UPDATE cursor SET pos = ? WHERE lane = 0", (rows[0][0],))
            connection.execute("COMMIT")
            self.connection.execute("BEGIN IMMEDIATE")
            self.connection.execute("DELETE FROM outbox WHERE row <= ?", (out[-1][0],))
            self.connection.execute("COMMIT")
