"""The store in PostgreSQL: units on connections of their own, inbox marks, outbox, attempts, held keys, lane epochs."""

from tidewire.stores.postgres.rows import Row
from tidewire.stores.postgres.store import PostgresStore, open_postgres_store
from tidewire.stores.postgres.tx import PostgresTx, SyncPostgresTx

__all__ = ["PostgresStore", "PostgresTx", "Row", "SyncPostgresTx", "open_postgres_store"]
