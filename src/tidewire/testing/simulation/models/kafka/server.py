"""The broker: topics, producers and the coordinator, behind one door."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from itertools import count

from tidewire.protocols import Clock
from tidewire.testing.simulation.models.intake import Bell
from tidewire.testing.simulation.models.kafka.groups import Coordinator, Place
from tidewire.testing.simulation.models.kafka.logs import Draft, Record, Topic
from tidewire.testing.simulation.models.links import Refusal, Server

__all__ = ["BadRecord", "KafkaServer"]

_TEXT_MAX = 4_000
_TEXT_MAX_SMALL = 48


class BadRecord(Refusal):
    """A batch is refused whole because of one record, the one at *index*."""

    def __init__(self, code: str, index: int) -> None:
        super().__init__(code)
        self.index = index


class KafkaServer(Server):
    """What the brokers of a cluster store and decide."""

    def __init__(self, clock: Clock) -> None:
        super().__init__(clock)
        self.topics: dict[str, Topic] = {}
        self.coordinator = Coordinator(clock, _Counts(self.topics), text_max=_TEXT_MAX)
        self.clients = count(1)
        self._producers = count(1)
        self._stamp = 0

    def cramp(self) -> None:
        """Leave little room for what stands beside an offset."""
        self.coordinator.text_max = _TEXT_MAX_SMALL

    def restart(self) -> None:
        """Logs and offsets are there; connections end."""
        super().restart()
        self.coordinator.fail_over()

    def repeat(self, draw: float) -> bool:
        """Append a copy of a record, as a producer does that has lost its number and sends once more."""
        stored = [
            (place, record.draft)
            for name, topic in sorted(self.topics.items())
            if "|" not in name
            for place in topic.partitions
            for record in place.records
        ]
        if not stored:
            return False
        partition, draft = stored[int(draw * len(stored))]
        partition.append([draft], self._next_stamp)
        return True

    # --- producers --------------------------------------------------------------------------------------------

    def new_producer(self) -> int:
        """Return a number for an idempotent producer. One that starts again has another."""
        return next(self._producers)

    def produce(self, producer: int, place: Place, sequence: int, *, drafts: Sequence[Draft]) -> None:
        """Store a batch; one that this producer has sent before is known by its number, and is stored once.

        Raises:
            BadRecord: the batch is not stored because of one record.
            Refusal: ``UNKNOWN_TOPIC_OR_PARTITION`` or ``OUT_OF_ORDER_SEQUENCE_NUMBER``.
        """
        partition = self._topic(place[0]).partitions[place[1]]
        last = partition.sequences.get(producer, 0)
        if sequence <= last:
            return
        if sequence != last + 1:
            raise Refusal("OUT_OF_ORDER_SEQUENCE_NUMBER")
        for index, draft in enumerate(drafts):
            if draft.message is not None and self.refuse is not None and self.refuse(draft.message) is not None:
                raise BadRecord("INVALID_RECORD", index)
        partition.sequences[producer] = sequence
        partition.append(drafts, self._next_stamp)

    def _next_stamp(self) -> int:
        self._stamp = max(self._stamp + 1, self.clock.now_us())
        return self._stamp

    # --- readers ----------------------------------------------------------------------------------------------

    def fetch(self, wanted: Sequence[tuple[Place, int, Bell]], *, limit: int) -> list[tuple[Place, list[Record]]]:
        """Return records of several partitions from their offsets on; where there is none, a bell rings for the next.

        Raises:
            Refusal: ``OFFSET_OUT_OF_RANGE`` or ``UNKNOWN_TOPIC_OR_PARTITION``.
        """
        found: list[tuple[Place, list[Record]]] = []
        for place, offset, bell in wanted:
            partition = self._topic(place[0]).partitions[place[1]]
            records = partition.read(offset, limit)
            if records:
                found.append((place, records))
            if len(records) < limit:
                partition.bells[bell] = None
        return found

    def read(self, place: Place, offset: int, limit: int) -> list[Record]:
        """Return up to *limit* records of a partition from *offset* on, or from its start if that is later."""
        partition = self._topic(place[0]).partitions[place[1]]
        return partition.read(max(offset, partition.start), limit)

    # --- administrators ---------------------------------------------------------------------------------------

    def create(self, name: str, topic: Topic) -> bool:
        """Create a topic; False if there is one of this name."""
        if name in self.topics:
            return False
        self.topics[name] = topic
        return True

    def describe(self) -> Mapping[str, Topic]:
        """Return every topic; to be looked at."""
        return self.topics

    def ends(self, name: str) -> list[tuple[int, int]]:
        """Return the first offset and the next one of each partition."""
        return [(partition.start, partition.end) for partition in self._topic(name).partitions]

    def delete_before(self, offsets: Mapping[Place, int]) -> None:
        """Delete records before these offsets."""
        for place, offset in offsets.items():
            self._topic(place[0]).partitions[place[1]].delete_before(offset)

    def _topic(self, name: str) -> Topic:
        if name not in self.topics:
            raise Refusal("UNKNOWN_TOPIC_OR_PARTITION", name)
        return self.topics[name]


class _Counts(Mapping[str, int]):
    """How many partitions each topic has."""

    def __init__(self, topics: Mapping[str, Topic]) -> None:
        self._topics = topics

    def __getitem__(self, name: str) -> int:
        return len(self._topics[name].partitions)

    def __iter__(self) -> Iterator[str]:
        return iter(self._topics)

    def __len__(self) -> int:
        return len(self._topics)
