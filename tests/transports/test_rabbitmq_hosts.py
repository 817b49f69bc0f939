"""The RabbitMQ transport where one host of several is silent, or one queue of several confirms nothing."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Iterator
from contextlib import contextmanager, suppress

import pytest

from tidewire.errors import TransportRefused, TransportUnavailable
from tidewire.model import GroupSpec, Message, Topic, TopicSpec
from tidewire.testing.servers.processes import free_port
from tidewire.testing.servers.rabbitmq import RabbitServer
from tidewire.transports.rabbitmq import open_rabbit_transport
from tidewire.transports.rabbitmq.names import lane_of

LONG = 600
"""Seconds: no test waits for so long, so what ends does not end by this."""


@contextmanager
def silent_port() -> Iterator[int]:
    """Give a port that takes connections, as the kernel does for a process that stands still, and says nothing."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield int(server.getsockname()[1])


def url_by(server: RabbitServer, *hosts: str) -> str:
    """Return the URL of *server* with these hosts before it."""
    return server.url.replace("@", "@" + "".join(f"{host}," for host in hosts)) + f"?timeout={LONG}"


def test_a_host_that_says_nothing_does_not_keep_the_others_waiting(rabbitmq_server: RabbitServer) -> None:
    """The second host is tried beside the first one, long before the time-out."""

    async def opened() -> None:
        with silent_port() as port:
            url = url_by(rabbitmq_server, f"127.0.0.1:{port}", f"127.0.0.1:{free_port()}")
            async with asyncio.timeout(60), open_rabbit_transport(url) as transport:
                (change,) = await transport.provision([TopicSpec("hosts.silent", 1)], [])
                assert "create" == change.kind

    asyncio.run(opened())


def test_a_host_that_refuses_us_is_the_answer(rabbitmq_server: RabbitServer) -> None:
    """Who may not come in hears it at once, though another host is silent."""

    async def opened() -> None:
        with silent_port() as port:
            url = url_by(rabbitmq_server, f"127.0.0.1:{port}").replace(rabbitmq_server.password, "wrong")
            async with asyncio.timeout(60):
                with pytest.raises(TransportRefused, match="user or the password"):
                    async with open_rabbit_transport(url):
                        pass

    asyncio.run(opened())


def test_hosts_of_which_none_answers_are_unavailable() -> None:
    """What is raised names all of them."""
    hosts = f"127.0.0.1:{free_port()},127.0.0.1:{free_port()}"

    async def opened() -> None:
        with pytest.raises(TransportUnavailable, match=hosts):
            async with open_rabbit_transport(f"amqp://{hosts}"):
                pass

    asyncio.run(opened())


def test_a_queue_that_confirms_nothing_keeps_no_other_waiting(rabbitmq_server: RabbitServer) -> None:
    """What goes to a lane without a leader waits; what goes to another one is stored meanwhile."""
    topic = "hosts.mute"
    mute, fine = _event(topic, lane=0), _event(topic, lane=1)
    queue = f"'%2F_{topic}.LANE.billing.0'"

    async def publish() -> None:
        async with asyncio.timeout(120), open_rabbit_transport(url_by(rabbitmq_server)) as transport:
            await transport.provision([TopicSpec(topic, 2)], [GroupSpec("billing", [topic])])
            assert (await transport.publish([mute]))[0].ok  # the connection is there, and the queue too
            await asyncio.to_thread(rabbitmq_server.control, "eval", f"sys:suspend({queue}).")
            try:
                async with asyncio.TaskGroup() as tasks:
                    waiting = tasks.create_task(transport.publish([mute]))
                    await asyncio.sleep(0)
                    assert (await transport.publish([fine]))[0].ok
                    assert not waiting.done()
                    await asyncio.to_thread(rabbitmq_server.control, "eval", f"sys:resume({queue}).")
                    assert (await waiting)[0].ok
            finally:
                with suppress(RuntimeError):
                    await asyncio.to_thread(rabbitmq_server.control, "eval", f"sys:resume({queue}).")

    asyncio.run(publish())


def _event(topic: str, *, lane: int) -> Message:
    """Return an event whose key lies in *lane* of two."""
    key = next(key for key in map(str, range(100)) if lane_of(key, 2) == lane)
    return Message(Topic(topic), f"{topic}-{lane}", "test", key, {"ce-type": "a.b"}, b"1")
