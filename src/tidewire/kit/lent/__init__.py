"""Pools of other libraries that lend their transactions to units: SQLAlchemy's engines and the like."""

from __future__ import annotations

from tidewire.kit.lent.kinds import lender_of
from tidewire.kit.lent.seam import Lender, Lent, Statements, Step

__all__ = ["Lender", "Lent", "Statements", "Step", "lender_of"]
