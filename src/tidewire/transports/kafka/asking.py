"""Questions to the broker, and orders that are no messages: asked in a thread, answered whole, in time or not."""

# The library's admin calls return futures of what its type stubs leave open.
# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false, reportUnknownArgumentType=false

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Generator, Iterable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from contextlib import contextmanager, suppress
from functools import partial
from itertools import count
from typing import TypeVar
from weakref import proxy

import msgspec
from confluent_kafka import (
    OFFSET_INVALID,
    Consumer,
    ConsumerGroupTopicPartitions,
    KafkaError,
    KafkaException,
    TopicPartition,
)

from tidewire.errors import TransportClosed, TransportError, TransportRefused, TransportUnavailable
from tidewire.kit.threads import apart, to_the_end
from tidewire.model import Address
from tidewire.protocols import Clock
from tidewire.transports.kafka.errors import code_of, is_shut_out, translated, unreached
from tidewire.transports.kafka.library import AdminClient, ConfigResource, NewTopic, OffsetSpec, earliest, latest
from tidewire.transports.kafka.settings import KafkaSettings, admin_conf, fetcher_conf
from tidewire.transports.kafka.wire import Read, read_record, removal_in

__all__ = ["Asker", "Place", "Record", "Span"]

T = TypeVar("T")
K = TypeVar("K")
Place = tuple[str, int]
_STEP, _GLANCE, _OPEN = 0.05, 0.25, 0.25
_END = 5.0  # with a question to a dead coordinator open, librdkafka may wait for ever
_LOOK, _ONE, _THREADS = 2.0, 3.0, 4  # _ONE: seconds for one of several brokers, and for a coordinator at first
_TRIES = 20  # a topic that was just created may be unknown to the broker that is asked
_SOON = frozenset(
    {
        *("COORDINATOR_LOAD_IN_PROGRESS", "COORDINATOR_NOT_AVAILABLE", "NOT_COORDINATOR", "NOT_CONTROLLER"),
        *("NOT_LEADER_FOR_PARTITION", "LEADER_NOT_AVAILABLE", "OFFSET_NOT_AVAILABLE", "UNSTABLE_OFFSET_COMMIT"),
        *("REQUEST_TIMED_OUT", "_TRANSPORT", "NETWORK_EXCEPTION", "_TIMED_OUT", "_ALL_BROKERS_DOWN", "_DESTROY"),
    }
)
"""What a broker says that will answer in a moment, or the client where none has answered in its time, or it ends."""
_STALE = frozenset({"FENCED_LEADER_EPOCH", "UNKNOWN_LEADER_EPOCH"})
"""What it says of a question that names another reign of a partition's leader: after a restart there is a new one."""


class Span(msgspec.Struct, frozen=True):
    """What to read of a partition: from *start* on, below *end*, at most *limit* records."""

    start: int
    end: int
    limit: int


class Record(msgspec.Struct, frozen=True, gc=False):
    """A record that was read without consuming it. *removes*: it is a tombstone, for the record at this offset."""

    offset: int
    read: Read
    key: bytes | None
    removes: int | None


