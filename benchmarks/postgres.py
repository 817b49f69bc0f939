"""The PostgreSQL that is measured on, and a schema of a run's own in it."""

from __future__ import annotations

from contextlib import AbstractContextManager
from functools import partial

import psycopg
from scripts.postgres_server import VARIABLE, private_server

from tidewire.testing.servers.processes import given_or

__all__ = ["emptied", "server"]


def server() -> AbstractContextManager[str]:
    """Open the server of services-up, or a private one that syncs every commit; yields its URL."""
    return given_or(VARIABLE, partial(private_server, durable=True))


def emptied(url: str) -> str:
    """Drop the schema ``bench``, and return the URL of it."""
    with psycopg.connect(url, autocommit=True) as connection:
        connection.execute("DROP SCHEMA IF EXISTS bench CASCADE")
    return f"{url}{'&' if '?' in url else '?'}schema=bench"
