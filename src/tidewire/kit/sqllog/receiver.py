"""A member's place in its group: what it owns, what it has in hand, and what it tells the database."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Sequence
from datetime import timedelta
from typing import Literal

from tidewire.errors import TransportClosed, TransportUnavailable
from tidewire.kit.sqllog.hand_out import HandOut
from tidewire.kit.sqllog.home import Connection
from tidewire.kit.sqllog.lanes import Lane, Past, give_back, move_cursor
from tidewire.kit.sqllog.log import Store, checked, validated
from tidewire.kit.sqllog.names import TopicRow
from tidewire.kit.sqllog.shared import Shared
from tidewire.kit.waits import happens
from tidewire.model import Delivery, InboxChannel, LaneEvent, Move, Receipt, Release, Settlement, Subscription

__all__ = ["LogReceiver"]

_POLL = 0.25


class LogReceiver:
    """See `tidewire.protocols.Receiver`. *subs* are the numbers of (group, topic), with their topics."""

    def __init__(self, shared: Shared, subscription: Subscription, subs: Sequence[tuple[int, TopicRow]]) -> None:
        self._shared = shared
        self.subscription = subscription
        self.subs = list(subs)
        self.lanes: dict[str, Lane] = {}
        self.events: deque[LaneEvent] = deque()
        self.woken = asyncio.Event()
        self.members_changed = asyncio.Event()
        self.calm = asyncio.Event()
        self.closed = False
        self._hand_out = HandOut(shared, subscription, self.subs, self.lanes)

    @property
    def unsettled(self) -> int:
        """How many deliveries are out."""
        count = 0
        for lane in self.lanes.values():
            count += len(lane.out) + len(lane.inbox_out)
        return count

    # --- the protocol -------------------------------------------------------------------------------------------

    async def receive(self, limit: int, wait: timedelta) -> Sequence[Delivery | LaneEvent]:
        """Hand out lane events and up to *limit* deliveries; nothing is awaited between hearing and returning them."""
        self._shared.home.check_usable()
        loop = asyncio.get_running_loop()
        deadline = loop.time() + wait.total_seconds()
        appended = -1
        while True:
            if self.closed:
                raise TransportClosed("this membership has ended")
            self.woken.clear()
            deliveries: list[Delivery] = []
            due = None
            if limit > 0:
                deliveries, due = await self._hand_out.next(min(limit, self.subscription.prefetch - self.unsettled))
            found: list[Delivery | LaneEvent] = [*self.events, *filter(self._is_ours, deliveries)]
            self.events.clear()
            rest = deadline - loop.time()
            if found or rest <= 0:
                return found
            now = self._shared.clock.now_us()
            if due is not None and due <= now and limit > 0 and due != appended:
                appended = due  # what is due and cannot be handed out now (its lane is being revoked) is waited for
                await self._shared.append_due()
                self._hand_out.look_everywhere()
                continue
            pause = min(rest, _POLL, *([(due - now) / 1e6 + 0.0005] if due is not None and due > now else []))
            if not await happens(self.woken, pause):
                self._hand_out.look_everywhere()

    def _is_ours(self, delivery: Delivery) -> bool:
        """Whether its lane has not been lost since it was read."""
        lane = self.lanes.get(delivery.lane)
        return lane is not None and lane.epoch == delivery.epoch

    async def settle(
        self, *, ack: Sequence[Delivery] = (), release: Sequence[Release] = (), move: Sequence[Move] = ()
    ) -> Sequence[Settlement]:
        """Settle in one transaction."""
        if self.subscription.ordering == "key" and any(one.delay for one in release):
            raise ValueError("a release with a delay under ordering by key: a wait is a hold or a move")
        self._shared.home.check_usable()
        for one in move:
            await checked(one.messages, self._shared.names)
        settling = Settling(self, ack, release, move)
        result: list[Settlement] = []

        def conclude() -> None:
            result.extend(settling.conclude())
            if not self.unsettled:
                self.calm.set()

        if settling.by_lane:
            now = self._shared.clock.now_us()
            # A few acks can wait for company: what depends on them is credit, and of that there is enough.
            patient = not release and not move and len(ack) * 4 < self.subscription.prefetch
            await self._shared.writer.submit(
                lambda connection: settling.write(connection, now), vital=True, patient=patient, then=conclude
            )
        else:
            conclude()
        return result

    async def steer(
        self, *, pause: Sequence[str] = (), resume: Sequence[str] = (), drained: Sequence[str] = ()
    ) -> None:
        """Pause and resume lanes; give drained ones back."""
        for name in pause:
            if name in self.lanes:
                self.lanes[name].paused = True
        for name in resume:
            if name in self.lanes:
                self.lanes[name].paused = False
                self._hand_out.rewind(self.lanes[name])
        self.woken.set()
        leaving = [self.lanes[name] for name in drained if name in self.lanes and self.lanes[name].revoking]
        await self.give_back(leaving)

    # --- lanes come and go (called by the balance) ----------------------------------------------------------------

    def assigned(self, lane: Lane) -> None:
        """Own *lane* from now on."""
        self.lanes[lane.name] = lane
        self._hand_out.rewind(lane)
        for seq, known in lane.past.items():
            if not known.settled and known.due:
                lane.again[seq] = known.due
        self._hand_out.look_everywhere()
        self.events.append(LaneEvent("assigned", lane.name, lane.epoch))
        self.woken.set()

    def touched(self, topics: set[int] | None, subs: set[int] | None) -> None:
        """A commit touched these; wake up if any of them is read here."""
        if self._hand_out.touched(topics, subs):
            self.woken.set()

    def look_at_inbox(self) -> None:
        """Rows of an inbox channel may be handed out again."""
        self._hand_out.touched(set(), None)

    def lost(self, lane: Lane) -> None:
        """Somebody else owns *lane*."""
        if self.lanes.get(lane.name) is lane:
            del self.lanes[lane.name]
            self.events.append(LaneEvent("lost", lane.name, lane.epoch))
            self.woken.set()

    async def give_back(self, lanes: Sequence[Lane], *, clean: bool = True) -> None:
        """Give *lanes* back durably and let the others know; not *clean*: what is out may be running still.

        What cannot be given back now is ours still, and the lease is kept: it has to be given back later.
        """
        if not lanes:
            return
        for lane in lanes:
            self.lanes.pop(lane.name, None)
        owner, now = self.subscription.member, self._shared.clock.now_us()
        try:
            await self._shared.writer.submit(
                lambda connection: give_back(connection, lanes, owner, clean=clean, now_us=now), vital=True
            )
        except TransportUnavailable:
            for lane in lanes:
                self.lanes.setdefault(lane.name, lane)
            raise
        await self._shared.tell_members(self.subscription.group)

    @property
    def shared(self) -> Shared:
        """The open broker."""
        return self._shared


class Settling:
    """One call of `settle`: what it asks of each lane, how that is written, and what came of it."""

    def __init__(
        self, receiver: LogReceiver, ack: Sequence[Delivery], release: Sequence[Release], move: Sequence[Move]
    ) -> None:
        self._receiver = receiver
        self._ack, self._release, self._move = ack, release, move
        self._owner = receiver.subscription.member
        self.by_lane: dict[str, Part] = {}
        self._lost: set[str] = set()
        self._moved: dict[int, Sequence[Receipt]] = {}
        for delivery in ack:
            part = self._part(delivery)
            if part is not None:
                (part.inbox_acks if _private(delivery) else part.acks).append(_row(delivery))
        for one in release:
            part = self._part(one.delivery)
            if part is not None:
                part.releases.append(one)
        self._refused = {id(one): self._refusal(one) for one in move}
        for moved in move:
            part = self._part(moved.delivery)
            if part is not None and self._refused[id(moved)] is None and part.lane.has_out(moved.delivery):
                part.moves.append(moved)
        for part in self.by_lane.values():  # acks are certain once they are asked for; moves only when written
            for seq in part.acks:
                part.lane.out.pop(seq, None)
                part.lane.acked.add(seq)

    def write(self, connection: Connection, now: int) -> None:
        """Write everything; on the writer thread, inside its transaction."""
        self._lost.clear()
        self._moved.clear()
        shared = self._receiver.shared
        for name, part in self.by_lane.items():
            moved = {_row(one.delivery) for one in part.moves if not _private(one.delivery)}
            part.pos = part.lane.prefix(moved)
            if not move_cursor(connection, part.lane, self._owner, part.pos, [*part.acks, *moved]):
                self._lost.add(name)
                continue
            gone = [*part.inbox_acks, *(_row(one.delivery) for one in part.moves if _private(one.delivery))]
            if gone:
                connection.executemany("DELETE FROM inbox WHERE seq = ?", [(seq,) for seq in gone])
            _write_releases(connection, part.lane, part.releases, now)
            for one in part.moves:
                store = Store(connection, shared.names, now)
                self._moved[id(one)] = store.all(one.messages)
                shared.writer.topics |= store.topics
                shared.writer.subs |= store.subs

    def conclude(self) -> list[Settlement]:
        """Take over into memory what was written and say what became of each."""
        for name, part in self.by_lane.items():
            lane = part.lane
            if name in self._lost:
                self._receiver.lost(lane)
                continue
            for one in part.moves:
                if _private(one.delivery):
                    lane.inbox_out.pop(_row(one.delivery), None)
                    lane.inbox_settled += 1
                else:
                    lane.out.pop(_row(one.delivery), None)
                    lane.acked.add(_row(one.delivery))
            for seq in part.inbox_acks:
                lane.inbox_out.pop(seq, None)
                lane.inbox_settled += 1
            for released in part.releases:
                self._returned(lane, released)
            if part.pos > lane.pos:  # else a held event keeps it where it is, and the books as long as they are
                lane.pos = part.pos
                lane.acked = {seq for seq in lane.acked if seq > lane.pos}
                if lane.past:
                    lane.past = {seq: known for seq, known in lane.past.items() if seq > lane.pos}
        if self._release:
            self._receiver.woken.set()
        result = [Settlement(delivery, self._status(delivery)) for delivery in self._ack]
        result += [Settlement(one.delivery, self._status(one.delivery)) for one in self._release]
        return result + [self._settlement(one) for one in self._move]

    def _returned(self, lane: Lane, one: Release) -> None:
        delivery = one.delivery
        seq = _row(delivery)
        due = 0 if not one.delay else self._receiver.shared.clock.now_us() + one.delay // timedelta(microseconds=1)
        if _private(delivery):
            lane.inbox_out.pop(seq, None)
            lane.inbox_settled += 1
            self._receiver.look_at_inbox()
        elif seq in lane.out:
            del lane.out[seq]
            lane.again[seq] = due
            attempt = delivery.attempt + (1 if one.counted else 0)
            lane.past[seq] = Past(0, attempt, int(delivery.suspect), due)

    def _settlement(self, one: Move) -> Settlement:
        status = self._status(one.delivery)
        refused = self._refused[id(one)]
        if status == "settled" and refused is not None:
            return Settlement(one.delivery, "failed", refused)
        return Settlement(one.delivery, status, self._moved.get(id(one), ()))

    def _status(self, delivery: Delivery) -> Literal["settled", "lost"]:
        part = self.by_lane.get(delivery.lane)
        known = part is not None and part.lane.epoch == delivery.epoch and delivery.lane not in self._lost
        return "settled" if known else "lost"

    def _part(self, delivery: Delivery) -> Part | None:
        lane = self._receiver.lanes.get(delivery.lane)
        if lane is None or lane.epoch != delivery.epoch or self._receiver.closed:
            return None
        part = self.by_lane.get(delivery.lane)
        if part is None:
            part = self.by_lane[delivery.lane] = Part(lane)
        return part

    def _refusal(self, one: Move) -> Sequence[Receipt] | None:
        verdicts = validated(one.messages, self._receiver.shared.names)
        if all(verdict is None for verdict in verdicts):
            return None
        missing = "another message of this move was rejected"
        return [
            verdict or Receipt(message.id, "rejected", "after_failure", missing)
            for verdict, message in zip(verdicts, one.messages, strict=True)
        ]


class Part:
    """What one call asks of one lane."""

    __slots__ = ("acks", "inbox_acks", "lane", "moves", "pos", "releases")

    def __init__(self, lane: Lane) -> None:
        self.lane = lane
        self.acks: list[int] = []
        self.inbox_acks: list[int] = []
        self.releases: list[Release] = []
        self.moves: list[Move] = []
        self.pos = 0


def _row(delivery: Delivery) -> int:
    assert isinstance(delivery.position, int)
    return delivery.position


def _private(delivery: Delivery) -> bool:
    return isinstance(delivery.message.to, InboxChannel)


def _write_releases(connection: Connection, lane: Lane, releases: Sequence[Release], now: int) -> None:
    """Persist what releases change: the attempt if it counts, the time if it waits."""
    private: list[tuple[int, int, int]] = []
    public: list[tuple[int, ...]] = []
    for one in releases:
        delivery, seq, counted = one.delivery, _row(one.delivery), 1 if one.counted else 0
        due = 0 if not one.delay else now + one.delay // timedelta(microseconds=1)
        if _private(delivery):
            private.append((counted, due, seq))
        elif counted or due:
            public.append((lane.sub, lane.number, seq, delivery.attempt + counted, int(delivery.suspect), due))
    if private:
        connection.executemany("UPDATE inbox SET attempt = attempt + ?, due = max(due, ?) WHERE seq = ?", private)
    if public:
        connection.executemany(
            "INSERT INTO above AS o (sub, lane, seq, settled, attempt, suspect, due) VALUES (?, ?, ?, 0, ?, ?, ?) "
            "ON CONFLICT (sub, lane, seq) DO UPDATE SET attempt = excluded.attempt, due = excluded.due "
            "WHERE o.settled = 0",
            public,
        )