class Asker:
    """An admin client, and a reader that is a member of nothing. Made when they are first needed.

    Questions are asked in threads of its own: whoever fills the event loop's does not delay them.
    """

    def __init__(self, settings: KafkaSettings, name: str, clock: Clock) -> None:
        self.settings = settings
        self._name = name
        self._clock = clock
        self._loop = asyncio.get_running_loop()
        self._admin: AdminClient | None = None
        self._reader: Consumer | None = None
        self._reading = asyncio.Lock()
        self._unanswered = False
        self._replacing = threading.Lock()
        self._turn = 0
        self._refused: KafkaError | None = None
        self._said: KafkaError | None = None  # what happened last
        self._closed = threading.Event()
        self._hurry = threading.Event()
        self._threads = ThreadPoolExecutor(_THREADS, "tidewire-kafka-ask")

    async def open(self) -> int:
        """Reach the broker and return how many brokers there are.

        Raises:
            TransportRefused: it does not let us in.
            TransportUnavailable: nobody answers.
        """
        return await to_the_end(self._reach, executor=self._threads)

    def _reach(self) -> int:
        self._admin = self._made()
        admin = self._client()
        end = self._clock.ticks() + int(min(self.settings.timeout, 10.0) * 1e9)
        while True:
            try:
                return len(admin.list_topics(timeout=_OPEN).brokers)
            except KafkaException as error:
                if self._refused is not None:
                    raise translated(self._refused, self.settings.what) from error
                if self._clock.ticks() > end:
                    raise unreached(self._said or error, self.settings.what) from error
            admin.poll(_STEP)

    def _made(self) -> AdminClient:
        try:
            return AdminClient(admin_conf(self.settings, self._name), error_cb=self._on_error)
        except KafkaException as error:
            raise translated(error, self.settings.what) from error

    @contextmanager
    def asked_anew(self) -> Generator[None]:
        """Ask what is asked in this block over new connections if the block before it got no answer.

        A connection may be dead without a word. The client finds that out in its own time, which is long; whoever asks
        whether another connection is dead cannot wait for that.
        """
        if self._unanswered:
            self._replace(self._turn)
            if not self._reading.locked():
                reader, self._reader = [self._reader], None
                _let_go(reader)
        self._unanswered = False
        try:
            yield
        except (TransportUnavailable, asyncio.CancelledError):
            self._unanswered = True
            raise

    def _client(self) -> AdminClient:
        """Return the client that asks, by a reference that does not keep it: an error keeps the frames it has seen.

        Raises:
            TransportClosed: there is none any more.
        """
        admin = self._admin
        if admin is None:
            raise TransportClosed(f"{self.settings.what} is closed")
        weak: AdminClient = proxy(admin)
        return weak

    def _replace(self, turn: int) -> None:
        """Let a new client ask in the place of the one whose *turn* it was, unless that has been seen to."""
        with self._replacing:
            if self._admin is not None and self._turn == turn:
                old, self._admin = [self._admin], self._made()
                self._turn += 1
                _let_go(old)

    def _on_error(self, error: KafkaError) -> None:
        if is_shut_out(error):
            self._refused = error
        elif code_of(error) != "_ALL_BROKERS_DOWN":  # which says less than what came before it
            self._said = error

    async def _ask(self, question: Callable[[AdminClient], T], what: str) -> T:
        def ask() -> T:
            end, tries = self._clock.ticks() + int(self.settings.timeout * 1e9), 0
            while True:
                try:
                    return question(self._client())
                except ReferenceError as error:  # the client was replaced meanwhile
                    if self._clock.ticks() > end:
                        raise TransportUnavailable(f"{what}: no answer in time") from error
                except KafkaException as error:
                    stale = code_of(error) in _STALE
                    soon = stale or code_of(error) in _SOON
                    soon = soon or (code_of(error) == "UNKNOWN_TOPIC_OR_PART" and tries < _TRIES)
                    if not soon or self._clock.ticks() > end or self._closed.is_set():
                        raise translated(error, what) from error
                    tries += 1
                    if stale:  # the client would ask on with what it knows, for minutes
                        self._look_again(self._client())
                except TimeoutError as error:
                    raise TransportUnavailable(f"{what}: no answer in time") from error
                self._closed.wait(_STEP)

        return await self._loop.run_in_executor(self._threads, ask)

    async def _ask_coordinator(self, question: Callable[[AdminClient, float], T], what: str) -> T:
        """Ask what only the coordinator of a group answers, in so many seconds.

        After a broker has died the client may lose such a question, and every later one about that group: it waits to
        be told of a broker that comes, which is there already. So the next try is a new client's.
        """
        seconds = min(_ONE, self.settings.timeout)

        def ask(admin: AdminClient) -> T:
            nonlocal seconds
            turn = self._turn
            try:
                return question(admin, seconds)
            except KafkaException as error:
                if code_of(error) == "_TIMED_OUT":
                    self._replace(turn)
                    seconds = min(2 * seconds, self.settings.timeout)
                raise

        return await self._ask(ask, what)

    def _look_again(self, admin: AdminClient) -> None:
        """Let the client hear who leads; where nobody tells, the question that follows fails, and says why."""
        with suppress(KafkaException):
            admin.list_topics(timeout=_LOOK)

    def _all(self, admin: AdminClient, futures: Mapping[K, Future[T]]) -> dict[K, T]:
        return {key: self._answer(admin, future) for key, future in futures.items()}

    def _answer(self, admin: AdminClient, future: Future[T]) -> T:
        """Wait for one answer of *admin*; whoever closes us does not wait for it.

        Raises:
            ReferenceError: it was replaced, and answers no more.
        """
        end = self._clock.ticks() + int((self.settings.timeout + 1.0) * 1e9)
        while not (future.done() or self._closed.is_set() or self._clock.ticks() > end):
            wait([future], _GLANCE)
            admin.poll(0.0)  # or it is gone
        return future.result(0)

    # --- topology -------------------------------------------------------------------------------------------------

    async def partitions(self) -> dict[str, int]:
        """Return how many partitions each topic has."""

        def ask(admin: AdminClient) -> dict[str, int]:
            topics = admin.list_topics(timeout=self.settings.timeout).topics
            return {name: len(one.partitions) for name, one in topics.items() if one.error is None and one.partitions}

        return await self._ask(ask, self.settings.what)

    async def cluster(self) -> str:
        """Return the id that all brokers of the cluster give, or nothing."""
        return await self._ask(
            lambda admin: str(admin.list_topics(timeout=self.settings.timeout).cluster_id or ""), self.settings.what
        )

    async def missing(self, names: Sequence[str]) -> list[str]:
        """Return those of *names* that the broker says are not there."""

        def ask(admin: AdminClient) -> list[str]:
            found = {name: admin.list_topics(name, timeout=self.settings.timeout).topics.get(name) for name in names}
            unknown = {name: one.error for name, one in found.items() if one is not None and one.error is not None}
            return [name for name, error in unknown.items() if code_of(error) == "UNKNOWN_TOPIC_OR_PART"]

        return await self._ask(ask, self.settings.what)

    async def create(self, topics: Sequence[NewTopic]) -> dict[str, TransportError | None]:
        """Create topics; say of each whether it was made now (None), or why not: one that is there is refused.

        Raises:
            TransportUnavailable: of one nothing is known; to create it again is harmless.
        """
        made: dict[str, TransportError | None] = {}

        def ask(admin: AdminClient) -> dict[str, TransportError | None]:
            open_: KafkaException | None = None
            timeout, left = self.settings.timeout, [one for one in topics if one.topic not in made]
            for name, future in admin.create_topics(left, operation_timeout=timeout).items():
                try:
                    self._answer(admin, future)
                    made[name] = None
                except KafkaException as error:
                    if code_of(error) in _SOON:
                        open_ = error
                        continue
                    there = code_of(error) == "TOPIC_ALREADY_EXISTS"
                    made[name] = TransportRefused("there") if there else translated(error, f"topic {name}")
            if open_ is not None:
                raise open_
            return made

        return await self._ask(ask, self.settings.what) if topics else {}

    async def configs(self, names: Sequence[str]) -> dict[str, dict[str, str]]:
        """Return the effective settings of topics."""

        def ask(admin: AdminClient) -> dict[str, dict[str, str]]:
            resources = [ConfigResource(ConfigResource.Type.TOPIC, name) for name in names]
            found = self._all(admin, admin.describe_configs(resources))
            return {
                resource.name: {name: str(entry.value) for name, entry in entries.items()}
                for resource, entries in found.items()
            }

        return await self._ask(ask, self.settings.what) if names else {}

    async def let_go(self, ends: Mapping[Place, int]) -> None:
        """Remove records below an offset of each partition, for good."""

        def ask(admin: AdminClient) -> None:
            self._all(
                admin, admin.delete_records([TopicPartition(log, part, end) for (log, part), end in ends.items()])
            )

        if ends:
            await self._ask(ask, "removing records")

    async def has_modern_groups(self) -> bool:
        """Whether a broker says that its groups may use the newer protocol; who may not ask uses the older one."""
        turn = count()

        def ask(admin: AdminClient) -> bool:
            # Only the broker itself answers for its settings, and the first one may have died a moment ago.
            brokers = sorted(admin.list_topics(timeout=self.settings.timeout).brokers)
            resource = ConfigResource(ConfigResource.Type.BROKER, str(brokers[next(turn) % len(brokers)]))
            (entries,) = self._all(
                admin, admin.describe_configs([resource], request_timeout=min(self.settings.timeout, _ONE))
            ).values()
            protocols = entries.get("group.coordinator.rebalance.protocols")
            return protocols is not None and "consumer" in str(protocols.value).split(",")

        try:
            return await self._ask(ask, self.settings.what)
        except TransportRefused:
            return False

    # --- offsets --------------------------------------------------------------------------------------------------

    async def offsets(self, places: Iterable[Place], spec: OffsetSpec, *, least: int = -1) -> dict[Place, int]:
        """Return an offset of each partition: its first, its end, or the first at or after a time (-1: there is none).
        It is asked again while one is below *least*: a broker that has just come up may not know."""
        wanted = {TopicPartition(log, partition): spec for log, partition in places}

        def ask(admin: AdminClient) -> dict[Place, int]:
            found = self._all(admin, admin.list_offsets(wanted))
            if any(result.offset < least for result in found.values()):
                raise KafkaException(KafkaError(KafkaError.OFFSET_NOT_AVAILABLE))
            return {(place.topic, place.partition): result.offset for place, result in found.items()}

        return await self._ask(ask, "asking for offsets") if wanted else {}

    async def ends(self, places: Iterable[Place]) -> dict[Place, int]:
        """Return where each partition ends."""
        return await self.offsets(places, latest(), least=0)

    async def begins(self, places: Iterable[Place]) -> dict[Place, int]:
        """Return where each partition begins."""
        return await self.offsets(places, earliest(), least=0)

    async def committed(self, wanted: Mapping[str, Sequence[Place]]) -> dict[str, dict[Place, tuple[int, str | None]]]:
        """Return, for each group, the committed offset and metadata of each of its partitions that has one."""

        def ask(admin: AdminClient, seconds: float) -> dict[str, dict[Place, tuple[int, str | None]]]:
            futures: dict[str, Future[ConsumerGroupTopicPartitions]] = {}
            for group, places in wanted.items():
                partitions = [TopicPartition(log, partition) for log, partition in places]
                request = [ConsumerGroupTopicPartitions(group, partitions)]
                futures.update(admin.list_consumer_group_offsets(request, request_timeout=seconds))
            return {
                group: {
                    (one.topic, one.partition): (one.offset, one.metadata)
                    for one in found.topic_partitions or ()
                    if one.error is None and one.offset != OFFSET_INVALID and one.offset >= 0
                }
                for group, found in self._all(admin, futures).items()
            }

        return await self._ask_coordinator(ask, f"group {', '.join(wanted)}") if wanted else {}

    async def move(self, group: str, entries: Mapping[Place, tuple[int, str]]) -> None:
        """Set the committed offsets of a group that has no members.

        Raises:
            TransportRefused: it has.
        """
        wanted = [TopicPartition(log, part, offset, text) for (log, part), (offset, text) in entries.items()]

        def ask(admin: AdminClient, seconds: float) -> None:
            request = [ConsumerGroupTopicPartitions(group, wanted)]
            try:
                asked = admin.alter_consumer_group_offsets(request, request_timeout=seconds)
                (result,) = self._all(admin, asked).values()
                for one in result.topic_partitions:
                    if one.error is not None:
                        raise KafkaException(one.error)
            except KafkaException as error:
                if code_of(error) in ("NON_EMPTY_GROUP", "UNKNOWN_MEMBER_ID", "STALE_MEMBER_EPOCH"):
                    raise TransportRefused(f"group {group} has members", hint="stop them first") from error
                raise

        await self._ask_coordinator(ask, f"group {group}")

    async def members(self, groups: Sequence[str]) -> dict[str, dict[str, list[Place]]]:
        """Return the live members of groups, by the names they gave, with the partitions they have."""

        def ask(admin: AdminClient, seconds: float) -> dict[str, dict[str, list[Place]]]:
            found: dict[str, dict[str, list[Place]]] = {}
            for group, future in admin.describe_consumer_groups(list(groups), request_timeout=seconds).items():
                try:
                    described = self._answer(admin, future)
                except KafkaException as error:
                    if code_of(error) != "GROUP_ID_NOT_FOUND":
                        raise
                    found[group] = {}
                    continue
                found[group] = {
                    one.client_id: [
                        (place.topic, place.partition)
                        for place in (one.assignment.topic_partitions if one.assignment is not None else ())
                    ]
                    for one in described.members
                }
            return found

        return await self._ask_coordinator(ask, f"group {', '.join(groups)}") if groups else {}

    # --- reading --------------------------------------------------------------------------------------------------

    async def read(self, to: Mapping[str, Address], spans: Mapping[Place, Span]) -> dict[Place, list[Record]]:
        """Read records without consuming them; *to* says what lies in each log."""
        wanted = {place: span for place, span in spans.items() if span.start < span.end and span.limit > 0}
        found: dict[Place, list[Record]] = {place: [] for place in spans}
        if wanted:
            async with self._reading:  # one client reads one thing at a time
                self._hurry.clear()
                read = partial(self._read, to, wanted, found)
                await to_the_end(read, executor=self._threads, hurry=self._hurry.set)
        return found

    def _read(self, to: Mapping[str, Address], spans: Mapping[Place, Span], found: dict[Place, list[Record]]) -> None:
        if self._reader is None:
            conf = fetcher_conf(self.settings, self._name, group="tidewire-look")
            self._reader = Consumer({**conf, "enable.partition.eof": True, "fetch.wait.max.ms": 10})
        reader = self._reader
        open_ = dict(spans)
        end = self._clock.ticks() + int(self.settings.timeout * 1e9)
        reader.assign([TopicPartition(log, partition, span.start) for (log, partition), span in spans.items()])
        try:
            while open_:
                first = reader.poll(_STEP)
                for message in () if first is None else (first, *reader.consume(500, 0.0)):
                    place = (message.topic() or "", message.partition() or 0)
                    span, offset, error = open_.get(place), message.offset(), message.error()
                    if span is None or offset is None:
                        continue
                    if error is not None:
                        if code_of(error) not in (
                            "_PARTITION_EOF",
                            "_AUTO_OFFSET_RESET",
                        ):  # the end, or let go meanwhile
                            raise translated(error, place[0])
                        del open_[place]
                        continue
                    if offset < span.end:
                        headers = message.headers()
                        read = read_record(
                            to[place[0]],
                            message.key(),
                            value=message.value(),
                            headers=headers,
                            ms=message.timestamp()[1],
                        )
                        found[place].append(Record(offset, read, message.key(), removal_in(headers)))
                    if offset + 1 >= span.end or len(found[place]) >= span.limit:
                        del open_[place]
                if open_ and (self._clock.ticks() > end or self._hurry.is_set()):
                    raise TransportUnavailable("reading: no answer in time")
        except KafkaException as error:
            raise translated(error, "reading") from error
        finally:
            reader.unassign()

    async def close(self) -> None:
        """End both clients, and the threads as soon as they are free.

        A client that the library never lets go is left to a thread that keeps nobody waiting.
        """
        self._closed.set()
        self._hurry.set()
        last, self._admin = [self._admin], None
        await apart(partial(_let_go(last).join, _END))
        async with self._reading:
            reader, self._reader = self._reader, None
        if reader is not None:
            await apart(reader.close)
        self._threads.shutdown(wait=False)


def _let_go(clients: list[T]) -> threading.Thread:
    """Drop the last reference to each of *clients* in a thread, which waits until the library has ended them."""
    ending = threading.Thread(target=clients.clear, name="tidewire-kafka-end", daemon=True)
    ending.start()
    return ending
