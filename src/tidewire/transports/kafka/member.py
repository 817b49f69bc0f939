"""A member's place in its group: one client, one thread. It fetches nothing; it hears rebalances and commits.

Commits carry the group's generation, so the broker refuses those of a member that was put out. Everything that a lane
needs is committed by this one client, the inbox channel's offsets too, which other members of the group never read:
so the owner of a partition of a topic owns that of the inbox channel, whatever the assignor is.
"""

from __future__ import annotations

import asyncio
import logging
import threading
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from typing import Literal

import msgspec
from confluent_kafka import OFFSET_END, Consumer, KafkaError, KafkaException, TopicPartition

from tidewire.errors import TransportError, TransportUnavailable
from tidewire.kit.bell import Bell
from tidewire.model import LaneEvent, Subscription
from tidewire.protocols import Clock
from tidewire.transports.kafka.errors import LOST, code_of, is_shut_out, translated
from tidewire.transports.kafka.names import inbox_topic, lane_name
from tidewire.transports.kafka.progress import Progress, Saved, read_saved
from tidewire.transports.kafka.settings import Conf

__all__ = ["Commit", "Entry", "Member", "Opened"]

_logger = logging.getLogger("tidewire.kafka")
_POLL = 0.02
_SECOND = 1_000_000_000
_TRIES = 20
_TOPIC_GONE = frozenset({"UNKNOWN_TOPIC_OR_PART", "TOPIC_AUTHORIZATION_FAILED"})
_SLEPT = "_MAX_POLL_EXCEEDED"  # the process stood still and was put out: lost lanes are told, and it joins again itself


class Entry(msgspec.Struct, frozen=True):
    """One offset to commit for *lane*."""

    lane: str
    log: str
    partition: int
    offset: int
    metadata: str


class Opened(msgspec.Struct, frozen=True):
    """A lane that is ours from now on: how far its topic and its inbox channel are, in this order."""

    name: str
    topic: str
    partition: int
    epoch: int
    books: tuple[Progress, Progress]


class Commit(msgspec.Struct):
    """What is to be committed, for lanes that must still be ours, and lanes that are given up with it.

    *done* hears, in the event loop, which lanes were lost, or why nothing is known.
    """

    lanes: Mapping[str, int]
    entries: Sequence[Entry]
    done: Callable[[frozenset[str] | TransportError], None]
    closes: Sequence[str] = ()


