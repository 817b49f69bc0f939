"""What happens in the shop."""

from decimal import Decimal

from tidewire import event


@event("djshop.order.placed", key="order_id")
class OrderPlaced:
    """A customer has ordered."""

    order_id: str
    total: Decimal


@event("djshop.payment.taken", key="order_id")
class PaymentTaken:
    """The order is paid."""

    order_id: str
