"""The Kafka transport passes the conformance suite on a real broker; its clients die in processes of their own."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Callable, Iterator, Mapping
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from pathlib import Path
from typing import ClassVar

import pytest
from cloudevents.http import CloudEvent
from cloudevents.kafka import KafkaMessage, from_binary, to_binary
from confluent_kafka import Consumer, Producer, TopicPartition
from confluent_kafka.admin import (
    AclBinding,
    AclOperation,
    AclPermissionType,
    AdminClient,
    ResourcePatternType,
    ResourceType,
)
from kafka_proxy import Proxy, proxy
from kafka_server import USERS, KafkaServer

from tidewire.protocols import Transport
from tidewire.testing.transports import Faults, Site, TransportConformance, spawn_client
from tidewire.transports.kafka import open_kafka_transport

OPENER = "tidewire.transports.kafka:open_kafka_transport"


class SdkBinding:
    """The CloudEvents SDK's own binding, on clients that know nothing of tidewire."""

    def __init__(self, address: str) -> None:
        self._address = address

    async def write(self, topic: str, *, headers: Mapping[str, str], body: bytes) -> None:
        """Write an event as the SDK does."""
        attributes = {name.removeprefix("ce-"): value for name, value in headers.items()}
        attributes["datacontenttype"] = "application/json"
        message = to_binary(CloudEvent(attributes, body), data_marshaller=bytes)

        def write() -> None:
            producer = Producer({"bootstrap.servers": self._address})
            pairs = [(name, bytes(value)) for name, value in message.headers.items()]
            producer.produce(topic, bytes(message.value), headers=pairs)
            assert 0 == producer.flush(10)
            producer.close()

        await asyncio.to_thread(write)

    async def read(self, topic: str) -> tuple[Mapping[str, str], bytes]:
        """Read the newest event as the SDK does."""

        def read() -> KafkaMessage:
            consumer = Consumer({"bootstrap.servers": self._address, "group.id": "sdk"})
            newest: tuple[int, KafkaMessage] | None = None
            for partition in consumer.list_topics(topic, timeout=10).topics[topic].partitions:
                place = TopicPartition(topic, partition)
                low, high = consumer.get_watermark_offsets(place, timeout=10)
                if high > low:
                    consumer.assign([TopicPartition(topic, partition, high - 1)])
                    record = consumer.poll(10.0)
                    assert record is not None, "there is one"
                    headers = {name: value for name, value in record.headers() or [] if isinstance(value, bytes)}
                    at = max(int(headers.get("tw-at", b"0")), record.timestamp()[1])
                    if newest is None or newest[0] < at:
                        newest = at, KafkaMessage(headers, record.key(), record.value() or b"")
            consumer.close()
            assert newest is not None, "there is one"
            return newest[1]

        found = from_binary(await asyncio.to_thread(read), data_unmarshaller=bytes)
        return {f"ce-{name}": str(value) for name, value in found.get_attributes().items()}, bytes(found.get_data())


def deny_creating(server: KafkaServer) -> None:
    """Let the user "limited" create nothing."""
    binding = AclBinding(
        ResourceType.BROKER,
        "kafka-cluster",
        ResourcePatternType.LITERAL,
        "User:limited",
        "*",
        AclOperation.CREATE,
        AclPermissionType.DENY,
    )
    admin = AdminClient({"bootstrap.servers": server.address})
    for future in admin.create_acls([binding]).values():
        future.result(10.0)


class TestKafkaTransport(TransportConformance):
    """What Kafka promises through its adapter, it keeps."""

    server: KafkaServer
    proxy: Proxy
    options: ClassVar[str] = "timeout=3"

    @pytest.fixture(autouse=True, scope="class")
    @classmethod
    def _proxied(cls, kafka_server: KafkaServer) -> Iterator[None]:
        with proxy(kafka_server.proxy_port, kafka_server.behind_port) as cls.proxy:
            cls.server = kafka_server
            deny_creating(kafka_server)
            yield

    def site(self, directory: Path) -> Site:
        """Return the broker that all cases share, behind a proxy."""
        server, url = self.server, f"kafka://127.0.0.1:{self.server.proxy_port}?{self.options}"

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
            def delete() -> None:
                admin = AdminClient({"bootstrap.servers": server.address})
                for future in admin.delete_topics([topic]).values():
                    future.result(10.0)

            await asyncio.to_thread(delete)

        def user(name: str, password: str) -> Callable[[], AbstractAsyncContextManager[Transport]]:
            place = f"127.0.0.1:{server.password_port}"
            return lambda: open_kafka_transport(
                f"kafka://{name}:{password}@{place}?sasl=PLAIN&tls=false&{self.options}"
            )

        return Site(
            open=lambda: open_kafka_transport(url),
            faults=Faults(
                spawn=lambda: spawn_client(OPENER, url),
                restart=restart,
                outage=outage,
                hang=hang,
                cut=cut,
                destroy=destroy,
                stranger=user("worker", "wrong"),
                limited=user("limited", USERS["limited"]),
                binding=SdkBinding(server.address),
            ),
            patience=15.0,
        )
