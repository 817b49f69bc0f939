"""Inventory: moves the goods of a paid order off the shelf, once."""

from __future__ import annotations

from tidewire import Context, Service
from tidewire.cli.demo.shop.events import PaymentTaken, StockMoved
from tidewire.cli.demo.shop.parts import PATIENT, outside_fails

inventory = Service("inventory")

TABLES = (
    """CREATE TABLE IF NOT EXISTS moves (
        id INTEGER PRIMARY KEY, order_id TEXT NOT NULL, customer_id TEXT NOT NULL, number INTEGER NOT NULL,
        pieces TEXT NOT NULL)""",
    # Pieces are texts: quantities of 64 bits add up to more than a column of numbers holds.
    "CREATE TABLE IF NOT EXISTS stock (sku TEXT PRIMARY KEY, moved TEXT NOT NULL)",
)


@inventory.on(PaymentTaken, retry=PATIENT)
async def move(payment: PaymentTaken, context: Context) -> StockMoved:
    """Count the pieces off the shelf; the failing scanner rolls everything back."""
    for line in payment.lines:
        moved = int(await context.tx.fetchval("SELECT moved FROM stock WHERE sku = ?", (line.sku,)) or 0)
        await context.tx.execute(
            "INSERT INTO stock (sku, moved) VALUES (?, ?) ON CONFLICT DO UPDATE SET moved = excluded.moved",
            (line.sku, str(moved + line.quantity)),
        )
    await context.tx.execute(
        "INSERT INTO moves (order_id, customer_id, number, pieces) VALUES (?, ?, ?, ?)",
        (payment.order_id, payment.customer_id, payment.number, str(sum(line.quantity for line in payment.lines))),
    )
    outside_fails("the scanner", payment.order_id, context.attempt)
    return StockMoved(payment.order_id, payment.customer_id, payment.number, payment.email)
