"""Streams and consumers, as the broker keeps them."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import timedelta

import msgspec

from tidewire.model import Message
from tidewire.protocols import Clock
from tidewire.testing.simulation.models.intake import Bell

__all__ = ["Consumer", "Counts", "Given", "Settings", "Stored", "Stream"]


class Settings(msgspec.Struct, frozen=True, kw_only=True):
    """How a stream was made. *lanes*, *retention* and *start* are notes of the adapter's; the broker keeps them.

    *work*: what is acked is deleted. *size_max*: beyond it a message is refused.
    """

    lanes: int = 1
    retention: timedelta | None = None
    size_max: int | None = None
    start: str = ""
    work: bool = False


class Stored(msgspec.Struct, frozen=True):
    """A message in a stream: *number* grows, *subject* says which consumers get it."""

    number: int
    subject: str
    stamp: int
    message: Message
    size: int


class Given(msgspec.Struct, frozen=True):
    """A message as a consumer gets it, for the so-manieth time."""

    stored: Stored
    times: int


class Counts(msgspec.Struct, frozen=True):
    """A consumer's counts: *fresh* were never handed out, *out* are, *again* are to be handed out again now.

    A real server counts the last among the second; it is told apart here so that an inspector can be exact.
    """

    fresh: int
    out: int
    again: int
    oldest: int | None


class _Pending:
    def __init__(self, deadline: int) -> None:
        self.deadline = deadline
        self.times = 1


class Stream:
    """A stream: messages by number, ids that it knows again for a while, and its consumers."""

    def __init__(self, clock: Clock, settings: Settings) -> None:
        self.settings = settings
        self.messages: dict[int, Stored] = {}
        self.consumers: dict[str, Consumer] = {}
        self.last = 0
        self.size = 0
        self.purged = self.purged_stamp = 0
        self.listeners: dict[str, dict[Bell, None]] = {}
        self._clock = clock
        self._ids: dict[str, int] = {}  # by when they were seen; oldest first

    def known(self, name: str, window: timedelta) -> bool:
        """Whether a message of this id was stored within the window; from now on it was, if not."""
        now = self._clock.now_us()
        limit = now - window // timedelta(microseconds=1)
        while self._ids and self._ids[next(iter(self._ids))] <= limit:
            del self._ids[next(iter(self._ids))]
        if name in self._ids:
            return True
        self._ids[name] = now
        return False

    def append(self, subject: str, message: Message, size: int) -> None:
        """Store a message and wake those who wait for it."""
        self.last += 1
        self.size += size
        self.messages[self.last] = Stored(self.last, subject, self._clock.now_us(), message, size)
        for consumer in self.consumers.values():
            if consumer.subject == subject:
                consumer.wake()
        for bell in self.listeners.pop(subject, {}):
            bell.ring()

    def delete(self, number: int) -> bool:
        """Delete a message; False if there is none."""
        stored = self.messages.pop(number, None)
        if stored is None:
            return False
        self.size -= stored.size
        for consumer in self.consumers.values():
            consumer.forget(number)
        return True


class Consumer:
    """A durable pull consumer of one subject."""

    def __init__(self, clock: Clock, stream: Stream, *, subject: str, start: int, out_max: int) -> None:
        self.subject = subject
        self.ack_wait = 30_000_000_000
        self.next = start
        self._clock = clock
        self._stream = stream
        self._out_max = out_max
        self._pending: dict[int, _Pending] = {}
        self._again: list[int] = []
        self._bells: dict[Bell, None] = {}

    def wake(self) -> None:
        """Let those hear whose pull waits."""
        bells, self._bells = self._bells, {}
        for bell in bells:
            bell.ring()

    def pull(self, batch: int, bell: Bell) -> list[Given]:
        """Hand out up to *batch*: what is to come again first. Where there are fewer, *bell* rings with the next."""
        self._expire()
        found: list[Given] = []
        while self._again and len(found) < batch:
            number = self._again.pop(0)
            one = self._pending[number]
            one.times += 1
            one.deadline = self._clock.ticks() + self.ack_wait
            found.append(Given(self._stream.messages[number], one.times))
        while len(found) < batch and len(self._pending) < self._out_max and (stored := self._fresh()) is not None:
            self.next = stored.number + 1
            self._pending[stored.number] = _Pending(self._clock.ticks() + self.ack_wait)
            found.append(Given(stored, 1))
        if len(found) < batch:
            self._bells[bell] = None
        return found

    def ack(self, number: int) -> None:
        """Be done with a message, whoever says so."""
        self.forget(number)

    def nak(self, number: int, delay: timedelta) -> None:
        """Hand a message out again, at once or later."""
        one = self._pending.get(number)
        if one is None or number in self._again:
            return
        if delay > timedelta(0):
            one.deadline = self._clock.ticks() + delay // timedelta(microseconds=1) * 1_000
        else:
            self._again.append(number)
            self.wake()

    def progress(self, numbers: Sequence[int]) -> None:
        """Begin the ack wait of these messages anew."""
        self._expire()
        for number in numbers:
            if number in self._pending and number not in self._again:
                self._pending[number].deadline = self._clock.ticks() + self.ack_wait

    def restart(self, number: int) -> None:
        """Go on from *number*, and forget what is out."""
        self.next = number
        self._pending.clear()
        self._again.clear()

    def forget(self, number: int) -> None:
        """Have nothing more to do with a message."""
        self._pending.pop(number, None)
        if number in self._again:
            self._again.remove(number)

    def remember(self, number: int) -> bool:
        """Lose an ack: what was acked comes again. False if it was not, or is not there any more."""
        if number >= self.next or number in self._pending or number not in self._stream.messages:
            return False
        self._pending[number] = _Pending(0)
        self._again.append(number)
        self.wake()
        return True

    def undone(self) -> list[int]:
        """Return the numbers of what is not acked."""
        fresh = [one.number for one in self._stream.messages.values() if self._is_fresh(one)]
        return sorted([*self._pending, *fresh])

    def counts(self) -> Counts:
        """Return the counts."""
        self._expire()
        fresh = [one for one in self._stream.messages.values() if self._is_fresh(one)]
        ready = [one.stamp for one in fresh] + [self._stream.messages[number].stamp for number in self._again]
        again = len(self._again)
        return Counts(len(fresh), len(self._pending) - again, again, min(ready, default=None))

    def _is_fresh(self, stored: Stored) -> bool:
        return stored.subject == self.subject and stored.number >= self.next

    def _fresh(self) -> Stored | None:
        for number in range(self.next, self._stream.last + 1):
            stored = self._stream.messages.get(number)
            if stored is not None and stored.subject == self.subject:
                return stored
        self.next = max(self.next, self._stream.last + 1)
        return None

    def _expire(self) -> None:
        """What nobody has acked in time comes again, the last one first: a server promises no order."""
        now = self._clock.ticks()
        late = [number for number, one in self._pending.items() if one.deadline < now and number not in self._again]
        self._again += reversed(late)
