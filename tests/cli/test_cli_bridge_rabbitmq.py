"""`tidewire bridge` to and from RabbitMQ, whose queues keep nothing for a group that is made later."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
from contextlib import suppress
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from bridge_world import (
    KEYS,
    OrderMoved,
    OrderReturned,
    bridged,
    command,
    handle,
    has,
    in_order,
    publish,
    stored,
    until,
)

from tidewire.cli import exits
from tidewire.config import open_transport
from tidewire.errors import TransportUnavailable
from tidewire.model import Delivery, GroupSpec, Message, Subscription, TopicSpec
from tidewire.testing.servers.rabbitmq import RabbitServer

WAIT = timedelta(seconds=1)
MOVED, RETURNED = "moved.order", "returned.order"
WITNESS = "witness"
ALL = 1_500

LONG = pytest.mark.skipif(bool(os.environ.get("CI")), reason="not proven: it takes a while, and CI leaves it out")


@pytest.fixture
def here(tmp_path: Path) -> str:
    """The URL of an embedded broker."""
    return f"sqlite:///{tmp_path}/here.db"


async def join(url: str, topic: str, group: str = WITNESS) -> None:
    """Make a topic with *group* on it."""
    async with open_transport(url) as transport:
        await transport.provision([TopicSpec(topic, 4)], [GroupSpec(group, [topic])])


async def waiting(url: str, topic: str) -> int:
    """Return how many messages wait for the witness; 0 as long as it, or the broker, is not there."""
    with suppress(TransportUnavailable):
        async with open_transport(url) as transport:
            inspector: Any = transport
            return sum(info.stats.ready or 0 for info in await inspector.groups(topic) if info.group == WITNESS)
    return 0


async def witnessed(url: str, topic: str) -> list[Message]:
    """Return what the witness is given, all that waits for it."""
    left = await waiting(url, topic)
    found: list[Message] = []
    place = Subscription(WITNESS, [topic], "one", "key", prefetch=10_000)
    async with open_transport(url) as transport, transport.subscribe(place) as receiver:
        while len(found) < left:
            items = [one for one in await receiver.receive(1_000, WAIT) if isinstance(one, Delivery)]
            await receiver.settle(ack=items)
            found += [one.message for one in items]
    return found


async def publish_until(here: str, numbers: range, there: str, count: int) -> None:
    """Publish *here* while a bridge copies, until so many messages wait for the witness *there*."""

    async def enough() -> bool:
        return await waiting(there, MOVED) >= count

    await asyncio.gather(publish(here, numbers, OrderMoved), until(enough))


@LONG
def test_to_rabbitmq_nothing_is_lost_though_bridge_and_broker_are_killed(
    here: str, rabbitmq_server: RabbitServer, tmp_path: Path
) -> None:
    """``kill -9`` of the bridge, then of the broker under the next one: the groups of the first broker, which are made
    on RabbitMQ before anything is copied, get every event in order of its key, and each effect is one."""
    url, store = rabbitmq_server.url, f"sqlite:///{tmp_path}/billing.db"
    words = command(here, url, "--topic", MOVED, "--follow")
    asyncio.run(publish(here, range(300), OrderMoved))
    asyncio.run(join(here, MOVED))
    asyncio.run(handle(here, store, until_rows=150, kind=OrderMoved))
    with subprocess.Popen([*words, "--provision"]) as killed:
        try:
            asyncio.run(publish_until(here, range(300, 1_000), url, 400))
        finally:
            killed.kill()
    rabbitmq_server.write_down()
    there = asyncio.run(waiting(url, MOVED))
    with subprocess.Popen(words) as following:
        asyncio.run(publish_until(here, range(1_000, 1_200), url, there + 1))
        rabbitmq_server.kill()
        asyncio.run(publish(here, range(1_200, ALL), OrderMoved))
        rabbitmq_server.start()
        asyncio.run(publish_until(here, range(0), url, ALL))
        following.send_signal(signal.SIGTERM)
        assert exits.OK == following.wait(timeout=60)
    bridged(here, url, "--topic", MOVED)
    before, after = asyncio.run(stored(here, MOVED)), asyncio.run(witnessed(url, MOVED))
    assert in_order(before) == in_order(after)
    assert {(one.id, one.source, one.body) for one in before} == {(one.id, one.source, one.body) for one in after}
    numbers = asyncio.run(handle(url, store, until_rows=ALL, kind=OrderMoved))
    assert list(range(ALL)) == sorted(numbers)
    for key in range(KEYS):
        assert list(range(key, ALL, KEYS)) == [number for number in numbers if number % KEYS == key]


@LONG
def test_from_rabbitmq_it_copies_what_comes_once_its_group_is_there(here: str, rabbitmq_server: RabbitServer) -> None:
    """The first run says that only what comes is copied; from then on its queues keep all, ``kill -9`` or not."""
    url = rabbitmq_server.url
    asyncio.run(join(url, RETURNED))
    asyncio.run(publish(url, range(5), OrderReturned))
    first = subprocess.run(
        command(url, here, "--topic", RETURNED, "--provision"), capture_output=True, text=True, timeout=60, check=True
    )
    assert "only what is published from now on is copied" in first.stderr
    assert "0 messages copied; nothing is left." in first.stdout

    async def meanwhile() -> None:
        await asyncio.gather(publish(url, range(5, ALL), OrderReturned), until(lambda: has(here, 400, RETURNED)))

    with subprocess.Popen(command(url, here, "--topic", RETURNED, "--follow")) as following:
        try:
            asyncio.run(meanwhile())
        finally:
            following.kill()
    bridged(url, here, "--topic", RETURNED)
    before, after = asyncio.run(witnessed(url, RETURNED)), asyncio.run(stored(here, RETURNED))
    late = [one for one in before if int(one.body.partition(b'"number":')[2].rstrip(b"}")) >= 5]
    assert in_order(late) == in_order(after)
    assert ALL - 5 == len(after)
    assert (0, 0) == tuple(bridged(url, here, "--topic", RETURNED)[name] for name in ("stored", "known"))


def test_to_rabbitmq_a_topic_that_nobody_reads_is_refused(here: str, rabbitmq_url: str) -> None:
    """It would keep nothing of what is copied: nothing is copied, and the fix is named; with a group it goes."""
    topic = "unread.order"
    asyncio.run(join(here, topic, "tidewire-bridge"))
    words = (here, rabbitmq_url, "--topic", topic)
    assert "no group reads unread.order" in bridged(*words, "--provision", code=exits.USAGE)["said"]
    assert "no group reads unread.order" in bridged(*words, code=exits.USAGE)["said"]
    asyncio.run(join(rabbitmq_url, topic))
    assert [topic] == bridged(*words)["topics"]
