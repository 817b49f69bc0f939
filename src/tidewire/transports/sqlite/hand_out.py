"""Reading on: what a member is given next, from the rows it released, its inbox channels, and the log."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import msgspec

from tidewire.model import Delivery, InboxChannel, Message, Subscription, Topic
from tidewire.transports.sqlite.lanes import Lane
from tidewire.transports.sqlite.log import TopicRow
from tidewire.transports.sqlite.shared import Shared

__all__ = ["HandOut"]

_decode_headers = msgspec.json.Decoder(dict[str, str]).decode
_ROUNDS_MAX = 64
_COLUMNS = "seq, lane, at, id, source, key, headers, body"


class HandOut:
    """Reads committed rows on the event loop, in short queries; keeps what it gives in the lanes' books."""

    def __init__(
        self,
        shared: Shared,
        subscription: Subscription,
        subs: Sequence[tuple[int, TopicRow]],
        lanes: dict[str, Lane],
    ) -> None:
        self._shared = shared
        self._subs = subs
        self._lanes = lanes
        # Per topic: what lies at or below has been handed out, in every lane that is owned and not paused.
        self._scan = {topic.id: -1 for _, topic in subs}
        self._look_at_log = {topic.id: True for _, topic in subs}
        self._look_at_inbox = {sub: True for sub, _ in subs}
        self._inbox_due: dict[int, int] = {}
        self._to_topic = {topic.id: Topic(topic.name) for _, topic in subs}
        self._to_inbox = {sub: InboxChannel(topic.name, subscription.group) for sub, topic in subs}

    def look_everywhere(self) -> None:
        """Something may have come, anywhere."""
        for topic in self._look_at_log:
            self._look_at_log[topic] = True
        for sub in self._look_at_inbox:
            self._look_at_inbox[sub] = True

    def touched(self, topics: set[int] | None, subs: set[int] | None) -> bool:
        """A commit touched these (None: anything); whether any of them is read here."""
        hit = False
        for topic in self._look_at_log:
            if topics is None or topic in topics:
                self._look_at_log[topic] = hit = True
        for sub in self._look_at_inbox:
            if subs is None or sub in subs:
                self._look_at_inbox[sub] = hit = True
        return hit

    def rewind(self, lane: Lane) -> None:
        """*lane* is new, or was paused: go back to where it is; what other lanes have had is passed over."""
        scan = self._scan[lane.topic]
        self._scan[lane.topic] = lane.read if scan < 0 else min(scan, lane.read)
        self._look_at_log[lane.topic] = True

    def next(self, credit: int) -> list[Delivery]:
        """Return up to *credit* deliveries: what was released first, then inbox channels, then the log."""
        found: list[Delivery] = []
        now = self._shared.clock.now_us()
        for lane in self._lanes.values():
            if lane.again and not lane.paused and not lane.revoking:
                self._again(lane, now, credit, found)
        for sub, topic in self._subs:
            if self._look_at_inbox[sub] or self._inbox_due.get(sub, now + 1) <= now:
                self._inbox(sub, topic, now, credit, found)
        for _, topic in self._subs:
            if self._look_at_log[topic.id] and len(found) < credit:
                self._log(topic, credit, found)
        return found

    def next_due(self) -> int | None:
        """Return when something that waits for its time is due, or None."""
        dues = [min(lane.again.values()) for lane in self._lanes.values() if lane.again and not lane.paused]
        dues += self._inbox_due.values()
        row = self._shared.read("SELECT min(due) FROM delayed").fetchone()  # delayed_due
        if row[0] is not None:
            dues.append(row[0])
        return min(dues, default=None)

    def _again(self, lane: Lane, now: int, credit: int, found: list[Delivery]) -> None:
        for seq in sorted(lane.again):
            if len(found) >= credit:
                return
            if lane.again[seq] > now:
                continue
            row = self._shared.read(f"SELECT {_COLUMNS} FROM log WHERE seq = ?", (seq,)).fetchone()
            del lane.again[seq]
            if row is not None:
                found.append(self._from_log(lane, row))

    def _inbox(self, sub: int, topic: TopicRow, now: int, credit: int, found: list[Delivery]) -> None:
        self._look_at_inbox[sub] = False
        self._inbox_due.pop(sub, None)
        for lane in self._lanes.values():
            if lane.sub != sub or lane.paused or lane.revoking:
                continue
            rows = self._shared.read(  # inbox_due
                f"SELECT {_COLUMNS}, attempt, suspect, due FROM inbox WHERE sub = ? AND lane = ? "
                "ORDER BY due, seq LIMIT ?",
                (sub, lane.number, credit + len(lane.inbox_out) + 1),
            ).fetchall()
            for *row, attempt, suspect, due in rows:
                if row[0] in lane.inbox_out:
                    continue
                if due > now:
                    self._inbox_due[sub] = min(due, self._inbox_due.get(sub, due))
                    break
                if len(found) >= credit:
                    self._look_at_inbox[sub] = True
                    return
                lane.inbox_out[row[0]] = None
                message = self._message(row, self._to_inbox[sub])
                found.append(Delivery(message, lane.name, lane.epoch, row[0], attempt, bool(suspect), None, row[2]))

    def _log(self, topic: TopicRow, credit: int, found: list[Delivery]) -> None:
        """Read on in the log: one query for all lanes of a topic."""
        mine = {lane.number: lane for lane in self._lanes.values() if lane.topic == topic.id}
        open_ = {number: lane for number, lane in mine.items() if not lane.paused and not lane.revoking}
        if not open_:
            self._look_at_log[topic.id] = False
            return
        where = "" if len(open_) == topic.lanes else f"AND lane IN ({','.join(map(str, sorted(open_)))}) "
        query = f"SELECT {_COLUMNS} FROM log WHERE topic = ? AND seq > ? {where}ORDER BY seq LIMIT ?"
        for _ in range(_ROUNDS_MAX):
            limit = credit - len(found)
            rows = self._shared.read(query, (topic.id, self._scan[topic.id], limit)).fetchall()  # log_topic
            for row in rows:
                lane = open_[row[1]]
                seq = row[0]
                if seq <= lane.read:
                    continue
                if seq in lane.acked or seq in lane.again:
                    lane.read = seq
                else:
                    found.append(self._from_log(lane, row))
            if rows:
                self._scan[topic.id] = rows[-1][0]
            if len(rows) < limit:
                self._look_at_log[topic.id] = False
                return
            if len(found) >= credit:
                return

    def _from_log(self, lane: Lane, row: Sequence[Any]) -> Delivery:
        seq = row[0]
        lane.out[seq] = None
        if seq > lane.read:
            lane.read = seq
        message = self._message(row, self._to_topic[lane.topic])
        if lane.past:
            known = lane.past.get(seq)
            if known is not None:
                return Delivery(message, lane.name, lane.epoch, seq, known.attempt, bool(known.suspect), None, row[2])
        return Delivery(message, lane.name, lane.epoch, seq, 1, False, None, row[2])

    def _message(self, row: Sequence[Any], to: Topic | InboxChannel) -> Message:
        return Message(to, row[3], self._shared.names.source(row[4]), row[5], _decode_headers(row[6]), row[7])
