"""The PostgreSQL that is measured on, and a schema of a run's own in it."""

from __future__ import annotations

from collections.abc import Generator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from urllib.parse import quote, urlsplit

import psycopg
from scripts.postgres_server import VARIABLE, private_server

from tidewire.testing.servers.processes import given_or

__all__ = ["emptied", "server"]


@contextmanager
def server() -> Generator[str]:
    """Open the server of services-up, or a private one that syncs every commit; yields its URL, by its Unix socket
    where it has one on this machine."""
    with given_or(VARIABLE, partial(private_server, durable=True)) as url:
        yield _by_socket(url)


def _by_socket(url: str) -> str:
    with psycopg.connect(url) as connection:
        asked = "SELECT current_setting('unix_socket_directories'), current_setting('port')"
        folders, port = connection.execute(asked).fetchone() or ("", "")
    parts = urlsplit(url)
    for folder in folders.split(","):
        if parts.hostname in ("127.0.0.1", "localhost") and Path(folder.strip(), f".s.PGSQL.{port}").is_socket():
            user = parts.netloc.rpartition("@")[0]
            return f"postgresql://{user}@{parts.path}?host={quote(folder.strip(), safe='')}&port={port}"
    return url


def emptied(url: str) -> str:
    """Drop the schema ``bench``, and return the URL of it."""
    with psycopg.connect(url, autocommit=True) as connection:
        connection.execute("DROP SCHEMA IF EXISTS bench CASCADE")
    return f"{url}{'&' if '?' in url else '?'}schema=bench"