class Member:
    """The thread that holds a place in a group. *hear* is called in the event loop."""

    def __init__(
        self,
        conf: Conf,
        subscription: Subscription,
        *,
        clock: Clock,
        timeout: float,
        hear: Callable[[Sequence[LaneEvent], Sequence[Opened]], None],
        failed: Callable[[TransportError], None],
    ) -> None:
        self._conf = conf
        self._subscription = subscription
        self._clock = clock
        self._timeout = timeout
        self._hear = hear
        self._failed = failed
        self._loop = asyncio.get_running_loop()
        self._bell = Bell()
        self._commits: deque[Commit] = deque()
        self._owned: dict[str, int] = {}
        self._leaving = False
        self._revoking = False
        self._slack = max(16, subscription.prefetch)
        self.fresh: frozenset[str] = frozenset()  # topics on which the group begins at their end, by our word
        self._thread = threading.Thread(target=self._run, name="tidewire-kafka-member", daemon=True)

    def start(self) -> None:
        """Begin."""
        self._thread.start()

    def commit(self, commit: Commit) -> None:
        """Ask for a commit; those that wait are put together."""
        self._commits.append(commit)
        self._bell.ring()

    def leave(self) -> None:
        """Do what was asked for, leave the group and end. Returns at once."""
        self._leaving = True
        self._bell.ring()

    def join(self, seconds: float) -> bool:
        """Wait for the end of the thread; False if it has not ended in time. Blocks."""
        self._thread.join(seconds)
        return not self._thread.is_alive()

    # --- in the thread --------------------------------------------------------------------------------------------

    def _run(self) -> None:
        consumer: Consumer | None = None
        try:
            consumer = Consumer({**self._conf, "error_cb": self._on_error})
            consumer.subscribe(
                list(self._subscription.topics),
                on_assign=self._on_assign,
                on_revoke=self._on_revoke,
                on_lost=self._on_lost,
            )
            while not self._leaving:
                self._serve(consumer, 0.0)
                self._work(consumer)
                self._bell.wait(_POLL)
            self._work(consumer)
        except KafkaException as error:
            self._fail(translated(error, f"group {self._subscription.group}"))
        except TransportError as error:
            self._fail(error)
        finally:
            self._give_up_commits()
            self._leaving = True
            if consumer is not None:
                with suppress(KafkaException):  # the broker hears of it by the end of the lease
                    consumer.close()

    def _tell(self, function: Callable[..., object], *arguments: object) -> None:
        with suppress(RuntimeError):  # the event loop is gone, and with it everybody who listens
            self._loop.call_soon_threadsafe(function, *arguments)

    def _fail(self, error: TransportError) -> None:
        self._owned.clear()
        self._tell(self._failed, error)

    def _on_error(self, error: KafkaError) -> None:
        if is_shut_out(error) or error.fatal():
            self._tell(self._failed, translated(error, f"group {self._subscription.group}"))

    def _serve(self, consumer: Consumer, seconds: float) -> None:
        """Let the client call back. What it says of the group it has given up to mend: that ends the membership, and so
        does a topic that is gone. What it says of partitions otherwise is nothing to us: somebody else reads them."""
        message = consumer.poll(seconds)
        error = None if message is None else message.error()
        if message is None or error is None or code_of(error) == _SLEPT:
            return
        if message.topic() is not None and code_of(error) not in _TOPIC_GONE:
            return
        if code_of(error) == "UNKNOWN_TOPIC_OR_PART" and not self._topic_is_gone(consumer):
            return
        raise translated(error, f"group {self._subscription.group}")

    def _topic_is_gone(self, consumer: Consumer) -> bool:
        topics = consumer.list_topics(timeout=self._timeout).topics
        return any(name not in topics or topics[name].error is not None for name in self._subscription.topics)

    # --- commits --------------------------------------------------------------------------------------------------

    def _work(self, consumer: Consumer) -> None:
        """Commit what is asked for, all at once. A group that has moved on is listened to before the next try."""
        commits = [self._commits.popleft() for _ in range(len(self._commits))]
        if not commits:
            return
        error: KafkaException | None = None
        for tries in range(_TRIES):
            entries = {
                (entry.log, entry.partition): entry
                for commit in commits
                for entry in commit.entries
                if self._owned.get(entry.lane) == commit.lanes[entry.lane]
            }
            try:
                self._write(consumer, list(entries.values()))
            except KafkaException as caught:
                error = caught
                if code_of(caught) != "_TRANSPORT" and caught.args[0].code() not in LOST:
                    break
                self._bell.wait(_POLL * (1 + tries))
                if not self._revoking:
                    self._listen(consumer, commits)
                continue
            for commit in commits:
                lost = frozenset(lane for lane, epoch in commit.lanes.items() if self._owned.get(lane) != epoch)
                for lane in commit.closes:
                    self._owned.pop(lane, None)
                self._tell(commit.done, lost)
            return
        assert error is not None, "it was tried"
        _logger.warning(
            "tidewire.kafka.commit_failed", extra={"group": self._subscription.group, "error_type": code_of(error)}
        )
        for commit in commits:
            if error.args[0].code() in LOST:
                self._tell(commit.done, frozenset(commit.lanes))
            else:
                self._tell(commit.done, translated(error, f"group {self._subscription.group}"))

    def _listen(self, consumer: Consumer, commits: Sequence[Commit]) -> None:
        try:
            self._serve(consumer, 0.0)
        except TransportError:
            self._commits.extend(commits)  # given up with the rest
            raise

    def _write(self, consumer: Consumer, entries: Sequence[Entry]) -> None:
        if not entries:
            return
        offsets = [TopicPartition(one.log, one.partition, one.offset, one.metadata) for one in entries]
        for result in consumer.commit(offsets=offsets, asynchronous=False):
            if result.error is not None:
                raise KafkaException(result.error)

    def _give_up_commits(self) -> None:
        while self._commits:
            commit = self._commits.popleft()
            self._tell(commit.done, TransportUnavailable(f"group {self._subscription.group}: the membership has ended"))

    # --- rebalances -----------------------------------------------------------------------------------------------

    def _on_assign(self, consumer: Consumer, partitions: list[TopicPartition]) -> None:
        if not partitions or self._leaving:
            return
        opened = self._open(consumer, [(one.topic, one.partition) for one in partitions])
        mine = [TopicPartition(one.topic, one.partition, OFFSET_END) for one in partitions]
        consumer.incremental_assign(mine)
        consumer.pause(mine)
        for lane in opened:
            self._owned[lane.name] = lane.epoch
        self._tell(self._hear, [LaneEvent("assigned", lane.name, lane.epoch) for lane in opened], opened)

    def _open(self, consumer: Consumer, lanes: Sequence[tuple[str, int]]) -> list[Opened]:
        """Read how far each lane is, and write down that it is ours: from then on whoever had it before is fenced."""
        error: KafkaException | None = None
        for tries in range(_TRIES):
            if self._leaving:
                return []
            try:
                opened = self._read(consumer, lanes)
                self._write(consumer, [entry for lane in opened for entry in self._first(lane)])
                return opened
            except KafkaException as caught:
                error = caught
                self._bell.wait(_POLL * (1 + tries))
        assert error is not None, "it was tried"
        raise translated(error, f"group {self._subscription.group}: opening lanes")

    def _read(self, consumer: Consumer, lanes: Sequence[tuple[str, int]]) -> list[Opened]:
        group = self._subscription.group
        wanted = [
            TopicPartition(log, partition) for topic, partition in lanes for log in (topic, inbox_topic(topic, group))
        ]
        found: dict[tuple[str, int], TopicPartition] = {}
        for one in consumer.committed(wanted, timeout=self._timeout):
            if one.error is not None:
                raise KafkaException(one.error)
            found[one.topic, one.partition] = one
        opened: list[Opened] = []
        for topic, partition in lanes:
            ends: list[tuple[int, Saved]] = []
            for log in (topic, inbox_topic(topic, group)):
                commit = found[log, partition]
                low = commit.offset if commit.offset >= 0 else self._begin(consumer, log, partition)
                ends.append((low, read_saved(commit.metadata)))
            epoch = max(self._clock.now_us(), max(saved.epoch for _, saved in ends) + 1)
            books = (Progress(*ends[0]), Progress(*ends[1]))
            opened.append(Opened(lane_name(topic, partition), topic, partition, epoch, books))
        return opened

    def _begin(self, consumer: Consumer, log: str, partition: int) -> int:
        low, high = consumer.get_watermark_offsets(TopicPartition(log, partition), timeout=self._timeout)
        return high if log in self.fresh else low

    def _first(self, lane: Opened) -> list[Entry]:
        logs = (lane.topic, inbox_topic(lane.topic, self._subscription.group))
        entries: list[Entry] = []
        for log, progress in zip(logs, lane.books, strict=True):
            offset, metadata = progress.saved(lane.epoch, open_=True, slack=self._slack)
            progress.ceiling = progress.low + self._slack
            entries.append(Entry(lane.name, log, lane.partition, offset, metadata))
        return entries

    def _on_revoke(self, consumer: Consumer, partitions: list[TopicPartition]) -> None:
        """Tell, and go on committing until the lanes are drained or the time is over."""
        lanes = self._lanes(partitions)
        if lanes and not self._leaving:
            deadline = self._clock.ticks() + int(self._subscription.grace.total_seconds() * _SECOND)
            self._tell(self._hear, [LaneEvent("revoking", lane, self._owned[lane], deadline) for lane in lanes], ())
            self._revoking = True
            try:
                while any(lane in self._owned for lane in lanes) and not self._leaving:
                    left = (deadline - self._clock.ticks()) / _SECOND
                    if left <= 0:
                        break
                    self._bell.wait(min(left, _POLL))
                    self._work(consumer)
            finally:
                self._revoking = False
        self._drop("lost", [lane for lane in lanes if lane in self._owned])

    def _on_lost(self, consumer: Consumer, partitions: list[TopicPartition]) -> None:
        """Somebody else has them: nothing is committed."""
        self._drop("lost", self._lanes(partitions))

    def _lanes(self, partitions: Sequence[TopicPartition]) -> list[str]:
        return [name for one in partitions if (name := lane_name(one.topic, one.partition)) in self._owned]

    def _drop(self, kind: Literal["lost"], lanes: Sequence[str]) -> None:
        if lanes:
            self._tell(self._hear, [LaneEvent(kind, lane, self._owned[lane]) for lane in lanes], ())
            for lane in lanes:
                del self._owned[lane]
