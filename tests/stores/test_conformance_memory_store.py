"""The memory store passes the conformance suite."""

from __future__ import annotations

from pathlib import Path

from store_sites import memory_site

from tidewire.testing.stores import Site, StoreConformance


class TestMemoryStore(StoreConformance):
    """What the reference store promises, it keeps."""

    def site(self, directory: Path) -> Site:
        """Return a store of the case's own."""
        return memory_site()
