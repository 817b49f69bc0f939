"""Inventory: moves the goods of a paid order off the shelf, once."""

from __future__ import annotations

from tidewire import Context, Service
from tidewire.cli.demo.shop.events import PaymentTaken, StockMoved
from tidewire.cli.demo.shop.parts import PATIENT, outside_fails
from tidewire.cli.demo.shop.tables import in_both

inventory = Service("inventory")

TABLES = in_both(
    """CREATE TABLE IF NOT EXISTS moves (
        id {counted}, order_id TEXT NOT NULL, customer_id TEXT NOT NULL, number {whole} NOT NULL,
        pieces TEXT NOT NULL)""",
    # Pieces are texts: quantities of 64 bits add up to more than a column of numbers holds.
    "CREATE TABLE IF NOT EXISTS stock (sku TEXT PRIMARY KEY, moved TEXT NOT NULL)",
)


@inventory.on(PaymentTaken, retry=PATIENT)
async def move(payment: PaymentTaken, context: Context) -> StockMoved:
    """Count the pieces off the shelf; the failing scanner rolls everything back."""
    for line in sorted(payment.lines, key=lambda line: line.sku):  # one order everywhere: nobody waits in a circle
        # Touched first: whoever else moves this article waits from here to our commit.
        moved = await context.tx.fetchval(
            "INSERT INTO stock (sku, moved) VALUES ($1, '0') ON CONFLICT (sku) DO UPDATE SET moved = stock.moved "
            "RETURNING moved",
            (line.sku,),
        )
        await context.tx.execute(
            "UPDATE stock SET moved = $1 WHERE sku = $2", (str(int(moved) + line.quantity), line.sku)
        )
    await context.tx.execute(
        "INSERT INTO moves (order_id, customer_id, number, pieces) VALUES ($1, $2, $3, $4)",
        (payment.order_id, payment.customer_id, payment.number, str(sum(line.quantity for line in payment.lines))),
    )
    outside_fails("the scanner", payment.order_id, context.attempt)
    return StockMoved(payment.order_id, payment.customer_id, payment.number, payment.email)
