"""The shop's own tables."""

from __future__ import annotations

from decimal import Decimal

from django.db import models


class Order(models.Model):
    """An order that was taken."""

    order_id: models.CharField[str, str] = models.CharField(max_length=40, primary_key=True)
    total: models.DecimalField[Decimal, Decimal] = models.DecimalField(max_digits=12, decimal_places=2)


class Payment(models.Model):
    """An order that was paid; a second payment of one order would be a second row."""

    order_id: models.CharField[str, str] = models.CharField(max_length=40)
    total: models.DecimalField[Decimal, Decimal] = models.DecimalField(max_digits=12, decimal_places=2)
