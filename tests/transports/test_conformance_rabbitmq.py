"""The RabbitMQ transport passes the conformance suite on a real broker; its clients die in processes of their own."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncGenerator, Callable, Iterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from pathlib import Path
from typing import ClassVar

import aiormq
import pytest
from kafka_proxy import Proxy, proxy

from tidewire.protocols import Transport
from tidewire.testing.servers.processes import free_port
from tidewire.testing.servers.rabbitmq import LIMITED, RabbitServer
from tidewire.testing.transports import Faults, Site, TransportConformance, spawn_client
from tidewire.transports.rabbitmq import open_rabbit_transport

OPENER = "tidewire.transports.rabbitmq:open_rabbit_transport"


async def delete_all(server: RabbitServer, topic: str) -> None:
    """Delete a topic's exchange and all its queues behind everybody's back."""
    queues = await asyncio.to_thread(server.control, "list_queues", "name", "--no-table-headers")
    connection = await aiormq.connect(server.url)
    channel = await connection.channel()
    for queue in queues.split():
        if queue.startswith(topic):
            await channel.queue_delete(queue)
    await channel.exchange_delete(topic)
    await connection.close()


class TestRabbitTransport(TransportConformance):
    """What RabbitMQ promises through its adapter, it keeps."""

    server: RabbitServer
    proxy: Proxy
    proxy_port: int
    options: ClassVar[str] = "timeout=6"

    @pytest.fixture(autouse=True, scope="class")
    @classmethod
    def _proxied(cls, request: pytest.FixtureRequest) -> Iterator[None]:
        if os.environ.get("CI"):
            pytest.skip("not proven: the RabbitMQ suite takes minutes, and CI leaves it out; make test runs it")
        server: RabbitServer = request.getfixturevalue("rabbitmq_server")
        cls.server, cls.proxy_port = server, free_port()
        # It may make the queue by which a member is there while it is there, and nothing else.
        server.control("set_permissions", LIMITED[0], r"^tidewire\.MEMBER\.", ".*", ".*")
        with proxy(cls.proxy_port, server.port) as cls.proxy:
            yield

    def site(self, directory: Path) -> Site:
        """Return the broker that all cases share, behind a proxy."""
        server = self.server
        url = f"{server.url_of('worker', server.password, port=self.proxy_port)}?{self.options}"

        async def restart() -> None:
            server.kill()
            server.start()  # in this thread: the broker ends with the one that started it

        @asynccontextmanager
        async def outage() -> AsyncGenerator[None]:
            server.kill()
            try:
                yield
            finally:
                server.start()

        @asynccontextmanager
        async def hang() -> AsyncGenerator[None]:
            server.pause()
            try:
                yield
            finally:
                server.resume()

        async def cut() -> None:
            self.proxy.say("cut")

        async def destroy(topic: str) -> None:
            await delete_all(server, topic)

        def user(name: str, password: str) -> Callable[[], AbstractAsyncContextManager[Transport]]:
            return lambda: open_rabbit_transport(f"{server.url_of(name, password)}?{self.options}")

        return Site(
            open=lambda: open_rabbit_transport(url),
            faults=Faults(
                spawn=lambda: spawn_client(OPENER, url),
                restart=restart,
                outage=outage,
                hang=hang,
                cut=cut,
                destroy=destroy,
                stranger=user("worker", "wrong"),
                limited=user(*LIMITED),
            ),
            patience=20.0,
        )
