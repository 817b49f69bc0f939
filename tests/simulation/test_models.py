"""The models of brokers pass the conformance suite: what they declare, they keep, on an ordinary event loop."""

from __future__ import annotations

from pathlib import Path

from tidewire.testing.simulation.models.sites import model_site
from tidewire.testing.transports import Site, TransportConformance


class TestKafkaModel(TransportConformance):
    """The Kafka-like model, as a transport."""

    def site(self, directory: Path) -> Site:
        """Return a server of the test's own."""
        return model_site("kafka")


class TestJetStreamModel(TransportConformance):
    """The JetStream-like model, as a transport."""

    def site(self, directory: Path) -> Site:
        """Return a server of the test's own."""
        return model_site("jetstream")
