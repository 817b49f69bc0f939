"""Notifications: tells the customer, once; who cannot be reached is a dead letter with its reason."""

from __future__ import annotations

from tidewire import Context, Reject, Service
from tidewire.cli.demo.shop.events import ParcelShipped, PaymentRefused
from tidewire.cli.demo.shop.parts import PATIENT, outside_fails
from tidewire.cli.demo.shop.tables import in_both

notifications = Service("notifications")

TABLES = in_both(
    """CREATE TABLE IF NOT EXISTS notices (
        id {counted}, order_id TEXT NOT NULL, customer_id TEXT NOT NULL, number {whole} NOT NULL,
        kind TEXT NOT NULL)""",
)


@notifications.on(ParcelShipped, retry=PATIENT, on_dead_letter="continue")
async def tell_shipped(parcel: ParcelShipped, context: Context) -> None:
    """Write the good news."""
    await tell(parcel, "shipped", context)


@notifications.on(PaymentRefused, retry=PATIENT, on_dead_letter="continue")
async def tell_refused(refusal: PaymentRefused, context: Context) -> None:
    """Write the bad news."""
    await tell(refusal, "refused", context)


async def tell(news: ParcelShipped | PaymentRefused, kind: str, context: Context) -> None:
    """Write one notice."""
    if news.email.endswith(".invalid"):
        raise Reject(f"no mail server for {news.email.rpartition('@')[2]}")
    outside_fails("the mail server", news.order_id, context.attempt)
    await context.tx.execute(
        "INSERT INTO notices (order_id, customer_id, number, kind) VALUES ($1, $2, $3, $4)",
        (news.order_id, news.customer_id, news.number, kind),
    )
