"""Bugs on purpose in the adapters to brokers of logs: each forgets something that the adapter has to pay for."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import msgspec
from planting import patch, plant

from tidewire.testing.simulation.models.jetstream import receiver as jetstream
from tidewire.testing.simulation.models.jetstream import streams
from tidewire.testing.simulation.models.kafka import groups, marks
from tidewire.testing.simulation.models.kafka import producer as publishing
from tidewire.testing.simulation.models.kafka import receiver as kafka

# --- Kafka-like -----------------------------------------------------------------------------------------------


@plant("KA3 BA-13", ground="kafka")
def kafka_commit_beyond_a_gap() -> None:
    """What is done is committed by its highest offset, whatever is open below it."""

    def committed(self: Any) -> Any:
        if self.done:
            self.base = max(self.base, max(self.done) + 1)
            self.done.clear()
        return self.base, ""

    patch(marks.Marks, "committed", committed)


@plant("KA1 R1", ground="kafka")
def kafka_commit_what_was_handed_out() -> None:
    """An offset is done when it is handed out, as with an automatic commit."""
    mark: Any = marks.Marks._mark

    def done(self: Any, offset: int) -> str:
        return "~" if offset in self.out else str(mark(self, offset))

    patch(marks.Marks, "_mark", done)


@plant("KA4 KA22 R4", ground="kafka")
def kafka_stale_epoch_commits() -> None:
    """The coordinator takes a commit under any epoch, and the member thinks that it is still in."""
    commit: Any = groups.Coordinator.commit

    def stale(self: Any, name: str, member: str, epoch: int, *, offsets: Any) -> None:
        group = self._group(name)
        if member in group.members:
            commit(self, name, member, group.members[member].epoch, offsets=offsets)
        else:
            group.offsets.update(offsets)

    patch(groups.Coordinator, "commit", stale)
    patch(kafka.KafkaReceiver, "_overdue", lambda self: False)


@plant("KA13 R5", ground="kafka")
def kafka_timed_out_is_stored() -> None:
    """A batch without an answer is reported as stored, and not sent again."""

    async def deliver(self: Any, place: Any, drafts: Sequence[Any]) -> str:
        identity = self._identity = self._identity or publishing._Identity(self._server.new_producer())
        sequence = identity.sequences[place] = identity.sequences.get(place, 0) + 1
        try:
            await self._link.call(self._server.produce, identity.number, place, sequence, drafts=drafts)
        except publishing.Disconnected:
            self._identity = None
        return "stored"

    patch(publishing.Producer, "_deliver", deliver)


# --- JetStream-like -------------------------------------------------------------------------------------------


@plant("NA1 R1", ground="jetstream")
def jetstream_ack_on_receipt() -> None:
    """What is pulled is acked at once."""
    pulled: Any = jetstream.Channel.pulled

    def acked(self: Any, given: Any, now: int) -> None:
        pulled(self, given, now)
        for one in given:
            _ACK[0](self.who, one.stored.number)

    def remembering(self: Any, *args: Any, **options: Any) -> None:
        made(self, *args, **options)
        _ACK[0] = lambda who, number: self._server.ack({who: [number]})

    made = patch(jetstream.JetStreamReceiver, "__init__", remembering)
    patch(jetstream.Channel, "pulled", acked)


_ACK: list[Any] = [None]


@plant("NA3 RA", ground="jetstream")
def jetstream_hands_on_at_once() -> None:
    """Who takes a lane over does not wait for what is still out of it: what comes again comes behind what is new."""

    async def gather(self: Any, lane: Any) -> None:
        lane.gathering = False

    patch(jetstream.JetStreamReceiver, "_gather", gather)


@plant("NA6 R5 C2", ground="jetstream")
def jetstream_retries_have_the_same_id() -> None:
    """What goes to a channel has the event's id: the server takes a second retry for a duplicate."""
    post: Any = jetstream.Publisher._post

    def same(self: Any, message: Any) -> Any:
        made = post(self, message)
        return msgspec.structs.replace(made, name=f"{message.source}\0{message.id}")

    patch(jetstream.Publisher, "_post", same)


@plant("NA2 BA-24", ground="jetstream")
def jetstream_max_deliver_stops() -> None:
    """The consumer hands a message out three times and then never again: only an advisory would say so."""
    pull: Any = streams.Consumer.pull

    def limited(self: Any, batch: int, bell: Any) -> Any:
        self._expire()
        for number in [one for one in self._again if self._pending[one].times >= 2]:
            self.forget(number)
        return pull(self, batch, bell)

    patch(streams.Consumer, "pull", limited)
