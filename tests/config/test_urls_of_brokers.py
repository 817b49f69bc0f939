"""URLs of brokers that cannot be: what is said of them names the fix, and shows no part of a password."""

from __future__ import annotations

import asyncio

import pytest

from tidewire.config import masked, open_store, open_transport
from tidewire.errors import ConfigurationError, TransportUnavailable
from tidewire.transports.kafka import open_kafka_transport


@pytest.mark.parametrize("scheme", ["kafka", "amqp", "postgresql"])
@pytest.mark.parametrize(
    "password", ["hush/kret", "hush?kret", "hush#kret", "12/kret", "12?kret", "12#kret", "a/@kret"]
)
def test_half_a_password_is_no_host(scheme: str, password: str) -> None:
    """A password with a character that ends it is told how to escape it, and neither half of it is shown."""
    url = f"{scheme}://worker:{password}@localhost:1/shop"
    with pytest.raises(ConfigurationError) as refused:
        open_transport(url)
    assert "%2F" in refused.value.hint
    for said in (str(refused.value), masked(url)):
        assert ("hush" in said, "kret" in said, "12" in said.replace("%2F", "")) == (False, False, False), said


@pytest.mark.parametrize(
    "url", ["kafka://h:9092?client.sasl.username=a@b", "amqp://a%40b:p%2Fw@h/v", "sqlite:///a:b@c/d#e.db", "amqp://h/v"]
)
def test_what_is_escaped_is_taken(url: str) -> None:
    """An @ in a setting's value, escapes in user and password, and any character in the path of a file are no slip."""
    open_transport(url)
    assert url.replace(":p%2Fw@", ":***@") == masked(url)


@pytest.mark.parametrize(
    "url",
    [
        *("kafka://h:port", "kafka://h:99999", "kafka://h:0", "kafka://h1,,h2", "kafka://h1, h2", "kafka://[::1"),
        *("amqp://h:port", "amqp://h:99999", "amqp://h:0", "amqp://h1,,h2", "amqp://h1, h2", "amqp://[::1"),
        *("postgresql://[::1/shop", "nowhere"),
    ],
)
def test_what_names_no_host_is_refused_before_anything_is_connected(url: str) -> None:
    """A host or a port that cannot be is an error of the setting, in words, with an example."""

    async def opened() -> None:
        async with open_transport(url):
            pass

    with pytest.raises(ConfigurationError) as refused:
        asyncio.run(opened())
    assert refused.value.hint


def test_the_url_of_a_store_is_read_the_same_way() -> None:
    """What is refused of a broker's URL is refused of a store's."""
    for url in ("postgresql://[::1/shop", "postgresql://worker:hush/kret@h/shop"):
        with pytest.raises(ConfigurationError):
            open_store(url)


def test_who_reaches_no_kafka_hears_why() -> None:
    """Not only that there is no answer: the client's own word for it, and what may be wrong with the URL."""

    async def opened() -> None:
        async with open_kafka_transport("kafka://127.0.0.1:1?timeout=0.5"):
            pass

    with pytest.raises(TransportUnavailable, match="refused") as unreached:
        asyncio.run(opened())
    assert "tls=true" in unreached.value.hint
