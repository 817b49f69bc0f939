"""Where the shop stands: its broker, and a database for each service. Files of its own, or what servers hold.

``postgresql://``, ``kafka://`` or ``amqp://`` without a host asks for a private server, which the demo starts,
troubles under ``--chaos``, and removes. On a PostgreSQL of somebody else each service has a schema of its own, which
goes away with the demo; on another broker of somebody else the shop's topics must not be there yet, and stay.
"""

from __future__ import annotations

import asyncio
import sys
from collections.abc import AsyncGenerator, Mapping, Sequence
from contextlib import AbstractContextManager, AsyncExitStack, asynccontextmanager
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

_POSTGRESQL = "postgresql"
_NAMES = {_POSTGRESQL: "PostgreSQL", "kafka": "Apache Kafka", "amqp": "RabbitMQ"}
"""What the demo can start for itself, by the scheme of its URL."""


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
    """A shop without its people. *broker* and *stores* are URLs; *servers* are the demo's own."""

    def __init__(self, broker: str, stores: Mapping[str, str], servers: Sequence[Server]) -> None:
        self.broker = broker
        self.stores = stores
        self.servers = servers
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

    async def trouble(self) -> int:
        """Kill each of the demo's own servers and start it again; say how many there are."""
        for server in self.servers:
            await asyncio.to_thread(server.kill)
            await asyncio.to_thread(server.start)
        return len(self.servers)


@asynccontextmanager
async def opened_premises(directory: Path, *, broker: str, store: str) -> AsyncGenerator[Premises]:
    """Yield where the shop stands, and clear it away: *broker* and *store* are URLs, or nothing for files.

    Raises:
        ConfigurationError: what the URL names the shop cannot stand on, or a private server cannot be had.
        StoreUnavailable, TransportUnavailable: the server cannot be reached.
    """
    if store and urlsplit(store).scheme != _POSTGRESQL:
        raise ConfigurationError(
            f"--store {masked(store)}: the services can keep their books in files of their own, or in PostgreSQL",
            hint="leave --store out, or give postgresql://user@host/database",
        )
    async with AsyncExitStack() as stack:
        own = {
            scheme: await stack.enter_async_context(_private_server(scheme))
            for scheme in sorted({urlsplit(url).scheme for url in (broker, store) if _is_bare(url)})
        }
        broker, store = (_at(own, url) if _is_bare(url) else url for url in (broker, store))
        run = f"demo_{UUID7Ids().event_id()[-8:]}"
        stores = {
            name: _placed(store, f"{run}_{name}") if store else f"sqlite:///{directory / name}.db" for name in SERVICES
        }
        if urlsplit(broker).scheme == _POSTGRESQL:
            broker = _placed(broker, f"{run}_broker")
        if _POSTGRESQL not in own:
            stack.push_async_callback(_clear_away, [url for url in (broker, *stores.values()) if run in url])
        yield Premises(broker or f"sqlite:///{directory / 'broker.db'}", stores, list(own.values()))


def _at(own: Mapping[str, Server], url: str) -> str:
    scheme = urlsplit(url).scheme
    # A small machine takes its time to start a broker anew, and until then nothing is in doubt.
    return own[scheme].url if scheme == _POSTGRESQL else f"{own[scheme].url}?timeout=90"


def _is_bare(url: str) -> bool:
    return any(url.rstrip("/") == f"{scheme}:" for scheme in _NAMES)


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
async def _private_server(scheme: str) -> AsyncGenerator[Server]:
    from tidewire.testing.servers.processes import NoServer

    async with AsyncExitStack() as stack:
        try:
            # Linux ends the server with the thread that starts it: one of the loop's pool lasts until the demo ends.
            yield await asyncio.to_thread(stack.enter_context, _server_of(scheme))
        except NoServer as error:
            raise ConfigurationError(
                f"the demo cannot start {_NAMES[scheme]} for itself: {error}",
                hint=f"install what is missing, or name a server: {scheme}://host",
            ) from error


def _server_of(scheme: str) -> AbstractContextManager[Server]:
    if scheme == _POSTGRESQL:
        from tidewire.testing.servers.postgresql import private_server

        return private_server()
    if scheme == "kafka":
        from tidewire.testing.servers.kafka import private_kafka

        return private_kafka()
    from tidewire.testing.servers.rabbitmq import private_rabbit

    return private_rabbit()
