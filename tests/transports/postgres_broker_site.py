"""A PostgreSQL broker as the conformance suite wants it: a schema of its own, cut connections, clients that die."""

from __future__ import annotations

import asyncio
import itertools
import os
import signal
from collections.abc import AsyncGenerator, Iterator
from contextlib import asynccontextmanager, contextmanager, suppress
from datetime import timedelta
from pathlib import Path
from urllib.parse import urlsplit

import psycopg
from postgres_server import PostgresServer

from tidewire.kit.postgres.place import postgres_place
from tidewire.testing.transports import Faults, Site, spawn_client
from tidewire.transports.postgres import PostgresTransport, open_postgres_transport
from tidewire.transports.postgres.schema import turn_key
from tidewire.transports.postgres.session import Limits

OPENER = "tidewire.transports.postgres:open_postgres_transport"
LIMITS = Limits(turn=1.5, statement=2.0, idle=1.0, answer=2.5, doubt=1.5)
GRANTS = (
    "CREATE ROLE USER LOGIN PASSWORD 'limited'",
    "GRANT USAGE ON SCHEMA SCHEMA_NAME TO USER",
    "GRANT SELECT, INSERT, UPDATE, DELETE ON ALL TABLES IN SCHEMA SCHEMA_NAME TO USER",
    "GRANT USAGE ON ALL SEQUENCES IN SCHEMA SCHEMA_NAME TO USER",
)
_numbers = itertools.count(1)


@contextmanager
def broker_on(server: PostgresServer) -> Iterator[PostgresSite]:
    """Yield a broker in a schema of its own, which is dropped at the end."""
    place = PostgresSite(server, f"broker_{os.getpid()}_{next(_numbers)}")
    yield place
    with psycopg.connect(server.url, autocommit=True) as connection:
        connection.execute(f"DROP SCHEMA IF EXISTS {place.schema} CASCADE".encode())


def is_turn_free(url: str) -> bool:
    """Whether nobody is in the write turn: who is stopped there keeps it until the server ends its transaction."""
    key = turn_key(postgres_place(url)) & 0xFFFFFFFFFFFFFFFF
    with psycopg.connect(plain(url), autocommit=True) as connection:
        found = connection.execute(
            "SELECT 1 FROM pg_locks WHERE locktype = 'advisory' AND granted AND classid = %s::bigint::oid "
            "AND objid = %s::bigint::oid",
            (key >> 32, key & 0xFFFFFFFF),
        ).fetchone()
    return found is None


def plain(url: str) -> str:
    """Return *url* without what is tidewire's own in it."""
    return urlsplit(url)._replace(query="").geturl()


def cut_all(url: str) -> None:
    """End every connection of tidewire's to the server; whoever wants to may connect again."""
    with psycopg.connect(plain(url), autocommit=True) as connection:
        connection.execute(
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity "
            "WHERE application_name = 'tidewire' AND pid != pg_backend_pid()"
        )


def _freeze(server: PostgresServer, how: signal.Signals) -> None:
    """Send *how* to the server and all it has started."""
    for pid in [server.pid, *children_of(server.pid)]:
        with suppress(ProcessLookupError):
            os.kill(pid, how)


def children_of(pid: int) -> list[int]:
    """Return the pids of the processes that *pid* has started."""
    return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


class PostgresSite:
    """What can be done to a *server* of our own, and a broker on it."""

    def __init__(self, server: PostgresServer, schema: str) -> None:
        self.server = server
        self.schema = schema
        self.url = f"{server.url}?schema={schema}&connect_timeout=2"

    def site(self, *, soak: timedelta | None = None) -> Site:
        """Return a site on the broker."""
        return Site(
            open=lambda: open_postgres_transport(self.url, limits=LIMITS),
            faults=Faults(
                spawn=lambda: spawn_client(OPENER, self.url, harmless=lambda: is_turn_free(self.url)),
                restart=self.restart,
                cut=self.cut,
                hang=self.hang,
                outage=self.outage,
                stranger=self.stranger,
                limited=self.limited,
            ),
            patience=15.0,
            soak=soak,
        )

    async def restart(self) -> None:
        """Kill the server as a crash would, and start it."""
        self.server.kill()
        self.server.start()  # not in a thread: a server that is started by one ends with it

    async def cut(self) -> None:
        """End every connection of tidewire's."""
        await asyncio.to_thread(cut_all, self.url)

    @asynccontextmanager
    async def hang(self) -> AsyncGenerator[None]:
        """Stop the server's processes: it answers nobody, and no connection ends."""
        _freeze(self.server, signal.SIGSTOP)
        try:
            yield
        finally:
            _freeze(self.server, signal.SIGCONT)

    @asynccontextmanager
    async def outage(self) -> AsyncGenerator[None]:
        """There is no server."""
        self.server.kill()
        try:
            yield
        finally:
            self.server.start()

    @asynccontextmanager
    async def stranger(self) -> AsyncGenerator[PostgresTransport]:
        """A user whom the server does not let in."""
        async with open_postgres_transport(self._as("nobody", "wrong")) as transport:
            yield transport

    @asynccontextmanager
    async def limited(self) -> AsyncGenerator[PostgresTransport]:
        """A user with the grants of docs/postgresql-broker.md and no others."""
        user = f"limited_{self.schema}"
        with psycopg.connect(self.server.url, autocommit=True) as connection:
            for grant in GRANTS:
                connection.execute(grant.replace("USER", user).replace("SCHEMA_NAME", self.schema).encode())
        async with open_postgres_transport(self._as(user, "limited")) as transport:
            yield transport

    def _as(self, user: str, password: str) -> str:
        parts = urlsplit(self.url)
        return parts._replace(netloc=f"{user}:{password}@{parts.netloc.rpartition('@')[2]}").geturl()
