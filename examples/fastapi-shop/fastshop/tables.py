"""The application's own database: its tables, its engine, its sessions."""

from __future__ import annotations

import os
from decimal import Decimal

from sqlalchemy import String
from sqlalchemy.ext.asyncio import AsyncEngine, create_async_engine
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

__all__ = ["Base", "Order", "Payment", "engine_from_environment"]


class Base(DeclarativeBase):
    """All tables of the shop."""


class Order(Base):
    """An order that was taken."""

    __tablename__ = "orders"
    order_id: Mapped[str] = mapped_column(String(40), primary_key=True)
    total: Mapped[Decimal]


class Payment(Base):
    """An order that was paid; a second payment of one order would be a second row."""

    __tablename__ = "payments"
    number: Mapped[int] = mapped_column(primary_key=True)
    order_id: Mapped[str] = mapped_column(String(40))
    total: Mapped[Decimal]


def engine_from_environment() -> AsyncEngine:
    """Return the engine for ``SHOP_DATABASE``: ``postgresql+asyncpg://…`` or ``sqlite+aiosqlite:///…``."""
    return create_async_engine(os.environ.get("SHOP_DATABASE", "sqlite+aiosqlite:///shop.db"))
