"""All services of the shop by name, with the tables each one owns."""

from __future__ import annotations

from tidewire import Service
from tidewire.cli.demo.shop import inventory, notifications, orders, payments, shipping
from tidewire.cli.demo.shop.tables import Tables

__all__ = ["SERVICES", "TABLES"]

SERVICES: dict[str, Service] = {
    "orders": orders.orders,
    "payments": payments.payments,
    "inventory": inventory.inventory,
    "shipping": shipping.shipping,
    "notifications": notifications.notifications,
}
TABLES: dict[str, Tables] = {
    "orders": orders.TABLES,
    "payments": payments.TABLES,
    "inventory": inventory.TABLES,
    "shipping": shipping.TABLES,
    "notifications": notifications.TABLES,
}
