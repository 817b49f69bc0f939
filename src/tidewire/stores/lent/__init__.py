"""Stores whose units run on the user's own pool: the rest of them is as it was."""

from __future__ import annotations

from tidewire.stores.lent.opening import open_lent_store
from tidewire.stores.lent.store import LentStore

__all__ = ["LentStore", "open_lent_store"]
