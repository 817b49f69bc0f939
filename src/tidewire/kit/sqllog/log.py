"""Storing messages: the SQL of the log, the inbox channels and the dead letters. Runs inside a writer's job."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import chain
from typing import Any
from zlib import crc32

import msgspec

from tidewire.kit.sqllog.home import Connection
from tidewire.kit.sqllog.names import Names, TopicRow
from tidewire.kit.sqllog.retention import trim
from tidewire.model import Address, DeadChannel, InboxChannel, Message, Receipt, Topic
from tidewire.rules.names import is_topic_name

__all__ = ["MESSAGE_BYTES_MAX", "Store", "append_due", "checked", "lane_of", "validated"]

MESSAGE_BYTES_MAX = 1 << 20
_MARGIN = 32_768  # what a dead letter's own headers may add
encode_headers = msgspec.json.Encoder().encode


def lane_of(key: str | None, event_id: str, lanes: int) -> int:
    """Return the lane of a key, always the same one; what has no key is spread by its id."""
    return crc32((event_id if key is None else key).encode()) % lanes


async def checked(messages: Sequence[Message], names: Names) -> list[Receipt | None]:
    """Return what `validated` does, when every topic and group has been looked for.

    Raises:
        TransportUnavailable, TransportRefused: they cannot be read.
    """
    names.missing.clear()
    verdicts = validated(messages, names)
    for _ in range(2):  # a topic, and then its group
        if not names.missing:
            break
        await names.look_up()
        verdicts = validated(messages, names)
    return verdicts


def validated(messages: Sequence[Message], names: Names) -> list[Receipt | None]:
    """Return a rejection for what cannot be stored, None for the rest; after a rejection its key is rejected too.

    What *names* does not know is rejected, and noted there as missing.
    """
    verdicts: list[Receipt | None] = []
    failed: set[tuple[Address, str]] = set()
    for message in messages:
        topic = message.to.name if isinstance(message.to, Topic) else message.to.topic
        verdict = _refusal(message, topic, names)
        key = message.key
        if verdict is None and key is not None and failed and (message.to, key) in failed:
            verdict = Receipt(message.id, "rejected", "after_failure", "an earlier message of its key was not stored")
        if verdict is not None and key is not None:
            failed.add((message.to, key))
        verdicts.append(verdict)
    return verdicts


def _refusal(message: Message, topic: str, names: Names) -> Receipt | None:
    if names.topic(topic) is None:
        what = f"there is no topic {topic!r}" if is_topic_name(topic) else "not a name of a topic"
        return Receipt(message.id, "rejected", "unknown_topic", what)
    if not isinstance(message.to, Topic) and names.sub(message.to.group, topic) is None:
        return Receipt(message.id, "rejected", "unknown_topic", f"there is no group {message.to.group!r} on {topic!r}")
    size = len(message.body)
    if size > MESSAGE_BYTES_MAX - 8_192:
        size += sum(len(name) + len(value.encode("utf-8", "replace")) for name, value in message.headers.items())
        limit = MESSAGE_BYTES_MAX if isinstance(message.to, Topic) else MESSAGE_BYTES_MAX + _MARGIN
        if size > limit:
            return Receipt(message.id, "rejected", "too_large", f"{size} bytes; at most {limit}")
    elif len(message.headers) > 64 and sum(map(len, message.headers.values())) > MESSAGE_BYTES_MAX - size:
        return Receipt(message.id, "rejected", "too_large", "its headers are too large")
    try:
        texts = "".join((message.id, message.source, message.key or "", *message.headers.values()))
        if not texts.isascii():
            texts.encode()
    except UnicodeEncodeError:
        return Receipt(message.id, "rejected", "invalid", "a text holds a lone surrogate")
    why = None if names.refusal is None else names.refusal(message)
    return None if why is None else Receipt(message.id, "rejected", "invalid", why)


class Store:
    """One call's messages on their way into the tables."""

    def __init__(self, connection: Connection, names: Names, now: int) -> None:
        self.connection = connection
        self.names = names
        self.now = now
        self.topics: set[int] = set()
        self.subs: set[int] = set()
        self._full: set[tuple[Address, str | None]] = set()

    def all(self, messages: Sequence[Message]) -> list[Receipt]:
        """Store *messages*, which have been validated, in order, and return their receipts."""
        receipts: list[Receipt | None] = [None] * len(messages)
        rows: list[tuple[Any, ...]] = []
        logged: list[int] = []
        for index, message in enumerate(messages):
            to = message.to
            if not isinstance(to, Topic):
                self._private(message, to)
                continue
            topic = self._topic(to.name)
            if topic.size_max is not None and (refusal := self._over_size(message, topic)) is not None:
                receipts[index] = refusal
            elif message.not_before is not None and message.not_before > self.now:
                self.connection.execute(
                    "INSERT INTO delayed (due, topic, id, source, key, headers, body) VALUES (?, ?, ?, ?, ?, ?, ?)",
                    (message.not_before, topic.id, *self.columns(message)),
                )
                self.topics.add(topic.id)
            else:
                lane = lane_of(message.key, message.id, topic.lanes)
                rows.append((topic.id, lane, self.now, *self.columns(message)))
                logged.append(index)
        if rows:
            for index, receipt in zip(
                logged, self._append(rows, [messages[index].body for index in logged]), strict=True
            ):
                receipts[index] = receipt
        return [receipt or Receipt(message.id, "stored") for receipt, message in zip(receipts, messages, strict=True)]

    def _append(self, rows: list[tuple[Any, ...]], bodies: list[bytes]) -> list[Receipt]:
        """Append to the log in one statement; only where an id was known before, look which."""
        before = self._last() if len(rows) > 1 else 0
        written = 0
        for start in range(0, len(rows), _TOGETHER):
            some = rows[start : start + _TOGETHER]
            if len(some) == _TOGETHER:  # one step of SQLite, for which the loop is free all the time
                written += self.connection.execute(_APPEND_TOGETHER, [*chain.from_iterable(some)]).rowcount
            else:
                written += self.connection.executemany(_APPEND, some).rowcount
        self.topics.update(row[0] for row in rows)
        if written == len(rows):
            return [Receipt(row[3], "stored") for row in rows]
        receipts: list[Receipt] = []
        seen: set[tuple[Any, ...]] = set()
        for row, body in zip(rows, bodies, strict=True):
            name = (row[0], row[3], row[4])
            found = self.connection.execute(  # log_once
                "SELECT seq, body FROM log WHERE topic = ? AND id = ? AND source = ? AND id != ''", name
            ).fetchone()
            if found is None:
                receipts.append(Receipt(row[3], "stored"))
            elif found[1] != body:
                detail = "this id and source are stored with another body"
                receipts.append(Receipt(row[3], "rejected", "invalid", detail))
            elif len(rows) == 1 or found[0] <= before or name in seen:
                receipts.append(Receipt(row[3], "duplicate"))
            else:
                receipts.append(Receipt(row[3], "stored"))
            seen.add(name)
        return receipts

    def _over_size(self, message: Message, topic: TopicRow) -> Receipt | None:
        """Count *message* towards its topic's cap, or refuse it, naming who holds it back, and what follows it."""
        key = (message.to, message.key)
        if message.key is not None and key in self._full:
            return Receipt(message.id, "rejected", "after_failure", "an earlier message of its key was not stored")
        size = len(message.body)
        if self._fits(topic, size) or (trim(self.connection, topic.id, self.now) and self._fits(topic, size)):
            return None
        self._full.add(key)
        slowest = self.connection.execute(
            "SELECT m.grp FROM cursor c JOIN member_of m ON m.id = c.sub WHERE m.topic = ? ORDER BY c.pos LIMIT 1",
            (topic.id,),
        ).fetchone()
        who = f"group {slowest[0]!r} holds it back" if slowest else "no group reads it"
        return Receipt(message.id, "rejected", "full", f"the topic is at its cap of {topic.size_max} bytes; {who}")

    def _fits(self, topic: TopicRow, size: int) -> bool:
        row = self.connection.execute(
            "UPDATE topic SET size = size + ?1 WHERE id = ?2 AND size + ?1 <= size_max RETURNING size", (size, topic.id)
        ).fetchone()
        return row is not None

    def _private(self, message: Message, to: InboxChannel | DeadChannel) -> None:
        sub = self.names.sub(to.group, to.topic)
        assert sub is not None
        if isinstance(to, DeadChannel):
            self.connection.execute(
                "INSERT INTO dead (sub, at, id, source, key, headers, body) VALUES (?, ?, ?, ?, ?, ?, ?)",
                (sub, self.now, *self.columns(message)),
            )
        else:
            lane = lane_of(message.key, message.id, self._topic(to.topic).lanes)
            self.connection.execute(
                "INSERT INTO inbox (sub, lane, due, at, attempt, suspect, id, source, key, headers, body) "
                "VALUES (?, ?, ?, ?, 1, 0, ?, ?, ?, ?, ?)",
                (sub, lane, message.not_before or 0, self.now, *self.columns(message)),
            )
        self.subs.add(sub)

    def columns(self, message: Message) -> tuple[Any, ...]:
        """Return id, source, key, headers and body as the tables hold them."""
        source = self.names.source(message.source)
        if source is None:
            source = self._source(message.source)
            self.names.meet_source(message.source, source)
        return message.id, source, message.key, encode_headers(message.headers).decode(), message.body

    def _source(self, name: str) -> int:
        row = self.connection.execute("SELECT id FROM source WHERE name = ?", (name,)).fetchone()
        if row is None:
            row = self.connection.execute("INSERT INTO source (name) VALUES (?) RETURNING id", (name,)).fetchone()
        return int(row[0])

    def _topic(self, name: str) -> TopicRow:
        topic = self.names.topic(name)
        assert topic is not None
        return topic

    def _last(self) -> int:
        row = self.connection.execute("SELECT max(seq) FROM log").fetchone()  # the primary key
        return int(row[0] or 0)


def _append(rows: int) -> str:
    values = ", ".join(["(?, ?, ?, ?, ?, ?, ?, ?)"] * rows)
    return f"INSERT INTO log (topic, lane, at, id, source, key, headers, body) VALUES {values} ON CONFLICT DO NOTHING"


_TOGETHER = 32
_APPEND, _APPEND_TOGETHER = _append(1), _append(_TOGETHER)


def append_due(connection: Connection, now: int) -> set[int]:
    """Append delayed messages whose time has come to the log, in the order of their times; return their topics."""
    rows = connection.execute(  # delayed_due
        "SELECT d.row, d.topic, t.lanes, d.id, d.source, d.key, d.headers, d.body FROM delayed d "
        "JOIN topic t ON t.id = d.topic WHERE d.due <= ? ORDER BY d.due, d.row LIMIT 1000",
        (now,),
    ).fetchall()
    for row, topic, lanes, event_id, source, key, headers, body in rows:
        lane = lane_of(key, event_id, lanes)
        connection.execute(_APPEND, (topic, lane, now, event_id, source, key, headers, body))
        connection.execute("DELETE FROM delayed WHERE row = ?", (row,))
    return {row[1] for row in rows}
