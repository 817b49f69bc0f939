"""Reading on: what a member is given next, from the rows it released, its inbox channels, and the log."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import msgspec

from tidewire.kit.sqllog.lanes import Lane
from tidewire.kit.sqllog.names import TopicRow
from tidewire.kit.sqllog.shared import Shared
from tidewire.model import Delivery, InboxChannel, Message, Subscription, Topic

__all__ = ["HandOut"]

_decode_headers = msgspec.json.Decoder(dict[str, str]).decode
_ROUNDS_MAX = 64
_COLUMNS = "seq, lane, at, id, source, key, headers, body"
_TOGETHER = 32
_BY_NUMBER = f"SELECT {_COLUMNS} FROM log WHERE seq IN ({', '.join('?' * _TOGETHER)}) ORDER BY seq"  # the primary key


class HandOut:
    """Reads committed rows in short queries; keeps what it gives in the lanes' books.

    Reading may wait, and lanes come, go and are paused meanwhile: what is read is given only if it may be then.
    """

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
        self._rewinds = {topic.id: 0 for _, topic in subs}
        self._look_at_log = {topic.id: True for _, topic in subs}
        self._look_at_inbox = {sub: True for sub, _ in subs}
        self._look_at_delayed = True
        self._inbox_due: dict[int, int] = {}
        self._delayed_due: int | None = None
        self._to_topic = {topic.id: Topic(topic.name) for _, topic in subs}
        self._to_inbox = {sub: InboxChannel(topic.name, subscription.group) for sub, topic in subs}

    def look_everywhere(self) -> None:
        """Something may have come, anywhere."""
        self._look_at_delayed = True
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
        self._look_at_delayed = self._look_at_delayed or hit
        return hit

    def rewind(self, lane: Lane) -> None:
        """*lane* is new, or was paused: go back to where it is; what other lanes have had is passed over."""
        scan = self._scan[lane.topic]
        self._scan[lane.topic] = lane.read if scan < 0 else min(scan, lane.read)
        self._rewinds[lane.topic] += 1
        self._look_at_log[lane.topic] = True

    async def next(self, credit: int) -> tuple[list[Delivery], int | None]:
        """Return up to *credit* deliveries, and when something that waits for its time is due.

        What was released comes first, then inbox channels, then the log. Cancelling, and an error, lose nothing.
        """
        found: list[Delivery] = []
        try:
            if credit > 0:
                await self._look(credit, found)
            return found, await self._next_due()
        except BaseException:
            self._put_back(found)
            raise

    async def _look(self, credit: int, found: list[Delivery]) -> None:
        now = self._shared.clock.now_us()
        for lane in list(self._lanes.values()):
            if lane.again and self._open(lane):
                await self._again(lane, now, credit, found)
        for sub, _ in self._subs:
            if self._look_at_inbox[sub] or self._inbox_due.get(sub, now + 1) <= now:
                await self._inbox(sub, now, credit, found)
        for _, topic in self._subs:
            if self._look_at_log[topic.id] and len(found) < credit:
                await self._log(topic, credit, found)

    async def _next_due(self) -> int | None:
        if self._look_at_delayed:
            self._look_at_delayed = False
            try:
                rows = await self._shared.home.read("SELECT min(due) FROM delayed")  # delayed_due
            except BaseException:
                self._look_at_delayed = True
                raise
            self._delayed_due = rows[0][0]
        dues = [min(lane.again.values()) for lane in self._lanes.values() if lane.again and not lane.paused]
        dues += self._inbox_due.values()
        if self._delayed_due is not None:
            dues.append(self._delayed_due)
        return min(dues, default=None)

    def _open(self, lane: Lane) -> bool:
        """Whether *lane* is handed out now; asked after each wait, for lanes come and go meanwhile."""
        return self._lanes.get(lane.name) is lane and not lane.paused and not lane.revoking

    def _put_back(self, found: Sequence[Delivery]) -> None:
        """What was taken and did not reach its receiver is taken again."""
        for delivery in found:
            lane, seq = self._lanes.get(delivery.lane), delivery.position
            if lane is None or lane.epoch != delivery.epoch or not isinstance(seq, int):
                continue
            if isinstance(delivery.message.to, InboxChannel):
                lane.inbox_out.pop(seq, None)
                self._look_at_inbox[lane.sub] = True
            elif seq in lane.out:
                del lane.out[seq]
                lane.again[seq] = 0

    async def _again(self, lane: Lane, now: int, credit: int, found: list[Delivery]) -> None:
        due = sorted(seq for seq, at in lane.again.items() if at <= now)[: credit - len(found)]
        for start in range(0, len(due), _TOGETHER):
            some = due[start : start + _TOGETHER]
            rows = await self._read(_BY_NUMBER, [*some, *some[-1:] * (_TOGETHER - len(some))])
            if not self._open(lane):
                return
            for seq in some:
                lane.again.pop(seq, None)  # also one that retention has removed
            found += [self._from_log(lane, row) for row in rows if row[0] not in lane.out]

    async def _inbox(self, sub: int, now: int, credit: int, found: list[Delivery]) -> None:
        self._look_at_inbox[sub] = False
        self._inbox_due.pop(sub, None)
        try:
            for lane in list(self._lanes.values()):
                if lane.sub == sub and self._open(lane) and not await self._inbox_of(lane, now, credit, found):
                    self._look_at_inbox[sub] = True
                    return
        except BaseException:
            self._look_at_inbox[sub] = True
            raise

    async def _inbox_of(self, lane: Lane, now: int, credit: int, found: list[Delivery]) -> bool:
        """Hand out of one lane's inbox channel; False if there may be more."""
        settled = lane.inbox_settled
        rows = await self._read(  # inbox_due
            f"SELECT {_COLUMNS}, attempt, suspect, due FROM inbox WHERE sub = ? AND lane = ? ORDER BY due, seq LIMIT ?",
            (lane.sub, lane.number, credit + len(lane.inbox_out) + 1),
        )
        if not self._open(lane):
            return True
        if lane.inbox_settled != settled:  # what was read may be gone
            return False
        for *row, attempt, suspect, due in rows:
            if row[0] in lane.inbox_out:
                continue
            if due > now:
                self._inbox_due[lane.sub] = min(due, self._inbox_due.get(lane.sub, due))
                return True
            if len(found) >= credit:
                return False
            lane.inbox_out[row[0]] = None
            message = self._message(row, self._to_inbox[lane.sub])
            found.append(Delivery(message, lane.name, lane.epoch, row[0], attempt, bool(suspect), None, row[2]))
        return True

    async def _log(self, topic: TopicRow, credit: int, found: list[Delivery]) -> None:
        """Read on in the log: one query for all lanes of a topic."""
        self._look_at_log[topic.id] = False  # what comes while it is read is looked for again
        try:
            for _ in range(_ROUNDS_MAX):
                open_ = {
                    lane.number: lane for lane in self._lanes.values() if lane.topic == topic.id and self._open(lane)
                }
                if not open_:
                    return
                limit, rewinds = credit - len(found), self._rewinds[topic.id]
                where = "" if len(open_) == topic.lanes else f"AND lane IN ({','.join(map(str, sorted(open_)))}) "
                query = f"SELECT {_COLUMNS} FROM log WHERE topic = ? AND seq > ? {where}ORDER BY seq LIMIT ?"
                rows = await self._read(query, (topic.id, self._scan[topic.id], limit))  # log_topic
                if self._rewinds[topic.id] != rewinds:  # a lane came meanwhile, and reading begins where it is
                    continue
                for row in rows:
                    self._next_of(open_[row[1]], row, found)
                if rows:
                    self._scan[topic.id] = rows[-1][0]
                if len(rows) < limit:
                    return
                if len(found) >= credit:
                    break
        except BaseException:
            self._look_at_log[topic.id] = True
            raise
        self._look_at_log[topic.id] = True

    def _next_of(self, lane: Lane, row: Sequence[Any], found: list[Delivery]) -> None:
        seq = row[0]
        if seq <= lane.read or not self._open(lane):  # whoever has it, or has it again, begins where it is
            return
        if seq in lane.acked or seq in lane.again:
            lane.read = seq
        else:
            found.append(self._from_log(lane, row))

    async def _read(self, sql: str, parameters: Sequence[Any]) -> list[Any]:
        rows = await self._shared.home.read(sql, parameters)
        sources = {row[4] for row in rows}
        if not sources <= self._shared.names.source_names.keys():
            await self._shared.names.find_sources(sources)
        return rows

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
        return Message(to, row[3], self._shared.names.source_names[row[4]], row[5], _decode_headers(row[6]), row[7])
