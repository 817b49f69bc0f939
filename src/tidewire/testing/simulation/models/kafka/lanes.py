"""A lane as its owner has it."""

from __future__ import annotations

from tidewire.model import Delivery, InboxChannel, Message
from tidewire.testing.simulation.models.kafka.groups import Place
from tidewire.testing.simulation.models.kafka.logs import Record
from tidewire.testing.simulation.models.kafka.marks import Marks

__all__ = ["Lane", "handed_out"]


class Lane:
    """A partition of a topic and the same one of its inbox channel: they go from member to member together."""

    def __init__(self, place: Place, epoch: int, *, topic: Marks, inbox: Marks) -> None:
        self.name = f"{place[0]}/{place[1]}"
        self.place = place
        self.epoch = epoch
        self.topic = topic
        self.inbox = inbox
        self.paused = False
        self.deadline: int | None = None  # of a revocation, in ticks
        self.drained = False

    @property
    def both(self) -> tuple[Marks, Marks]:
        """Return its two partitions, the inbox channel's first: what waits there is older."""
        return self.inbox, self.topic

    def of(self, message: Message) -> Marks:
        """Return the partition that *message* came from."""
        return self.inbox if isinstance(message.to, InboxChannel) else self.topic


def handed_out(lane: Lane, marks: Marks, record: Record) -> Delivery:
    """Return the delivery of a record."""
    message = record.draft.message
    assert message is not None, "topics and inbox channels hold messages"
    return Delivery(
        message,
        lane.name,
        lane.epoch,
        record.offset,
        marks.attempts.get(record.offset, 1),
        record.offset in marks.suspects,
        None,
        record.stamp,
    )
