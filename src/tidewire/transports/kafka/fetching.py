"""Reading the partitions of our lanes: one client, one thread, one wake-up of the event loop a batch."""

from __future__ import annotations

import asyncio
import logging
import threading
from collections import deque
from collections.abc import Callable, Sequence
from contextlib import suppress

import msgspec
from confluent_kafka import Consumer, KafkaError, KafkaException, Message, TopicPartition

from tidewire.errors import TransportError
from tidewire.kit.bell import Bell
from tidewire.model import Address, Delivery
from tidewire.transports.kafka.errors import code_of, is_shut_out, translated
from tidewire.transports.kafka.settings import Conf
from tidewire.transports.kafka.wire import read_record

__all__ = ["Fetched", "Fetcher", "Source"]

_logger = logging.getLogger("tidewire.kafka")
_IDLE = 0.02
_BATCH = 500
_END = frozenset({"UNKNOWN_TOPIC_OR_PART", "_UNKNOWN_TOPIC", "_UNKNOWN_PARTITION", "TOPIC_AUTHORIZATION_FAILED"})
_GAP = frozenset({"_AUTO_OFFSET_RESET", "OFFSET_OUT_OF_RANGE"})


class Source(msgspec.Struct, frozen=True):
    """A partition that is read from *offset* on, for one *epoch* of its *lane*."""

    log: str
    partition: int
    to: Address
    lane: str
    epoch: int
    offset: int


class Fetched(msgspec.Struct):
    """What was read of a source at once: deliveries for a first attempt, in order. *gone*: retention has let go
    everything below this offset."""

    source: Source
    records: list[Delivery] = []
    gone: int = 0


class Fetcher:
    """The thread that reads. *hear* is called in the event loop, with what came together."""

    def __init__(
        self,
        conf: Conf,
        *,
        timeout: float,
        room: int,
        hear: Callable[[Sequence[Fetched]], None],
        failed: Callable[[TransportError], None],
    ) -> None:
        self._conf = conf
        self._timeout = timeout
        self._room = room
        self._hear = hear
        self._failed = failed
        self._loop = asyncio.get_running_loop()
        self._bell = Bell()
        self._orders: deque[Callable[[Consumer], None]] = deque()
        self._sources: dict[tuple[str, int], Source] = {}
        self._ending = False
        self._held = 0
        self._thread = threading.Thread(target=self._run, name="tidewire-kafka-fetch", daemon=True)

    def start(self) -> None:
        """Begin."""
        self._thread.start()

    def read(self, sources: Sequence[Source]) -> None:
        """Read *sources* from now on."""
        self._order(lambda consumer: self._assign(consumer, sources))

    def drop(self, places: Sequence[tuple[str, int]]) -> None:
        """Read these no more."""
        self._order(lambda consumer: self._unassign(consumer, places))

    def pause(self, log: str, partition: int) -> None:
        """Read a partition no further, for a while."""
        self._order(lambda consumer: self._if_read(log, partition, consumer.pause))

    def resume(self, log: str, partition: int) -> None:
        """Go on behind the last record that was passed on."""
        self._order(lambda consumer: self._if_read(log, partition, consumer.resume))

    def holding(self, weight: int) -> None:
        """So much of what was passed on has not been handed out yet."""
        full, self._held = self._held >= self._room, weight
        if full and weight < self._room:
            self._bell.ring()

    def end(self) -> None:
        """End soon. Returns at once."""
        self._ending = True
        self._bell.ring()

    def join(self, seconds: float) -> bool:
        """Wait for the end of the thread; False if it has not ended in time. Blocks."""
        self._thread.join(seconds)
        return not self._thread.is_alive()

    def _order(self, order: Callable[[Consumer], None]) -> None:
        self._orders.append(order)
        self._bell.ring()

    # --- in the thread --------------------------------------------------------------------------------------------

    def _run(self) -> None:
        consumer: Consumer | None = None
        try:
            consumer = Consumer({**self._conf, "error_cb": self._on_error})
            while not self._ending:
                while self._orders:
                    self._orders.popleft()(consumer)
                if not self._sources or self._held >= self._room:
                    self._bell.wait(_IDLE * 10)
                    continue
                if (first := consumer.poll(_IDLE)) is not None:  # a timed `consume` waits until it has them all
                    self._pass_on(consumer, [first, *consumer.consume(_BATCH, 0.0)])
        except KafkaException as error:
            self._tell(self._failed, translated(error, "fetching"))
        except TransportError as error:
            self._tell(self._failed, error)
        finally:
            if consumer is not None:
                consumer.close()

    def _tell(self, function: Callable[..., object], *arguments: object) -> None:
        with suppress(RuntimeError):  # the event loop is gone, and with it everybody who listens
            self._loop.call_soon_threadsafe(function, *arguments)

    def _on_error(self, error: KafkaError) -> None:
        if is_shut_out(error):
            self._tell(self._failed, translated(error, "fetching"))

    def _pass_on(self, consumer: Consumer, messages: list[Message]) -> None:
        found: list[Fetched] = []
        log, partition, source = "", -1, None
        count = len(messages)
        messages.reverse()
        while messages:  # each is let go at once, with all its headers: or the collector would go through them all
            message = messages.pop()
            if message.partition() != partition or message.topic() != log:  # they come in runs
                log, partition = message.topic() or "", message.partition() or 0
                if (source := self._sources.get((log, partition))) is not None:
                    found.append(Fetched(source))
            if source is None:
                continue
            if (error := message.error()) is not None:
                found += self._hear_error(consumer, error, source)
                partition = -1
                continue
            offset, (_, ms) = message.offset(), message.timestamp()
            assert offset is not None, "a record has one"
            headers, value = message.headers(), message.value()
            read = read_record(source.to, message.key(), value=value, headers=headers, ms=ms)
            found[-1].records.append(
                Delivery(read.message, source.lane, source.epoch, offset, 1, False, read.foreign, read.stored_at)
            )
        found = [one for one in found if one.records or one.gone]
        if found:
            self._held += count  # until the event loop says how much it really is
            self._tell(self._hear, found)

    def _hear_error(self, consumer: Consumer, error: KafkaError, source: Source) -> list[Fetched]:
        code = code_of(error)
        if code in _END:
            raise translated(error, source.log)
        if code not in _GAP:
            return []
        place = TopicPartition(source.log, source.partition)
        low, _ = consumer.get_watermark_offsets(place, timeout=self._timeout)
        _logger.error(
            "tidewire.kafka.retention_gap",
            extra={"topic": source.log, "partition": source.partition, "first_kept": low},
        )
        consumer.incremental_unassign([place])
        consumer.incremental_assign([TopicPartition(source.log, source.partition, low)])
        return [Fetched(source, gone=low)]

    def _assign(self, consumer: Consumer, sources: Sequence[Source]) -> None:
        again = [TopicPartition(one.log, one.partition) for one in sources if (one.log, one.partition) in self._sources]
        if again:
            consumer.incremental_unassign(again)
        self._sources.update({(one.log, one.partition): one for one in sources})
        consumer.incremental_assign([TopicPartition(one.log, one.partition, one.offset) for one in sources])

    def _unassign(self, consumer: Consumer, places: Sequence[tuple[str, int]]) -> None:
        known = [place for place in places if self._sources.pop(place, None) is not None]
        if known:
            consumer.incremental_unassign([TopicPartition(log, partition) for log, partition in known])

    def _if_read(self, log: str, partition: int, act: Callable[[list[TopicPartition]], None]) -> None:
        if (log, partition) in self._sources:
            act([TopicPartition(log, partition)])
