"""The memory transport passes the conformance suite."""

from __future__ import annotations

from pathlib import Path

from memory_site import memory_site

from tidewire.testing.transports import Site, TransportConformance


class TestMemoryTransport(TransportConformance):
    """What the reference transport promises, it keeps."""

    def site(self, directory: Path) -> Site:
        """Return a broker of the test's own."""
        return memory_site()
