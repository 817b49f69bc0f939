"""The embedded broker, ``sqlite:///path``: nothing to install, several processes on one file, every promise kept."""

from tidewire.transports.sqlite.transport import SqliteTransport, open_sqlite_transport

__all__ = ["SqliteTransport", "open_sqlite_transport"]
