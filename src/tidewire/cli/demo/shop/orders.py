"""Orders: takes what comes through the door. It handles no events; its door writes orders and publishes them."""

from __future__ import annotations

from tidewire import Service

orders = Service("orders")

TABLES = (
    """CREATE TABLE IF NOT EXISTS orders (
        number INTEGER PRIMARY KEY AUTOINCREMENT, order_id TEXT NOT NULL UNIQUE, customer_id TEXT NOT NULL,
        digest BLOB NOT NULL, line TEXT NOT NULL, content TEXT NOT NULL)""",
    # What became of each line that was handed in: the first verdict stands, so that handing in again changes nothing.
    "CREATE TABLE IF NOT EXISTS lines (line TEXT PRIMARY KEY, verdict TEXT NOT NULL, reason TEXT NOT NULL)",
)
