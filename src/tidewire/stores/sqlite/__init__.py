"""The store in one SQLite file: units with group commit, inbox marks, outbox, attempts, held keys, lane epochs."""

from tidewire.stores.sqlite.store import SqliteStore, open_sqlite_store
from tidewire.stores.sqlite.unit import SqliteTx, SyncSqliteTx, Written

__all__ = ["SqliteStore", "SqliteTx", "SyncSqliteTx", "Written", "open_sqlite_store"]
