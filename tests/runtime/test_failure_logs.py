"""What the log says of a failure: enough to find the event and the line of code, and nothing of the payload."""

from __future__ import annotations

import asyncio
import logging
from datetime import timedelta

import pytest
from runtime_world import Opened, OrderPlaced

from tidewire import Retry, Service

SECRET = "4111-1111-1111-1111"


def failing() -> Service:
    """Return a service whose handler fails twice and is given up."""
    service = Service("billing")

    @service.on(OrderPlaced, retry=Retry(attempts=2, first_delay=timedelta(milliseconds=5)))
    async def charge(order: OrderPlaced) -> None:
        raise LookupError(f"no account for {order.note}")

    return service


def test_a_failure_names_the_event_and_the_line(opened: Opened, caplog: pytest.LogCaptureFixture) -> None:
    """Each failed attempt and the end of them are one record each, with the place that raised."""

    async def scenario() -> None:
        async with opened() as world, world.running(failing()) as app:
            await app.publisher.publish(OrderPlaced("1", note=SECRET), id="e1")
            await world.until(lambda: world.dead("shop.order", "billing"))

    with caplog.at_level(logging.WARNING, logger="tidewire.consumer"):
        asyncio.run(scenario())
    named = {"event_id": "e1", "event_type": "shop.order.placed", "topic": "shop.order", "group": "billing"}
    told = [(vars(record), record.getMessage()) for record in caplog.records if record.name == "tidewire.consumer"]
    assert ["tidewire.consumer.retry", "tidewire.consumer.dead_letter"] == [message for _, message in told]
    for attempt, (fields, _) in enumerate(told, 1):
        assert named == {name: fields[name] for name in named}
        assert attempt == fields["attempt"]
        assert "LookupError" == fields["error_type"]
        assert fields["raised_at"].startswith("tests/runtime/test_failure_logs.py:")
        assert fields["raised_at"].endswith(" in charge")
        assert SECRET not in repr(fields)
