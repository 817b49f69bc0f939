"""The events: orders come from foreign programs, payments are ours."""

from __future__ import annotations

from tidewire import event


@event("till.order.placed", key="order_id")
class OrderPlaced:
    """What a till says, as plain JSON."""

    order_id: str
    line: int
    cents: int


@event("till.payment.taken", key="order_id")
class PaymentTaken:
    """What we say, as a CloudEvent."""

    order_id: str
    line: int
    cents: int
