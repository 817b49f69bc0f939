"""The SQLite store passes the conformance suite; its writers die in processes of their own."""

from __future__ import annotations

from pathlib import Path

from store_sites import sqlite_site

from tidewire.testing.stores import Site, StoreConformance


class TestSqliteStore(StoreConformance):
    """What the store in a file promises, it keeps."""

    def site(self, directory: Path) -> Site:
        """Return a store in a file of the case's own."""
        return sqlite_site(str(directory / "store.db"))
