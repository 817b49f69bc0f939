"""Where the shop stands: its broker, and a database for each service. Files of its own, or schemas on a server.

``postgresql://`` without a host asks for a private PostgreSQL, which the demo starts, troubles under ``--chaos``, and
removes. On a server of somebody else each service has a schema of its own, which goes away with the demo.
"""

from __future__ import annotations

import asyncio
import sys
from collections.abc import AsyncGenerator, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any, Protocol
from urllib.parse import urlsplit

from tidewire.chance import UUID7Ids
from tidewire.cli.demo.shop.services import SERVICES, TABLES
from tidewire.config import masked, open_store, open_transport
from tidewire.errors import ConfigurationError, StoreError
from tidewire.protocols import Store
from tidewire.runtime.producer import transaction

__all__ = ["Premises", "opened_premises"]

_SERVER = "postgresql"


class Server(Protocol):
    """A server that the demo has started."""

    @property
    def url(self) -> str:
        """Where it is, with the right to do everything."""
        ...

    def kill(self) -> None:
        """End it as a crash would."""
        ...

    def start(self) -> None:
        """Start it, again too."""
        ...


class Premises:
    """A shop without its people. *broker* and *stores* are URLs; *server* is the demo's own, if it has one."""

    def __init__(self, broker: str, stores: Mapping[str, str], server: Server | None) -> None:
        self.broker = broker
        self.stores = stores
        self.server = server
        self._opened: dict[str, Store] = {}

    @asynccontextmanager
    async def opened(self) -> AsyncGenerator[Any]:
        """Open every database, make the services' tables, and yield the broker's transport."""
        async with AsyncExitStack() as stack:
            transport = await stack.enter_async_context(open_transport(self.broker))
            for name, url in self.stores.items():
                store = await stack.enter_async_context(open_store(url, provision=True))
                self._opened[name] = store
                async with transaction(store) as tx:
                    for table in TABLES[name][urlsplit(url).scheme]:
                        await tx.execute(table)
            yield transport

    async def rows(self, queries: Mapping[str, tuple[str, str]]) -> Mapping[str, Sequence[Any]]:
        """Answer *queries*, each of one service's database."""
        found: dict[str, Sequence[Any]] = {}
        for name, (service, sql) in queries.items():
            async with transaction(self._opened[service]) as tx:
                found[name] = await tx.fetchall(sql)
        return found

    async def pending(self) -> list[int]:
        """Return how many rows wait in the outbox of each service."""
        return [(await store.outbox.count())[0] for store in self._opened.values()]

    async def trouble(self) -> bool:
        """Kill the demo's own server and start it again; False where it has none."""
        if self.server is None:
            return False
        await asyncio.to_thread(self.server.kill)
        await asyncio.to_thread(self.server.start)
        return True


@asynccontextmanager
async def opened_premises(directory: Path, *, broker: str, store: str) -> AsyncGenerator[Premises]:
    """Yield where the shop stands, and clear it away: *broker* and *store* are URLs, or nothing for files.

    Raises:
        ConfigurationError: what the URL names the shop cannot stand on, or a private server cannot be had.
        StoreUnavailable, TransportUnavailable: the server cannot be reached.
    """
    if store and urlsplit(store).scheme != _SERVER:
        raise ConfigurationError(
            f"--store {masked(store)}: the services can keep their books in files of their own, or in PostgreSQL",
            hint="leave --store out, or give postgresql://user@host/database",
        )
    async with AsyncExitStack() as stack:
        server: Server | None = None
        if _is_bare(broker) or _is_bare(store):
            server = await stack.enter_async_context(_private_server())
            broker, store = (server.url if _is_bare(url) else url for url in (broker, store))
        run = f"demo_{UUID7Ids().event_id()[-8:]}"
        stores = {
            name: _placed(store, f"{run}_{name}") if store else f"sqlite:///{directory / name}.db" for name in SERVICES
        }
        if urlsplit(broker).scheme == _SERVER:
            broker = _placed(broker, f"{run}_broker")
        if server is None:
            stack.push_async_callback(_clear_away, [url for url in (broker, *stores.values()) if run in url])
        yield Premises(broker or f"sqlite:///{directory / 'broker.db'}", stores, server)


def _is_bare(url: str) -> bool:
    return url.rstrip("/") == f"{_SERVER}:"


def _placed(url: str, schema: str) -> str:
    """Return *url* with a schema of its own, for our tables and those of the services."""
    return f"{url}{'&' if urlsplit(url).query else '?'}schema={schema}&options=-csearch_path%3D{schema}"


async def _clear_away(urls: Sequence[str]) -> None:
    """Drop the schemas at *urls*, or say that they are still there."""
    if not urls:
        return
    from tidewire.kit.postgres.place import postgres_place
    from tidewire.kit.postgres.schemas import drop_schema

    for url in urls:
        try:
            await drop_schema(postgres_place(url))
        except StoreError as error:
            print(f"a schema of the demo is still there: {error}", file=sys.stderr)


@asynccontextmanager
async def _private_server() -> AsyncGenerator[Server]:
    from tidewire.testing.servers.postgresql import NoServer, private_server

    async with AsyncExitStack() as stack:
        try:
            yield await asyncio.to_thread(stack.enter_context, private_server())
        except NoServer as error:
            raise ConfigurationError(
                f"the demo cannot start a PostgreSQL of its own: {error}",
                hint="install it, or name a server: --store postgresql://user@host/database",
            ) from error
