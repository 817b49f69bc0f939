"""The values everything else speaks in: frozen, typed, no behaviour beyond a property or two.

A *message* travels; a *delivery* is one handing-over of it; an *outcome* is what became of that; the three
ways to settle are *ack*, `Release` and `Move`. Words are fixed in ``docs/words.md``.
"""

from __future__ import annotations

from tidewire.model.brokers import (
    Act,
    Browsed,
    Capabilities,
    Change,
    Found,
    GroupInfo,
    GroupSpec,
    Standing,
    Stats,
    TopicInfo,
    TopicSpec,
)
from tidewire.model.messages import (
    ZERO,
    Address,
    DeadChannel,
    Delivery,
    Envelope,
    InboxChannel,
    LaneEvent,
    Message,
    Subscription,
    Topic,
)
from tidewire.model.outcomes import (
    DeadLetter,
    Handled,
    Move,
    Outcome,
    Reason,
    Receipt,
    Release,
    RetryLater,
    Settlement,
    Unavailable,
)
from tidewire.model.records import (
    Fact,
    Failure,
    Guard,
    Held,
    InboxState,
    Mark,
    OutboxState,
    Pending,
    Stuck,
)

__all__ = [
    "ZERO",
    "Act",
    "Address",
    "Browsed",
    "Capabilities",
    "Change",
    "DeadChannel",
    "DeadLetter",
    "Delivery",
    "Envelope",
    "Fact",
    "Failure",
    "Found",
    "GroupInfo",
    "GroupSpec",
    "Guard",
    "Handled",
    "Held",
    "InboxChannel",
    "InboxState",
    "LaneEvent",
    "Mark",
    "Message",
    "Move",
    "OutboxState",
    "Outcome",
    "Pending",
    "Reason",
    "Receipt",
    "Release",
    "RetryLater",
    "Settlement",
    "Standing",
    "Stats",
    "Stuck",
    "Subscription",
    "Topic",
    "TopicInfo",
    "TopicSpec",
    "Unavailable",
]
