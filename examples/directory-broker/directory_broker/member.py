"""A member of a group: its share of the lanes, what it hands out, and how that is settled. Everything here blocks."""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import timedelta
from functools import partial
from itertools import chain, zip_longest
from pathlib import Path
from typing import TypeAlias
from urllib.parse import quote

import msgspec

from directory_broker import lanes
from directory_broker.broker import BOOT, Broker
from directory_broker.files import Entry, decode, read
from directory_broker.lanes import Lane, wanted
from tidewire.model import (
    Delivery,
    InboxChannel,
    LaneEvent,
    Move,
    Receipt,
    Release,
    Settlement,
    Subscription,
    Topic,
)

__all__ = ["Member", "live_members"]

Act: TypeAlias = Callable[[Lane, Entry], Sequence[Receipt]]

FORGOTTEN = 60 * 10**9
"""After so many ticks without a sign a dead member's file goes."""


@dataclass(slots=True)
class Held:
    """A lane that is ours, unless its files say otherwise by now."""

    name: str
    topic: str
    number: int
    epoch: int
    deadline: int | None = None  # revoked: ours until then, to settle what is out
    paused: bool = False


def live_members(broker: Broker, group: str) -> dict[str, lanes.Member]:
    """Return the members that are alive, oldest first, and clean up after those that died long ago."""
    folder = broker.directory.root / "members" / group
    now = broker.clock.ticks()
    found: list[tuple[int, str, lanes.Member]] = []
    for name in os.listdir(folder) if folder.exists() else ():
        one = msgspec.json.decode(read(folder / name) or b"{}", type=lanes.Member)
        if one.boot == BOOT and one.until > now:
            found.append((one.joined, name, one))
        elif one.boot != BOOT or one.until + FORGOTTEN < now:
            os.unlink(folder / name)
    return {name: one for _, name, one in sorted(found, key=lambda each: each[:2])}


