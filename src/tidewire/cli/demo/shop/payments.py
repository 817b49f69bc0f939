"""Payments: takes the money, or refuses by the rules of the house."""

from __future__ import annotations

from decimal import Decimal

from tidewire import Context, Service
from tidewire.cli.demo.shop.events import OrderAccepted, PaymentRefused, PaymentTaken
from tidewire.cli.demo.shop.parts import PATIENT, outside_fails
from tidewire.cli.demo.shop.tables import in_both

payments = Service("payments")

TABLES = in_both(
    """CREATE TABLE IF NOT EXISTS payments (
        id {counted}, order_id TEXT NOT NULL, customer_id TEXT NOT NULL, number {whole} NOT NULL,
        amount TEXT NOT NULL, refused TEXT NOT NULL)""",
)
LIMIT = Decimal(5_000)


@payments.on(OrderAccepted, retry=PATIENT)
async def charge(order: OrderAccepted, context: Context) -> PaymentTaken | PaymentRefused:
    """Charge the order once: the row and the outgoing event commit together, or not at all."""
    outside_fails("the bank", order.order_id, context.attempt)
    refused = why_refused(order)
    await context.tx.execute(
        "INSERT INTO payments (order_id, customer_id, number, amount, refused) VALUES ($1, $2, $3, $4, $5)",
        (order.order_id, order.customer_id, order.number, str(order.total), refused),
    )
    if refused:
        return PaymentRefused(order.order_id, order.customer_id, order.number, order.email, refused)
    return PaymentTaken(order.order_id, order.customer_id, order.number, order.email, order.lines)


def why_refused(order: OrderAccepted) -> str:
    """The business rule: no reason means that it can be paid."""
    if order.total > LIMIT:
        return f"above the limit of {LIMIT}"
    if order.email.endswith("@blocked.example"):
        return "the customer's card is blocked"
    return ""
