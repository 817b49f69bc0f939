"""The server of an SQS-like broker: queues that hide what they hand out for a while, and topics that copy into them.

A message that was received is hidden until its time is over; only the newest receipt of it counts. A FIFO queue hands
out nothing of a message group behind one that is in flight, and does not store an id again within five minutes. Each
call takes at most ten messages.
"""

from __future__ import annotations

import asyncio
import contextvars
from collections import deque
from collections.abc import Mapping, Sequence
from datetime import timedelta

import msgspec

from tidewire.protocols import Clock
from tidewire.testing.simulation.models.intake import Bell
from tidewire.testing.simulation.models.links import Refusal, Server

__all__ = ["BATCH_MAX", "BYTES_MAX", "Entry", "Received", "Sent", "SqsServer"]

BATCH_MAX = 10
BYTES_MAX = 262_144
DEDUP_SECONDS = 300.0
VISIBILITY_MAX = 43_200.0
FAN_OUT_SECONDS = 0.02


class Entry(msgspec.Struct, frozen=True, kw_only=True):
    """A message that is sent: text, its group and what it is recognised by (both empty on a standard queue)."""

    body: str
    group: str = ""
    dedup: str = ""
    delay: float = 0.0


class Sent(msgspec.Struct, frozen=True):
    """What became of an entry; *duplicate*: it was recognised, and success."""

    code: str = ""
    duplicate: bool = False


class Received(msgspec.Struct, frozen=True):
    """A message that was received: *receipt* is good for this receive, *count* is how often it was received."""

    id: str
    number: int
    receipt: str
    body: str
    count: int
    sent_at: int


class _Message:
    """A message in a queue."""

    __slots__ = ("at", "body", "count", "due", "first", "group", "hidden", "number", "receipt")

    def __init__(self, number: int, entry: Entry, *, at: int, due: float) -> None:
        self.number = number
        self.body = entry.body
        self.group = entry.group
        self.at = at
        self.due = due
        self.hidden = 0.0  # until when it is in flight
        self.first = 0.0
        self.count = 0
        self.receipt = ""


class _Queue:
    """A queue. *tags* are its owner's."""

    def __init__(self, name: str, tags: Mapping[str, str]) -> None:
        self.name = name
        self.tags = tags
        self.fifo = name.endswith(".fifo")
        self.messages: dict[int, _Message] = {}
        self.known: dict[str, float] = {}
        self.bells: list[Bell] = []

    def ring(self) -> None:
        """Answer the long polls."""
        for bell in self.bells:
            bell.ring()


class _Topic:
    """A topic: *tags*, the queues that are subscribed, and what it recognises."""

    def __init__(self, tags: Mapping[str, object]) -> None:
        self.tags = tags
        self.queues: list[str] = []
        self.known: dict[str, float] = {}


