"""A lane as its owner has it: what was pushed of its two queues and is not settled, in memory."""

from __future__ import annotations

import heapq
from collections import deque
from collections.abc import Collection, Iterable, Sequence

import msgspec

from tidewire.model import Delivery
from tidewire.transports.rabbitmq.frames import ack_frames
from tidewire.transports.rabbitmq.gossip import Count
from tidewire.transports.rabbitmq.library import Pipe
from tidewire.transports.rabbitmq.names import lane_name
from tidewire.transports.rabbitmq.tokens import Note, Token
from tidewire.transports.rabbitmq.wire import Read

__all__ = ["Held", "Lane"]

_NOTHING = Note()


class Held:
    """A message that was pushed. *delivery*: as it was handed out last; None before that."""

    __slots__ = ("crashes", "delivery", "read", "tag")

    def __init__(self, tag: int, read: Read, crashes: int) -> None:
        self.tag = tag
        self.read = read
        self.crashes = crashes
        self.delivery: Delivery | None = None


class Lane:
    """A lane that is ours, or for whose token we wait (*epoch* 0)."""

    def __init__(self, topic: str, number: int) -> None:
        self.name = lane_name(topic, number)
        self.topic = topic
        self.number = number
        self.pipe: Pipe | None = None
        self.epoch = 0
        self.tokens: dict[int, Token] = {}  # that we have, by their tags on the control channel
        self.serial = 0
        self.notes: dict[str, Note] = {}
        self.unacked: dict[int, Held] = {}  # by tag, in the order in which they were pushed
        self.fresh: tuple[deque[int], deque[int]] = (deque(), deque())  # of the topic, of the inbox channel
        self.again: list[int] = []
        self.waiting: list[tuple[int, int]] = []  # (due, tag)
        self.far: list[int] = []  # whose time is too far away to keep them here
        self.out = 0
        self.paused = False
        self.deadline = 0.0
        self.drained = False
        self.closing = False
        self._turn = 0

    @property
    def flows(self) -> bool:
        """Whether something may be handed out."""
        return bool(self.epoch) and not (self.paused or self.closing or self.deadline)

    def arrived(self, tag: int, read: Read, *, inbox: bool, far: bool) -> None:
        """Take in what was pushed; *far*: its time is not near."""
        note = self.notes.get(read.name)
        crashes = read.count
        if note is not None:
            if read.count < note.floor:  # this broker does not count what comes back from a channel that we close
                note = self.notes[read.name] = msgspec.structs.replace(note, floor=read.count)
            crashes = note.crashes + read.count - note.floor
        self.unacked[tag] = Held(tag, read, crashes)
        if far:
            self.far.append(tag)
        else:
            self.fresh[inbox].append(tag)

    def sent_on(self, left: Iterable[int]) -> None:
        """What was far away waits elsewhere now; *left*, which could not be sent on, waits here."""
        self.far = []
        for tag in left:
            heapq.heappush(self.waiting, (self.unacked[tag].read.message.not_before or 0, tag))

    def next(self, now: int) -> Delivery | None:
        """Hand one out: what came back first, then the topic and the inbox channel in turn."""
        while self.again:
            tag = heapq.heappop(self.again)
            if tag in self.unacked:
                return self._hand_out(self.unacked[tag])
        for _ in (0, 1):
            fresh = self.fresh[self._turn]
            self._turn ^= 1
            while fresh:
                held = self.unacked.get(fresh[0])
                due = None if held is None else held.read.message.not_before
                if due is not None and due > now:
                    heapq.heappush(self.waiting, (due, fresh.popleft()))
                    continue
                fresh.popleft()
                if held is not None:
                    return self._hand_out(held)
        while self.waiting and self.waiting[0][0] <= now:
            held = self.unacked.get(heapq.heappop(self.waiting)[1])
            if held is not None:
                return self._hand_out(held)
        return None

    def _hand_out(self, held: Held) -> Delivery:
        read, note = held.read, self.notes.get(held.read.name, _NOTHING)
        attempt = 1 + read.spent + note.failures + held.crashes
        held.delivery = Delivery(
            read.message, self.name, self.epoch, held.tag, attempt, held.crashes > 0, read.foreign, read.stored_at
        )
        self.out += 1
        return held.delivery

    def holds(self, delivery: Delivery) -> Held | None:
        """Return what *delivery* stands for, if it is out; settled ones, and those given back, are not."""
        tag = delivery.position
        held = self.unacked.get(tag) if isinstance(tag, int) else None
        return None if held is None or held.delivery is None else held

    def give_back(self, held: Held, *, counted: bool) -> None:
        """Take back what is out, to be handed out again at its place."""
        if counted:
            note = self.notes.get(held.read.name) or Note(floor=held.read.count, crashes=held.crashes)
            self.notes[held.read.name] = msgspec.structs.replace(note, failures=note.failures + 1)
        held.delivery = None
        self.out -= 1
        heapq.heappush(self.again, held.tag)

    def settle(self, tags: Collection[int], number: int) -> bytes:
        """Forget *tags* and return the frames that ack them: of those at the front, as one."""
        upto = 0
        for tag in list(self.unacked):
            if tag not in tags:
                break
            upto = tag
            self._forget(tag)
        single = sorted(tag for tag in tags if tag in self.unacked)
        for tag in single:
            self._forget(tag)
        return ack_frames(number, upto, single)

    def _forget(self, tag: int) -> None:
        held = self.unacked.pop(tag)
        if held.delivery is not None:
            self.out -= 1
        self.notes.pop(held.read.name, None)

    def explain(self) -> bool:
        """Note that what comes back now, since we give the lane up, is nobody's failure; whether there is something."""
        for held in self.unacked.values():
            name = held.read.name
            failures = self.notes.get(name, _NOTHING).failures
            self.notes[name] = Note(held.crashes, failures, held.read.count + 1)
        return bool(self.unacked)

    def count(self, now: int) -> Count:
        """Return how much of it is here."""
        kept = [held.read for held in self.unacked.values() if held.delivery is None]
        later = sum((read.message.not_before or 0) > now for read in kept)
        oldest = [
            read.stored_at for read in kept if read.stored_at is not None and (read.message.not_before or 0) <= now
        ]
        return Count(self.name, self.out, len(kept) - later, later, min(oldest, default=None))

    def newest(self) -> Token:
        """Return the newest of the tokens that we have, with the notes of all."""
        tokens: Sequence[Token] = sorted(self.tokens.values(), key=_age)
        notes = {name: note for token in tokens for name, note in token.notes.items()}
        return Token(tokens[-1].epoch, tokens[-1].serial, notes)


def _age(token: Token) -> tuple[int, int]:
    return token.epoch, token.serial
