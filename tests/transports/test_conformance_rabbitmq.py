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

from tidewire.model import InboxChannel, Topic
from tidewire.protocols import Transport
from tidewire.testing.servers.processes import free_port
from tidewire.testing.servers.rabbitmq import LIMITED, RabbitServer
from tidewire.testing.transports import Faults, Site, TransportConformance, spawn_client
from tidewire.transports.rabbitmq import open_rabbit_transport
from tidewire.transports.rabbitmq.names import dead_queue, inbox_queue, lane_queue, tier_of, token_queue

OPENER = "tidewire.transports.rabbitmq:open_rabbit_transport"


async def sweep(server: RabbitServer, swept: set[str]) -> None:
    """Delete the queues of topics that were made since: after thousands of them a restart would take minutes."""
    async with open_rabbit_transport(server.url) as transport:
        await transport.topics()
        groups = [pair for pair in transport._catalogue.groups if pair[0] not in swept]
        topics, tiers = transport._catalogue.topics, transport._catalogue.tiers
    connection = await aiormq.connect(server.url)
    channel = await connection.channel()
    for topic, group in groups:
        swept.add(topic)
        tos: list[Topic | InboxChannel] = [Topic(topic), InboxChannel(topic, group)]
        names = [dead_queue(topic, group)]
        names += [name(topic, group, number) for name in (lane_queue, inbox_queue, token_queue)
                  for number in range(topics[topic].lanes)]  # fmt: skip
        names += [tier_of(to, tier) for to in tos for tier in tiers.get((topic, getattr(to, "group", "")), ())]
        for name in names:
            await channel.queue_delete(name)
    await connection.close()


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
    swept: ClassVar[set[str]] = set()

    @pytest.fixture(autouse=True, scope="class")
    @classmethod
    def _proxied(cls, request: pytest.FixtureRequest) -> Iterator[None]:
        if os.environ.get("CI"):
            pytest.skip("not proven: the RabbitMQ suite takes minutes, and CI leaves it out; make test runs it")
        server: RabbitServer = request.getfixturevalue("rabbitmq_server")
        cls.server, cls.proxy_port = server, free_port()
        with proxy(cls.proxy_port, server.port) as cls.proxy:
            yield

    @pytest.fixture(autouse=True)
    def _swept(self) -> Iterator[None]:
        yield
        asyncio.run(sweep(self.server, self.swept))

    def site(self, directory: Path) -> Site:
        """Return the broker that all cases share, behind a proxy."""
        server = self.server
        url = f"{server.url_of('worker', server.password, port=self.proxy_port)}?{self.options}"

        def crash() -> None:
            # RabbitMQ 3.10 writes the names of new queues down a while after it has made them: docs/rabbitmq.md.
            server.control("eval", "[dets:sync(Table) || Table <- dets:all()].")
            server.kill()

        async def restart() -> None:
            crash()
            server.start()  # in this thread: the broker ends with the one that started it

        @asynccontextmanager
        async def outage() -> AsyncGenerator[None]:
            crash()
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

        def limited() -> AbstractAsyncContextManager[Transport]:
            # It may make the queue by which a member is there while it is there, and nothing else. A broker that is
            # started anew has its rights from its definitions.
            server.control("set_permissions", LIMITED[0], r"^tidewire\.MEMBER\.", ".*", ".*")
            return user(*LIMITED)()

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
                limited=limited,
            ),
            patience=20.0,
        )