class SqsServer(Server):
    """Queues, and topics in front of them.

    *delay_max*: the longest delay of a message, far below the real quarter of an hour, so that longer ones are met.
    """

    def __init__(self, clock: Clock) -> None:
        super().__init__(clock, message_bytes_max=190_000)
        self.queues: dict[str, _Queue] = {}
        self.topics: dict[str, _Topic] = {}
        self.delay_max = timedelta(seconds=2)
        self.in_flight_max = 20_000
        self.members = 0
        self._numbers = 0
        self._lag = 0.0
        self._accepted: deque[tuple[list[_Queue], Entry]] = deque()
        self._recent: deque[tuple[str, Entry]] = deque(maxlen=64)

    def cramp(self) -> None:
        """Let topics take their time, and few messages be in flight."""
        self._lag = FAN_OUT_SECONDS
        self.in_flight_max = 40

    @property
    def now(self) -> float:
        """The time that hides messages; it never jumps."""
        return asyncio.get_running_loop().time()

    # --- topology ---------------------------------------------------------------------------------------------

    def create_queue(self, name: str, tags: Mapping[str, str]) -> bool:
        """Create a queue; False if it was there."""
        assert len(name) <= 80, "it would refuse that"
        assert name.removesuffix(".fifo").replace("-", "").isalnum(), "and that"
        if name in self.queues:
            return False
        self.queues[name] = _Queue(name, tags)
        return True

    def create_topic(self, name: str, tags: Mapping[str, object]) -> bool:
        """Create a topic; False if it was there."""
        if name in self.topics:
            return False
        self.topics[name] = _Topic(tags)
        return True

    def subscribe(self, topic: str, queue: str) -> None:
        """Copy what is published to *topic* from now on into *queue*."""
        if queue not in self.topics[topic].queues:
            self.topics[topic].queues.append(queue)

    def queue(self, name: str) -> _Queue:
        """Return a queue.

        Raises:
            Refusal: there is none.
        """
        if name not in self.queues:
            raise Refusal("QueueDoesNotExist", name)
        return self.queues[name]

    def watch(self, name: str, bell: Bell) -> None:
        """Let a long poll of *name* be answered by *bell*."""
        self.queue(name).bells.append(bell)

    # --- sending ----------------------------------------------------------------------------------------------

    def refused(self, entry: Entry) -> bool:
        """Whether an entry is refused, as a test has asked."""
        return False

    def send(self, name: str, entries: Sequence[Entry]) -> list[Sent]:
        """Send to a queue; each entry fails or succeeds for itself."""
        queue = self.queue(name)
        _demand_batch(entries)
        return [self._send(queue, entry) for entry in entries]

    def _send(self, queue: _Queue, entry: Entry) -> Sent:
        if entry.delay > 0.0 and (queue.fifo or entry.delay > self.delay_max.total_seconds()):
            return Sent("InvalidParameterValue")
        if not _sendable(entry.body) or self.refused(entry):
            return Sent("InvalidMessageContents")
        if queue.fifo and self._recognised(queue.known, entry.dedup):
            return Sent(duplicate=True)
        self._store(queue, entry)
        return Sent()

    def _recognised(self, known: dict[str, float], dedup: str) -> bool:
        assert 0 < len(dedup) <= 128, "a FIFO queue wants an id to recognise"
        now = self.now
        while known and (oldest := next(iter(known))) and known[oldest] <= now - DEDUP_SECONDS:
            del known[oldest]
        if dedup in known:
            return True
        known[dedup] = now
        return False

    def _store(self, queue: _Queue, entry: Entry) -> None:
        self._numbers += 1
        queue.messages[self._numbers] = _Message(
            self._numbers, entry, at=self.clock.now_us(), due=self.now + entry.delay
        )
        self._ring_later(queue, entry.delay)

    def publish(self, name: str, entries: Sequence[Entry]) -> list[Sent]:
        """Publish to a topic. It is accepted at once and copied into its queues a little later, in order."""
        if name not in self.topics:
            raise Refusal("NotFound", name)
        _demand_batch(entries)
        return [self._publish(self.topics[name], entry) for entry in entries]

    def _publish(self, topic: _Topic, entry: Entry) -> Sent:
        if not _sendable(entry.body) or self.refused(entry):
            return Sent("InvalidParameter")
        if entry.dedup and self._recognised(topic.known, entry.dedup):
            return Sent(duplicate=True)
        queues = [self.queues[name] for name in topic.queues]
        self._accepted.append((queues, entry))
        if self._lag:
            asyncio.get_running_loop().call_later(self._lag, self._fan_out, context=contextvars.Context())
        else:
            self._fan_out()
        return Sent()

    def _fan_out(self) -> None:
        """Copy what was accepted first."""
        queues, entry = self._accepted.popleft()
        for queue in queues:
            self._recent.append((queue.name, entry))
            self._store(queue, entry)

    def repeat(self, draw: float) -> bool:
        """Copy what was published into a queue once more."""
        if not self._recent:
            return False
        name, entry = self._recent[int(draw * len(self._recent))]
        self._store(self.queues[name], entry)
        return True

    # --- receiving --------------------------------------------------------------------------------------------

    def receive(self, name: str, most: int, visibility: float) -> list[Received]:
        """Hand out up to *most* that are visible, and hide them for *visibility* seconds."""
        assert 0 < most <= BATCH_MAX, "it would refuse that"
        queue, now = self.queue(name), self.now
        room = min(most, self.in_flight_max - sum(one.hidden > now for one in queue.messages.values()))
        found = _available(queue, now)[: max(room, 0)]
        for one in found:
            one.count += 1
            one.first = one.first or now
            one.hidden = now + visibility
            one.receipt = f"{one.number}-{one.count}"
        if found:
            self._ring_later(queue, visibility)
        return [Received(f"m{one.number}", one.number, one.receipt, one.body, one.count, one.at) for one in found]

    def change(self, name: str, receipts: Sequence[str], visibility: float) -> list[str]:
        """Hide messages for *visibility* seconds from now; 0 shows them. Returns an error, or nothing, for each."""
        _demand_batch(receipts)
        queue, now = self.queue(name), self.now
        errors: list[str] = []
        for receipt in receipts:
            one = queue.messages.get(int(receipt.partition("-")[0]))
            if one is None or one.receipt != receipt or one.hidden <= now:
                errors.append("MessageNotInflight")
            elif now + visibility > one.first + VISIBILITY_MAX:
                errors.append("InvalidParameterValue")
            else:
                one.hidden = now + visibility
                errors.append("")
        self._ring_later(queue, visibility)
        return errors

    def delete(self, name: str, receipts: Sequence[str]) -> list[str]:
        """Delete messages. A receipt that is not the newest one fails on a FIFO queue, and does nothing on another."""
        _demand_batch(receipts)
        queue, now = self.queue(name), self.now
        errors: list[str] = []
        for receipt in receipts:
            one = queue.messages.get(int(receipt.partition("-")[0]))
            stale = one is not None and (one.receipt != receipt or (queue.fifo and one.hidden <= now))
            if one is not None and not stale:
                del queue.messages[one.number]
            errors.append("ReceiptHandleIsInvalid" if stale and queue.fifo else "")
        queue.ring()
        return errors

    def counts(self, name: str) -> tuple[int, int, int, int | None]:
        """Return how many are visible, in flight and delayed, and when the oldest visible one was sent."""
        now = self.now
        messages = self.queue(name).messages.values()
        visible = [one for one in messages if one.due <= now and one.hidden <= now]
        in_flight = sum(one.hidden > now for one in messages)
        delayed = sum(one.due > now for one in messages)
        return len(visible), in_flight, delayed, min((one.at for one in visible), default=None)

    def _ring_later(self, queue: _Queue, seconds: float) -> None:
        if seconds > 0.0:
            loop = asyncio.get_running_loop()
            loop.call_later(seconds + 1e-6, queue.ring, context=contextvars.Context())
        else:
            queue.ring()


def _available(queue: _Queue, now: float) -> list[_Message]:
    """Return what may be handed out; of a FIFO queue as many of a group as there are, then the next group."""
    if not queue.fifo:
        return [one for one in queue.messages.values() if one.due <= now and one.hidden <= now]
    groups: dict[str, list[_Message]] = {}
    blocked: set[str] = set()
    for one in queue.messages.values():
        if one.hidden > now:
            blocked.add(one.group)
        elif one.group not in blocked:
            groups.setdefault(one.group, []).append(one)
    return [one for group in groups.values() for one in group]


def _demand_batch(batch: Sequence[object]) -> None:
    if not 0 < len(batch) <= BATCH_MAX:
        raise Refusal("TooManyEntriesInBatchRequest", str(len(batch)))
    if sum(len(one.body) for one in batch if isinstance(one, Entry)) > BYTES_MAX:
        raise Refusal("BatchRequestTooLong")


def _sendable(body: str) -> bool:
    return 0 < len(body) <= BYTES_MAX and body.isascii() and body.isprintable()
