"""A service on Kafka whose connections fall silent: its watchdog, and what `/readyz` says meanwhile."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncGenerator, Iterator
from contextlib import asynccontextmanager
from datetime import timedelta
from urllib.error import HTTPError
from urllib.request import urlopen

import kafka_server as kafka
import pytest
from kafka_proxy import Proxy, proxy
from test_kafka_threads import name

from tidewire import Options, Service, event, running
from tidewire.model import Message, Topic
from tidewire.runtime.probe import open_probe
from tidewire.transports.kafka import open_kafka_transport

SECOND = timedelta(seconds=1)
PATIENCE = 50.0
UNANSWERED = 90.0  # seconds after which the client itself gives up a connection: longer than a test lasts


@pytest.fixture
def between(kafka_server: kafka.KafkaServer) -> Iterator[Proxy]:
    """A proxy in front of the broker."""
    with proxy(kafka_server.proxy_port, kafka_server.behind_port) as running_proxy:
        yield running_proxy


class Shop:
    """A service that reads through a proxy, and somebody beside it who publishes to it without one."""

    def __init__(self, server: kafka.KafkaServer) -> None:
        self.server = server
        self.topic, self.group = name(), name()
        self.seen: asyncio.Queue[str] = asyncio.Queue()
        self.port = 0

    @asynccontextmanager
    async def open(self) -> AsyncGenerator[None]:
        """Run the service, with a probe."""

        @event(f"{self.topic}.asked", key="number")
        class Asked:
            number: str

        service = Service(self.group)

        @service.on(Asked, on_dead_letter="continue")
        async def answer(asked: Asked) -> None:
            self.seen.put_nowait(asked.number)

        url = f"kafka://127.0.0.1:{self.server.proxy_port}?timeout={UNANSWERED}"
        options = Options(lanes=2, relay=False, stuck_after=6 * SECOND, grace=SECOND)
        async with (
            open_kafka_transport(url) as transport,
            running(service, transport=transport, options=options) as app,
            open_probe(app.health, host="127.0.0.1", port=0) as self.port,
        ):
            yield

    async def publish(self, *numbers: str) -> None:
        """Publish past the proxy."""
        async with open_kafka_transport(self.server.url) as transport:
            headers = {"ce-type": f"{self.topic}.asked", "content-type": "application/json"}
            messages = [
                Message(Topic(self.topic), f"id-{one}", "test", one, headers, json.dumps({"number": one}).encode())
                for one in numbers
            ]
            assert all(receipt.ok for receipt in await transport.publish(messages))

    async def taken(self, count: int) -> list[str]:
        """Return the next events that were handled."""
        return sorted([await self.seen.get() for _ in range(count)])

    async def told(self, status: int) -> dict[str, object]:
        """Ask `/readyz` until it answers with *status*; return what it says of the subscription."""
        while (answer := await asyncio.to_thread(self._ask))[0] != status:  # noqa: ASYNC110  # what a probe does
            await asyncio.sleep(0.1)
        return answer[1]["0"]

    def _ask(self) -> tuple[int, dict[str, dict[str, object]]]:
        try:
            with urlopen(f"http://127.0.0.1:{self.port}/readyz", timeout=5) as answer:
                return answer.status, json.load(answer)
        except HTTPError as refusal:
            return refusal.code, json.load(refusal)


def test_connections_that_have_fallen_silent_are_replaced(kafka_server: kafka.KafkaServer, between: Proxy) -> None:
    """Where every open connection is dead and says nothing, the lag is asked over a new one: the member is rebuilt
    long before the client gives its connections up, and hears again. The probe says so."""

    async def scenario() -> None:
        shop = Shop(kafka_server)
        async with asyncio.timeout(PATIENCE), shop.open():
            await shop.publish("a")
            assert ["a"] == await shop.taken(1)
            await shop.told(200)
            await asyncio.to_thread(between.say, "forget")
            await shop.publish("b", "c")
            assert str((await shop.told(503))["why"]).startswith(("no progress", "the broker does not say"))
            assert ["b", "c"] == await shop.taken(2)
            assert 1 == (await shop.told(200))["stalls"]

    asyncio.run(scenario())


def test_a_network_that_is_silent_as_a_whole_makes_unready_and_nothing_else(
    kafka_server: kafka.KafkaServer, between: Proxy
) -> None:
    """While nobody hears the broker nobody can tell whether events wait: the probe says that, nothing is rebuilt, and
    afterwards all goes on."""

    async def scenario() -> None:
        shop = Shop(kafka_server)
        async with asyncio.timeout(PATIENCE), shop.open():
            await shop.publish("a")
            assert ["a"] == await shop.taken(1)
            await asyncio.to_thread(between.say, "quiet")
            await shop.publish("b")
            told = await shop.told(503)
            assert ("the broker does not say whether events wait", 0) == (told["why"], told["stalls"])
            await asyncio.to_thread(between.say, "go")
            assert ["b"] == await shop.taken(1)
            await shop.told(200)

    asyncio.run(scenario())
