"""A directory of files as a broker for Tidewire: an example of an adapter that somebody else writes."""

from __future__ import annotations

from directory_broker.transport import DirectoryTransport, open_directory_transport, open_url

__all__ = ["DirectoryTransport", "open_directory_transport", "open_url"]
