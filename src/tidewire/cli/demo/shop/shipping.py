"""Shipping: books a parcel for what has left the shelf."""

from __future__ import annotations

from tidewire import Context, Service
from tidewire.cli.demo.shop.events import ParcelShipped, StockMoved
from tidewire.cli.demo.shop.parts import PATIENT, outside_fails
from tidewire.cli.demo.shop.tables import in_both

shipping = Service("shipping")

TABLES = in_both(
    """CREATE TABLE IF NOT EXISTS parcels (
        id {counted}, order_id TEXT NOT NULL, customer_id TEXT NOT NULL, number {whole} NOT NULL)""",
)


@shipping.on(StockMoved, retry=PATIENT)
async def ship(moved: StockMoved, context: Context) -> None:
    """Publish first, then ask the carrier: when it fails, neither the parcel nor the event has ever been."""
    await context.tx.execute(
        "INSERT INTO parcels (order_id, customer_id, number) VALUES ($1, $2, $3)",
        (moved.order_id, moved.customer_id, moved.number),
    )
    await context.publish(ParcelShipped(moved.order_id, moved.customer_id, moved.number, moved.email))
    outside_fails("the carrier", moved.order_id, context.attempt)
