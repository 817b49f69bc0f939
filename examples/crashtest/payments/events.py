"""What comes in, and what goes out."""

from __future__ import annotations

from tidewire import event


@event("shop.order.placed", key="order_id")
class OrderPlaced:
    """A customer has ordered."""

    order_id: str
    cents: int


@event("shop.payment.taken", key="order_id")
class PaymentTaken:
    """The bank has taken the money."""

    order_id: str
    receipt: str
