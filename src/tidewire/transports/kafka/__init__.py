"""Transport ``kafka://``: Apache Kafka 2.8 to 4.x."""

from __future__ import annotations

from tidewire.transports.kafka.transport import KafkaTransport, open_kafka_transport

__all__ = ["KafkaTransport", "open_kafka_transport"]
