"""Which models there are, by the name of their ground."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from tidewire.protocols import Clock
from tidewire.testing.simulation.models.amqp.transport import Amqp
from tidewire.testing.simulation.models.jetstream.adapter import JetStream
from tidewire.testing.simulation.models.kafka.adapter import Kafka
from tidewire.testing.simulation.models.links import Server

__all__ = ["MODELS"]

MODELS: Mapping[str, Callable[[Clock], Server]] = {"kafka": Kafka, "amqp": Amqp, "jetstream": JetStream}
