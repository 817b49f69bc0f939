"""Orders: takes what comes through the door. It handles no events; its door writes orders and publishes them."""

from __future__ import annotations

from tidewire import Service
from tidewire.cli.demo.shop.tables import in_both

orders = Service("orders")

TABLES = in_both(
    """CREATE TABLE IF NOT EXISTS orders (
        number {counted}, order_id TEXT NOT NULL UNIQUE, customer_id TEXT NOT NULL,
        digest {bytes} NOT NULL, line TEXT NOT NULL, content TEXT NOT NULL)""",
    # What became of each line that was handed in: the first verdict stands, so that handing in again changes nothing.
    "CREATE TABLE IF NOT EXISTS lines (line TEXT PRIMARY KEY, verdict TEXT NOT NULL, reason TEXT NOT NULL)",
    # One row, which whoever takes lines in holds while they do.
    "CREATE TABLE IF NOT EXISTS door (id {whole} PRIMARY KEY, calls {whole} NOT NULL)",
    "INSERT INTO door (id, calls) VALUES (1, 0) ON CONFLICT (id) DO NOTHING",
)
