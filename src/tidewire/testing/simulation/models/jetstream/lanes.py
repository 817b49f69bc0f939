"""A lane as its owner has it: two consumers, what is out of each, and what stands in the bucket beside its name."""

from __future__ import annotations

import heapq
from collections.abc import Iterable, Mapping

import msgspec

from tidewire.model import Delivery, InboxChannel, Message
from tidewire.testing.simulation.models.intake import Arrivals, Bell
from tidewire.testing.simulation.models.jetstream.server import Who
from tidewire.testing.simulation.models.jetstream.streams import Given, Stored

__all__ = ["Channel", "Claim", "Lane", "Try", "wait_of"]


class Try(msgspec.Struct, frozen=True, array_like=True):
    """At which *attempt* a message is when the server hands it out for the so-manieth time."""

    attempt: int = 1
    times: int = 1
    suspect: bool = False


class Claim(msgspec.Struct, frozen=True):
    """What stands in the bucket: who has the lane, and what was tried how often, by consumer."""

    owner: str
    tries: tuple[Mapping[int, Try], Mapping[int, Try]] = ({}, {})


class Channel:
    """One consumer of a lane: *out* was handed on, *ready* was pulled and not handed on, *early* must wait.

    *leaving*: the server was asked to be done with them, and has not answered yet.
    """

    def __init__(self, who: Who, tries: Mapping[int, Try], *, bell: Bell) -> None:
        self.who = who
        self.tries = dict(tries)
        self.now: dict[int, Try] = {}
        self.out: dict[int, Stored] = {}
        self.early: dict[int, Stored] = {}
        self.leaving: set[int] = set()
        self.ring = Arrivals(bell)
        self._ready: list[tuple[int, Stored]] = []

    @property
    def held(self) -> list[int]:
        """Return the numbers of all that was pulled and not settled, in order."""
        return sorted([*self.out, *self.early, *(number for number, _ in self._ready)])

    def missing(self, out: int) -> int:
        """Return how many of those that the server says are *out* we may not have.

        What is leaving may be out or not: counted as ours it would stand for one that we have never seen.
        """
        return max(0, out - len(set(self.held) - self.leaving))

    def pulled(self, given: Iterable[Given], now: int) -> None:
        """Take in what was pulled; what we have already came once more because its ack wait was over."""
        held = frozenset(self.held)
        for one in given:
            number = one.stored.number
            if number in held:
                self.now[number] = msgspec.structs.replace(self.now[number], times=one.times)
                continue
            due = self.tries.pop(number, Try())
            more = max(0, one.times - due.times)
            self.now[number] = Try(due.attempt + more, one.times, due.suspect or more > 0)
            if (one.stored.message.not_before or 0) > now:
                self.early[number] = one.stored
            else:
                heapq.heappush(self._ready, (number, one.stored))

    def take(self, limit: int) -> list[Stored]:
        """Hand on up to *limit*, in order."""
        found = [heapq.heappop(self._ready)[1] for _ in range(min(limit, len(self._ready)))]
        for one in found:
            self.out[one.number] = one
        return found

    def keep(self, number: int) -> None:
        """Take back what was not handed on after all."""
        heapq.heappush(self._ready, (number, self.out.pop(number)))

    def next_try(self, number: int, *, counted: bool) -> None:
        """Say that the server will hand a message out once more, and that this is no failure; or is one."""
        now = self.now[number]
        self.tries[number] = Try(now.attempt + counted, now.times + 1, now.suspect)

    def forget(self, number: int) -> None:
        """Be done with a message, or have given it back."""
        self.out.pop(number, None)
        self.early.pop(number, None)
        self.leaving.discard(number)
        self.now.pop(number, None)
        self._ready = [item for item in self._ready if item[0] != number]
        heapq.heapify(self._ready)


class Lane:
    """A subject of a topic and the same one of its inbox channel."""

    def __init__(self, topic: str, subject: str, *, epoch: int, inbox: Channel, public: Channel, bell: Bell) -> None:
        self.name = f"{topic}/{subject}"
        self.topic = topic
        self.subject = subject
        self.epoch = self.revision = epoch
        self.inbox = inbox
        self.public = public
        self.waits = Arrivals(bell)
        self.waiting: list[tuple[int, int, Stored]] = []  # by the time they are due
        self.gathering = True
        self.paused = False
        self.deadline: int | None = None
        self.drained = False

    @property
    def both(self) -> tuple[Channel, Channel]:
        """Return its two consumers, the inbox channel's first: what waits there is older."""
        return self.inbox, self.public

    def of(self, message: Message) -> Channel:
        """Return the consumer that *message* came from."""
        return self.inbox if isinstance(message.to, InboxChannel) else self.public

    def claim(self, owner: str) -> bytes:
        """Return what is to stand in the bucket."""
        return msgspec.json.encode(Claim(owner, (self.inbox.tries, self.public.tries)))

    def delivery(self, channel: Channel, stored: Stored) -> Delivery:
        """Return the delivery of a message that is out."""
        now = channel.now[stored.number]
        return Delivery(
            stored.message, self.name, self.epoch, stored.number, now.attempt, now.suspect, None, stored.stamp
        )


def wait_of(lane: str) -> str:
    """Return the subject in which a lane's messages wait for their time."""
    return f"wait.{lane}"
