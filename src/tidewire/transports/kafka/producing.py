"""Handing records to the broker: one producer, and a thread that hears what became of them, one wake-up a burst."""

from __future__ import annotations

import asyncio
import logging
import threading
from collections.abc import Callable, Sequence
from contextlib import suppress
from functools import partial
from itertools import count

from confluent_kafka import KafkaError, KafkaException, Message, Producer, murmur2

from tidewire.chance import Ids
from tidewire.errors import TransportClosed, TransportUnavailable
from tidewire.kit.sizes import carried_size
from tidewire.model import Address, DeadChannel, Receipt
from tidewire.model import Message as Event
from tidewire.protocols import Clock
from tidewire.transports.kafka.errors import code_of, is_shut_out, publish_verdict, translated
from tidewire.transports.kafka.names import log_of
from tidewire.transports.kafka.settings import KafkaSettings, producer_conf
from tidewire.transports.kafka.wire import MARKER, Headers, key_bytes, record_headers

__all__ = ["Publisher"]

_logger = logging.getLogger("tidewire.kafka")
_POLL = 0.1
_ROOM = 0.01


class Batch:
    """One call of `Publisher.publish`: its receipts, as they come."""

    __slots__ = ("done", "left", "receipts")

    def __init__(self, number: int, done: asyncio.Future[None]) -> None:
        self.receipts: list[Receipt | None] = [None] * number
        self.left = number
        self.done = done

    def put(self, place: int, receipt: Receipt) -> None:
        """Note one receipt; the last one ends the call."""
        self.receipts[place] = receipt
        self.left -= 1
        if not self.left and not self.done.done():
            self.done.set_result(None)


