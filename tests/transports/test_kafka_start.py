"""What a service asks of Kafka when it starts."""

from __future__ import annotations

import asyncio
from datetime import timedelta

from tidewire.chance import UUID7Ids
from tidewire.kit.looks import topics_there
from tidewire.model import TopicSpec
from tidewire.transports.kafka import open_kafka_transport


def test_a_service_looks_at_its_own_topics_alone(kafka_url: str) -> None:
    """How its topics are kept is asked without reading those of others, of which a cluster may have thousands."""
    space = f"t{UUID7Ids().event_id()[-12:]}"
    kept = [TopicSpec(f"{space}.a", 2, timedelta(days=3)), TopicSpec(f"{space}.b", 1, None)]

    async def scenario() -> None:
        async with open_kafka_transport(kafka_url) as transport:
            await transport.provision([*kept, TopicSpec(f"{space}.c", 1)], [])
            assert kept == await topics_there(transport, [f"{space}.a", f"{space}.b", f"{space}.none"])

    asyncio.run(scenario())