class Member:
    """One life in a group; *events* are still to be told."""

    def __init__(self, broker: Broker, subscription: Subscription) -> None:
        self.subscription = subscription
        self.events: deque[LaneEvent] = deque(maxlen=10_000)
        self.lanes: dict[str, Held] = {}
        self.leaving = False
        self._broker = broker
        self._group = subscription.group
        self._name = quote(subscription.member, safe="")
        self._path = broker.directory.root / "members" / self._group / self._name
        self._joined = broker.clock.ticks()
        self._lease = int(subscription.lease.total_seconds() * 1e9)
        self._seen: dict[str, int] = {}
        self._due = 0
        self._turn = 0

    def join(self) -> None:
        """Appear in the group, which is made where it is not there, and take what falls to us."""
        with self._broker.directory.turn():
            for topic in self.subscription.topics:
                if not self._broker.has_group(topic, self._group):
                    self._broker.create_group(topic, self._group, self.subscription.start)
                self._broker.advance(topic, 0)  # so that looking at the counter is cheap, after a restart too
            self._broker.directory.make(self._path.parent)
        self.beat()
        self.balance()

    def beat(self) -> None:
        """Say that we live. In no turn, so that whoever has a long one costs nobody a lease."""
        until = self._broker.clock.ticks() + self._lease
        me = lanes.Member(until, BOOT, self._joined, list(self.subscription.topics))
        self._broker.directory.note(self._path, msgspec.json.encode(me), new=f"new-{self._name}")

    # --- the share of the lanes -------------------------------------------------------------------------------

    def balance(self) -> None:
        """Notice what was lost, take what is free and falls to us, give way with what falls to others."""
        with self._broker.directory.turn():
            alive = live_members(self._broker, self._group)
            for topic in self.subscription.topics if self._name in alive else ():
                self._share(topic, alive, self._broker.clock.ticks())

    def _share(self, topic: str, alive: dict[str, lanes.Member], now: int) -> None:
        spec = self._broker.spec(topic)
        assert spec is not None, "a topic is never deleted"
        readers = [name for name, one in alive.items() if topic in one.topics]
        every = [self._broker.lane(topic, self._group, number) for number in range(spec.lanes)]
        owners = [lane.owner.member if lane.owner.member in readers else "" for lane in every]
        mine = wanted(owners, readers, self._name)
        for lane in every:
            name = f"{topic}/{lane.number}"
            held = self.lanes.get(name)
            if held is not None and not self._is_ours(lane, held):
                self._lose(held)
                held = None
            if held is not None and lane.number not in mine:
                self._give_way(held, lane, now)
            elif held is None and lane.number in mine and not self.leaving:
                epoch = lane.take(self._name, self._broker.there(topic, self._group, after=lane.cursor.floor))
                lanes.save(self._broker.directory, [(lane, ())])
                self.lanes[name] = Held(name, topic, lane.number, epoch)
                self.events.append(LaneEvent("assigned", name, epoch))
                self._seen.clear()

    def _is_ours(self, lane: Lane, held: Held) -> bool:
        return lane.owner.member == self._name and lane.cursor.epoch == held.epoch

    def _lose(self, held: Held) -> None:
        self.events.append(LaneEvent("lost", held.name, held.epoch))
        del self.lanes[held.name]

    def _give_way(self, held: Held, lane: Lane, now: int) -> None:
        """Ask for a lane that falls to another member by now; at the deadline it goes all the same."""
        if held.deadline is None:
            held.deadline = now + int(self.subscription.grace.total_seconds() * 1e9)
            self.events.append(LaneEvent("revoking", held.name, held.epoch, held.deadline))
        elif now > held.deadline:
            self._free(held, lane, crashed=True)
            self.events.append(LaneEvent("lost", held.name, held.epoch))

    def _free(self, held: Held, lane: Lane, *, crashed: bool) -> None:
        there = self._broker.there(held.topic, self._group, after=lane.cursor.floor) if crashed else ()
        lane.give_up(there, crashed=crashed)
        lanes.save(self._broker.directory, [(lane, ())])
        self.lanes.pop(held.name, None)

    def drain(self, names: Sequence[str]) -> None:
        """Give lanes up; what is unsettled of them goes back uncounted."""
        with self._broker.directory.turn():
            for held in [self.lanes[name] for name in names if name in self.lanes]:
                lane = self._broker.lane(held.topic, self._group, held.number)
                if self._is_ours(lane, held):
                    self._free(held, lane, crashed=False)
                else:
                    self._lose(held)

    def vanish(self) -> None:
        """Be no member any more: behind the last `beat`, in whose thread it is called."""
        self._path.unlink(missing_ok=True)

    # --- handing out ------------------------------------------------------------------------------------------

    def unsettled(self) -> int:
        """Return how much is handed out, as the files say."""
        with self._broker.directory.turn():
            return sum(len(lane.owner.handed) for _, lane in self._ours())

    def hand_out(self, limit: int) -> list[Delivery]:
        """Return up to *limit* messages that may be handed out now; looks no further if nothing can have changed."""
        now = self._broker.clock.now_us()
        counters = {topic: self._broker.counter(topic) for topic in self.subscription.topics}
        if counters == self._seen and not (0 < self._due <= now):
            return []
        with self._broker.directory.turn():
            found: list[tuple[Held, Lane, Entry]] = []
            self._due = 0
            ours = list(self._ours())
            room = min(limit, self.subscription.prefetch - sum(len(lane.owner.handed) for _, lane in ours))
            self._turn += 1
            for number in range(len(self.subscription.topics)):
                topic = self.subscription.topics[(number + self._turn) % len(self.subscription.topics)]
                open_ones = {h.number: (h, lane) for h, lane in ours if h.topic == topic and self._flows(h)}
                found += self._look(topic, open_ones, room=room - len(found), now=now)
            # Where all was found that there is, or is room for, only a new message, a due time or a settle brings more.
            self._seen = {} if 0 < room == len(found) else counters
            for lane in {id(lane): lane for _, lane, _ in found}.values():
                lane.save_owner()
            return [self._delivery(held, lane, entry) for held, lane, entry in found]

    def flows(self, delivery: Delivery) -> bool:
        """Whether something that was handed out, but not seen yet, is still ours to show."""
        held = self.lanes.get(delivery.lane)
        return held is not None and held.epoch == delivery.epoch and self._flows(held)

    def _flows(self, held: Held) -> bool:
        return not held.paused and held.deadline is None and not self.leaving

    def _ours(self) -> Iterator[tuple[Held, Lane]]:
        """Return the lanes that are still ours, as their files say; those that are not are told as lost."""
        for held in list(self.lanes.values()):
            lane = self._broker.lane(held.topic, self._group, held.number)
            if self._is_ours(lane, held):
                yield held, lane
            else:
                self._lose(held)

    def _look(
        self, topic: str, mine: dict[int, tuple[Held, Lane]], *, room: int, now: int
    ) -> list[tuple[Held, Lane, Entry]]:
        due = [self._broker.promote(topic, self._group, now)]
        floor = min((lane.cursor.floor for _, lane in mine.values()), default=0)
        found: list[tuple[Held, Lane, Entry]] = []
        there = self._broker.there(topic, self._group, after=floor) if mine else []
        fresh, retries = ([one for one in there if one.private is private] for private in (False, True))
        # They take turns, so that neither a crowd of retries nor one of new messages keeps the others waiting.
        for entry in filter(None, chain.from_iterable(zip_longest(fresh, retries))):
            held, lane = mine.get(entry.lane, (None, None))
            if held is None or lane is None:
                continue
            if len(found) < room and lane.free(entry, now):
                lane.owner.handed.add(entry.position)
                found.append((held, lane, entry))
        due += [when for _, lane in mine.values() for when in lane.cursor.due.values() if when > now]
        self._due = min([when for when in [*due, self._due] if when > 0], default=0)
        return found

    def _delivery(self, held: Held, lane: Lane, entry: Entry) -> Delivery:
        to = InboxChannel(held.topic, self._group) if entry.private else Topic(held.topic)
        message = decode(read(Path(entry.path)) or b"", to)
        attempt, suspect = lane.attempt(entry)
        return Delivery(message, held.name, held.epoch, entry.position, attempt, suspect, stored_at=entry.stored_at)

    # --- settling ---------------------------------------------------------------------------------------------

    def settle(self, ack: Sequence[Delivery], release: Sequence[Release], move: Sequence[Move]) -> list[Settlement]:
        """Settle; a move's messages are stored first, and the lanes' files are written last."""
        acts: list[tuple[Delivery, Act]] = [
            *((one, _ack) for one in ack),
            *((one.delivery, partial(self._release, one)) for one in release),
            *((one.delivery, partial(self._move, one)) for one in move),
        ]
        with self._broker.directory.turn():
            ours = {held.name: (held, lane) for held, lane in self._ours()}
            settlements = [self._settle(delivery, act, ours) for delivery, act in acts]
            touched = [ours[name] for name in {one.delivery.lane for one in settlements if one.status != "lost"}]
            there = {
                held.topic: self._broker.there(held.topic, self._group, after=lane.cursor.floor)
                for held, lane in sorted(touched, key=lambda one: -one[1].cursor.floor)
            }
            lanes.save(self._broker.directory, [(lane, there[held.topic]) for held, lane in touched])
        self._seen.clear()  # there may be room again, or something came back
        return settlements

    def _settle(self, delivery: Delivery, act: Act, ours: Mapping[str, tuple[Held, Lane]]) -> Settlement:
        held, lane = ours.get(delivery.lane, (None, None))
        if held is None or lane is None or held.epoch != delivery.epoch:
            return Settlement(delivery, "lost")
        to = delivery.message.to
        path = self._broker.directory.folder(to) / f"{delivery.position:016}.{held.number}.{delivery.stored_at}"
        private = isinstance(to, InboxChannel)
        entry = Entry(int(delivery.position), held.number, delivery.stored_at or 0, str(path), private)
        if entry.position not in lane.owner.handed:
            return Settlement(delivery, "settled")
        receipts = act(lane, entry)
        return Settlement(delivery, "settled" if all(one.ok for one in receipts) else "failed", receipts)

    def _release(self, release: Release, lane: Lane, entry: Entry) -> Sequence[Receipt]:
        due = self._broker.clock.now_us() + release.delay // timedelta(microseconds=1)
        lane.release(entry, counted=release.counted, due=due if release.delay else 0)
        return ()

    def _move(self, move: Move, lane: Lane, entry: Entry) -> Sequence[Receipt]:
        receipts = self._broker.publish(move.messages)
        if all(one.ok for one in receipts):
            lane.ack(entry)
        return receipts

    def steer(self, pause: Sequence[str], resume: Sequence[str], drained: Sequence[str]) -> None:
        """Pause, resume or give up lanes; those that are not ours are ignored."""
        for names, paused in ((pause, True), (resume, False)):
            for held in [self.lanes[name] for name in names if name in self.lanes]:
                held.paused = paused
        self._seen.clear()
        self.drain(drained)


def _ack(lane: Lane, entry: Entry) -> Sequence[Receipt]:
    lane.ack(entry)
    return ()