class Publisher:
    """A producer that is made anew after an error that it cannot survive."""

    def __init__(
        self, settings: KafkaSettings, name: str, *, clock: Clock, ids: Ids, partitions: Callable[[str], int | None]
    ) -> None:
        self._settings = settings
        self._name = name
        self._clock = clock
        self._ids = ids
        self._partitions = partitions
        self._loop = asyncio.get_running_loop()
        self._producer: Producer | None = None
        self._thread: threading.Thread | None = None
        self._closed = False
        self._ending = threading.Event()
        self._reports: list[tuple[Batch, int, str, KafkaError | None]] = []
        self._refused: KafkaError | None = None
        self._turn = count()
        self._last_at = 0

    def begin(self) -> None:
        """Make the producer now: it needs a moment until it may hand over."""
        self._open()

    async def publish(self, messages: Sequence[Event]) -> list[Receipt]:
        """Hand *messages* over, in order, and wait until each is stored, rejected or given up."""
        batch = Batch(len(messages), self._loop.create_future())
        failed: set[tuple[Address, str]] = set()
        for place, message in enumerate(messages):
            key = message.key
            if failed and key is not None and (message.to, key) in failed:
                batch.put(place, Receipt(message.id, "rejected", "after_failure"))
                continue
            receipt = await self._hand_over(batch, place, message)
            if receipt is not None:
                batch.put(place, receipt)
                if key is not None:
                    failed.add((message.to, key))
        await batch.done
        return [receipt for receipt in batch.receipts if receipt is not None]

    async def _hand_over(self, batch: Batch, place: int, message: Event) -> Receipt | None:
        log = log_of(message.to)
        partitions = self._partitions(log)
        if partitions is None:
            return Receipt(message.id, "rejected", "unknown_topic", f"there is no {message.to}")
        try:
            key, size = key_bytes(message.key), carried_size(message, self._settings.message_bytes_max)
            headers = record_headers(message, self._stamp())
        except UnicodeEncodeError:
            return Receipt(message.id, "rejected", "invalid", "a key or a header is no text")
        if size > self._settings.message_bytes_max:
            detail = f"{size} bytes with headers; at most {self._settings.message_bytes_max}"
            return Receipt(message.id, "rejected", "too_large", detail)
        if isinstance(message.to, DeadChannel):  # its own key: a removal names it, and compaction drops both
            key, partition = self._ids.event_id().encode(), 0
        else:
            partition = murmur2(key, partitions) if key is not None else next(self._turn) % partitions
        return await self.produce(batch, place, id_=message.id, record=(log, message.body, key, partition, headers))

    async def produce(
        self,
        batch: Batch,
        place: int,
        *,
        id_: str,
        record: tuple[str, bytes | None, bytes | None, int, Headers],
    ) -> Receipt | None:
        """Enqueue one record, waiting while the queue is full; a receipt if that is all that will become of it."""
        log, value, key, partition, headers = record
        report = partial(self._report, batch, place, id_)
        end = self._loop.time() + self._settings.timeout
        while True:
            producer = self._open()
            try:
                producer.produce(log, value, key, partition, on_delivery=report, headers=headers)
            except BufferError:  # its queue is full: that is back-pressure
                if self._loop.time() > end:
                    return Receipt(id_, "rejected", "unavailable", "the queue to the broker stays full")
                await asyncio.sleep(_ROOM)
            except KafkaException as error:
                rejected, reason = publish_verdict(error.args[0])
                if error.args[0].fatal() or code_of(error) == "_FATAL":
                    self._discard(producer)
                    return Receipt(id_, "rejected", "unavailable", str(translated(error, self._settings.what)))
                return Receipt(id_, "rejected", reason if rejected else "invalid", error.args[0].str())
            else:
                return None

    def _stamp(self) -> int:
        """Return the time in microseconds, later than any before: it orders what lies in several partitions."""
        self._last_at = max(self._last_at + 1, self._clock.now_us())
        return self._last_at

    # --- the producer and its thread ------------------------------------------------------------------------------

    def _open(self) -> Producer:
        if self._refused is not None:
            error, self._refused = self._refused, None
            raise translated(error, self._settings.what)
        if self._producer is None:
            if self._closed:
                raise TransportClosed("the transport is closed")
            try:
                self._producer = Producer({**producer_conf(self._settings, self._name), "error_cb": self._on_error})
            except KafkaException as error:
                raise translated(error, self._settings.what) from error
            self._thread = threading.Thread(
                target=self._listen, args=(self._producer,), name="tidewire-kafka-reports", daemon=True
            )
            self._thread.start()
        return self._producer

    def _discard(self, producer: Producer) -> None:
        """A producer that met a fatal error takes nothing more: the next publish makes another."""
        if self._producer is producer:
            _logger.warning("tidewire.kafka.producer_renewed", extra={"broker": self._settings.what})
            self._producer = None
            self._thread = None  # it goes on until nothing is in flight

    def _on_error(self, error: KafkaError) -> None:
        """Hear, in the thread, of what concerns the whole client."""
        if is_shut_out(error):
            self._refused = error

    def _report(self, batch: Batch, place: int, id_: str, error: KafkaError | None, record: Message) -> None:
        """Hear, in the thread, what became of one record."""
        self._reports.append((batch, place, id_, error))

    def _listen(self, producer: Producer) -> None:
        """Until closed: hand reports over, a burst at a time. Nobody else ends *producer*: it might be in use here."""
        while True:
            producer.poll(_POLL)
            if self._reports:
                reports, self._reports = self._reports, []
                with suppress(RuntimeError):  # the event loop is gone, and with it everybody who waits
                    self._loop.call_soon_threadsafe(self._heard, reports)
            elif (self._ending.is_set() or (self._producer is not producer and not self._closed)) and not len(producer):
                producer.close()
                return

    def _heard(self, reports: Sequence[tuple[Batch, int, str, KafkaError | None]]) -> None:
        for batch, place, id_, error in reports:
            if error is None:
                batch.put(place, Receipt(id_, "stored"))
                continue
            rejected, reason = publish_verdict(error)
            if rejected:
                batch.put(place, Receipt(id_, "rejected", reason, error.str()))
            else:
                batch.put(place, Receipt(id_, "unknown", "no_answer", f"{error.str()} ({code_of(error)})"))
            if error.fatal() and self._producer is not None:
                self._discard(self._producer)

    def end(self, seconds: float) -> None:
        """Let what is in flight end, give up the rest after so many *seconds*, and end the thread. Blocks."""
        self._closed = True
        producer, thread = self._producer, self._thread
        self._producer = None
        if producer is not None and producer.flush(seconds):
            producer.purge(in_queue=True, in_flight=True, blocking=False)
        self._ending.set()
        if thread is not None:
            thread.join(2.0)

    async def tombstones(self, log: str, keys: Sequence[tuple[bytes, int]]) -> None:
        """Say that dead letters are removed: a record with the key of each and no body, and the place it removes.

        Raises:
            TransportUnavailable: not all of them were stored.
        """
        batch = Batch(len(keys), self._loop.create_future())
        for place, (key, offset) in enumerate(keys):
            headers: Headers = [(MARKER, b"%d" % offset)]
            receipt = await self.produce(batch, place, id_="", record=(log, None, key, 0, headers))
            if receipt is not None:
                batch.put(place, receipt)
        await batch.done
        wrong = [receipt for receipt in batch.receipts if receipt is not None and not receipt.ok]
        if wrong:
            raise TransportUnavailable(f"{log}: {len(wrong)} removals were not stored: {wrong[0].detail}")
