"""Which broker it is, whatever the URL: by this a relay knows that another one publishes elsewhere."""

from __future__ import annotations

import asyncio
from pathlib import Path

from tidewire.config import open_transport
from tidewire.kit.looks import Identified
from tidewire.model import TopicSpec
from tidewire.testing.servers.rabbitmq import RabbitServer


async def identity_of(url: str) -> str:
    """Return what the broker at *url* says."""
    async with open_transport(url) as transport:
        broker: object = transport
        assert isinstance(broker, Identified)
        return await broker.identity()


def test_a_file_says_nothing(tmp_path: Path) -> None:
    """What was brought back from a copy is the same broker in another file: after a power loss a service goes on."""
    assert "" == asyncio.run(identity_of(f"sqlite:///{tmp_path / 'broker.db'}"))


def test_tables_are_known_by_any_url(postgresql_url: str) -> None:
    """Settings of the URL change nothing; tables of another prefix are another broker."""
    here = asyncio.run(identity_of(postgresql_url))
    assert here.startswith("postgresql:")
    assert here == asyncio.run(identity_of(f"{postgresql_url}?connect_timeout=5"))
    assert here != asyncio.run(identity_of(f"{postgresql_url}?prefix=tw_"))


def test_a_kafka_says_its_name(kafka_url: str) -> None:
    """Each that opens it hears the same name, and no empty one."""
    first, second = asyncio.run(identity_of(kafka_url)), asyncio.run(identity_of(kafka_url))
    assert first == second
    assert first.removeprefix("kafka:")


def test_a_rabbitmq_keeps_the_name_that_it_was_given(rabbitmq_server: RabbitServer) -> None:
    """Who asks first gives it one; another virtual host has another, and one in which nothing was made has none."""
    for vhost in ("named", "other", "void"):
        rabbitmq_server.control("add_vhost", vhost)
        rabbitmq_server.control("set_permissions", "-p", vhost, "worker", ".*", ".*", ".*")

    async def made(url: str) -> str:
        async with open_transport(url) as transport:
            await transport.provision([TopicSpec("shop.order", 1)], [])
        return await identity_of(url)

    url = f"{rabbitmq_server.url}/"
    first, second = asyncio.run(made(f"{url}named")), asyncio.run(identity_of(f"{url}named"))
    assert first == second
    assert first.removeprefix("rabbitmq:")
    assert first != asyncio.run(made(f"{url}other"))
    assert "" == asyncio.run(identity_of(f"{url}void"))
