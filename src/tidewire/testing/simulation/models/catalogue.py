"""Which models there are, by the name of their ground."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from tidewire.protocols import Clock
from tidewire.testing.simulation.models.amqp.transport import Amqp
from tidewire.testing.simulation.models.jetstream.adapter import JetStream
from tidewire.testing.simulation.models.kafka.adapter import Kafka
from tidewire.testing.simulation.models.links import Server
from tidewire.testing.simulation.models.sqs.transport import Sqs, SqsStandard

__all__ = ["MODELS", "UNORDERED"]

MODELS: Mapping[str, Callable[[Clock], Server]] = {
    "kafka": Kafka,
    "amqp": Amqp,
    "jetstream": JetStream,
    "sqs": Sqs,
}
UNORDERED: Mapping[str, Callable[[Clock], Server]] = {"sqs-standard": SqsStandard}
"""Models that keep no order: the suite knows them, the scenario's services do not start on them."""
