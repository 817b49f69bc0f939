"""The PostgreSQL broker, ``postgresql://…``: the embedded broker's log, shared by the processes of many machines."""

from tidewire.transports.postgres.transport import PostgresTransport, open_postgres_transport

__all__ = ["PostgresTransport", "open_postgres_transport"]
