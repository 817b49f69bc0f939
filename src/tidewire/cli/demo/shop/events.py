"""The shop's contracts. Every event is keyed by the customer, so that each customer's orders keep their order."""

from __future__ import annotations

from decimal import Decimal

import msgspec

from tidewire import event


class Line(msgspec.Struct, frozen=True):
    """One line of an order."""

    sku: str
    quantity: int
    unit_price: Decimal


@event("shop.order.accepted", key="customer_id")
class OrderAccepted:
    """An order came in and was found to be one; *number* counts the accepted orders of the shop."""

    order_id: str
    customer_id: str
    number: int
    email: str
    currency: str
    lines: list[Line]
    total: Decimal


@event("shop.payment.taken", key="customer_id")
class PaymentTaken:
    """The order is paid."""

    order_id: str
    customer_id: str
    number: int
    email: str
    lines: list[Line]


@event("shop.payment.refused", key="customer_id")
class PaymentRefused:
    """The order cannot be paid, for *reason*; it ends here."""

    order_id: str
    customer_id: str
    number: int
    email: str
    reason: str


@event("shop.stock.moved", key="customer_id")
class StockMoved:
    """The goods of a paid order have left the shelf."""

    order_id: str
    customer_id: str
    number: int
    email: str


@event("shop.parcel.shipped", key="customer_id")
class ParcelShipped:
    """The parcel is on its way."""

    order_id: str
    customer_id: str
    number: int
    email: str
