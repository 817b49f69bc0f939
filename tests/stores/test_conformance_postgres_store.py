"""The PostgreSQL store passes the conformance suite on a real server; its writers die in processes of their own."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from pathlib import Path

import psycopg
import pytest
from postgres_site import postgres_site

from tidewire.testing.stores import Site, StoreConformance

_schemas = itertools.count(1)


class TestPostgresStore(StoreConformance):
    """What the store in PostgreSQL promises, it keeps."""

    @pytest.fixture(autouse=True)
    def _own_schema(self, postgresql_server: str) -> Iterator[None]:
        self._url, self._schema = postgresql_server, f"suite_{next(_schemas)}"
        yield
        with psycopg.connect(postgresql_server, autocommit=True) as connection:
            connection.execute(f"DROP SCHEMA IF EXISTS {self._schema} CASCADE".encode())

    def site(self, directory: Path) -> Site:
        """Return a store in a schema of the case's own."""
        return postgres_site(self._url, self._schema)
