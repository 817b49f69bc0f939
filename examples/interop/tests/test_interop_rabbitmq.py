"""Plain pika programs beside the service, as real processes on a real RabbitMQ."""

from __future__ import annotations

import sys
from pathlib import Path

from interop_programs import HOME, TIDEWIRE, Day, books, by_order, environment_of, letters, ran, started

PRODUCER, CONSUMER = str(HOME / "pika_producer.py"), str(HOME / "pika_consumer.py")


def test_pika_writes_what_we_read_and_reads_what_we_write(rabbitmq_url: str, tmp_path: Path) -> None:
    """Plain JSON by basic_publish takes effect once and in order by key, what is published twice included; what has no
    id is a dead letter that says so; and a plain consumer with a queue of its own reads our events."""
    day, environment = Day(), environment_of(rabbitmq_url, tmp_path)
    ran(environment, *TIDEWIRE, "topics", "till.payment", "--create")
    with (
        started(environment, *TIDEWIRE, "run", "tills.billing:billing", hear_errors=True) as service,
        started({}, sys.executable, CONSUMER, rabbitmq_url, f"display-{day.orders[0]}", hear_errors=True) as display,
    ):
        display.wait_for("ready")
        service.wait_for("tidewire.service.started")
        ran({}, sys.executable, PRODUCER, rabbitmq_url, given=day.as_lines)
        payments = day.seen_by(display)
    assert day.expected == by_order(books(tmp_path / "billing.db"))
    assert day.expected == by_order([payment["data"] for payment in payments])
    assert {("till.payment.taken", "billing")} == {(payment["type"], payment["source"]) for payment in payments}
    assert [payment["data"]["order_id"] for payment in payments] == [payment["partitionkey"] for payment in payments]
    assert len(payments) == len({payment["id"] for payment in payments})
    assert [("undecodable", "it has no id: the header message-id is not there")] == letters(environment, day)
