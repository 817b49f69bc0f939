"""The RabbitMQ transport on a cluster of three nodes, while one of them is dead or stands still."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncGenerator, Iterator, Mapping
from contextlib import asynccontextmanager, suppress
from datetime import timedelta
from itertools import count

import pytest

from tidewire.errors import TransportUnavailable
from tidewire.model import Delivery, GroupSpec, LaneEvent, Message, Subscription, Topic, TopicSpec
from tidewire.protocols import Receiver
from tidewire.testing.servers.rabbitmq import NoServer, RabbitServer, private_cluster
from tidewire.transports.rabbitmq import RabbitTransport, open_rabbit_transport

pytestmark = pytest.mark.skipif(
    bool(os.environ.get("CI")),
    reason="not proven: a RabbitMQ of three nodes takes minutes, and CI leaves it out; make test runs it",
)
SHORTLY = timedelta(milliseconds=200)
TIMEOUT = 5
"""Seconds after which a transport gives up an answer."""


@pytest.fixture(scope="module")
def nodes() -> Iterator[list[RabbitServer]]:
    """Give a cluster that a test leaves as it was; a node that stands still counts as there for as long as a test."""
    try:
        with private_cluster(tick=600) as running:
            yield running
    except NoServer as error:
        pytest.skip(f"not proven: needs a RabbitMQ server: {error}")


def url_of(nodes: list[RabbitServer], first: int = 0) -> str:
    """Return the URL that names all nodes, that number *first*."""
    order = [*nodes[first:], *nodes[:first]]
    return f"{order[0].url},{','.join(one.address for one in order[1:])}?timeout={TIMEOUT}"


def events(topic: str, number: int) -> list[Message]:
    """Return an event of each of so many keys."""
    return [Message(Topic(topic), f"{topic}-{n}", "test", f"k-{n}", {"ce-type": "a.b"}, b"1") for n in range(number)]


def ids(messages: list[Message]) -> set[str]:
    """Return the ids of *messages*."""
    return {one.id for one in messages}


@asynccontextmanager
async def opened(url: str, topic: str, *, lanes: int = 4) -> AsyncGenerator[RabbitTransport]:
    """Open a transport with a topic and the group "billing" on it."""
    async with open_rabbit_transport(url) as transport:
        await transport.provision([TopicSpec(topic, lanes)], [GroupSpec("billing", [topic])])
        yield transport


def place(topic: str, member: str) -> Subscription:
    """Return a subscription of a member with a short lease."""
    return Subscription("billing", [topic], member, lease=timedelta(seconds=2), grace=SHORTLY)


async def assigned(receiver: Receiver, lanes: int, *, had: Mapping[str, int] | None = None) -> dict[str, int]:
    """Receive until a member has so many lanes instead of those it *had*, and return their epochs."""
    found = dict(had or {})
    async with asyncio.timeout(60):
        while len(found) != lanes:
            for one in await receiver.receive(0, SHORTLY):
                assert isinstance(one, LaneEvent), "no delivery was asked for"
                if one.kind == "assigned":
                    found[one.lane] = one.epoch
                else:
                    await receiver.steer(drained=[one.lane])
                    found.pop(one.lane, None)
    return found


async def settled(receiver: Receiver, wanted: set[str]) -> None:
    """Receive and settle until all of *wanted* has been here, through whatever is unavailable meanwhile."""
    async with asyncio.timeout(120):
        while wanted:
            with suppress(TransportUnavailable):
                found = [one for one in await receiver.receive(100, SHORTLY) if isinstance(one, Delivery)]
                await receiver.settle(ack=found)
                wanted = wanted - {one.message.id for one in found}


async def stored(transport: RabbitTransport, wanted: list[Message]) -> None:
    """Publish until everything is stored."""
    async with asyncio.timeout(120):
        while wanted:
            try:
                receipts = await transport.publish(wanted)
            except TransportUnavailable:
                await asyncio.sleep(0.1)
                continue
            wanted = [message for message, receipt in zip(wanted, receipts, strict=True) if not receipt.ok]


def test_every_node_says_the_same_name(nodes: list[RabbitServer]) -> None:
    """A service whose processes are connected to several nodes has one broker, though each node has its own name."""

    async def names() -> set[str]:
        found: set[str] = set()
        async with opened(url_of(nodes), "cluster.named"):
            for one in nodes:
                async with open_rabbit_transport(one.url) as transport:
                    found.add(await transport.identity())
        return found

    found = asyncio.run(names())
    assert 1 == len(found)
    assert "" not in found


def test_a_node_that_stands_still_takes_no_lanes_from_members_on_others(nodes: list[RabbitServer]) -> None:
    """Members talk to each other, but need no answer of one whose node says nothing."""
    topic = "cluster.still"

    async def work() -> None:
        async with opened(url_of(nodes), topic) as here, here.subscribe(place(topic, "m-1")) as receiver:
            had = await assigned(receiver, 4)
            async with (
                open_rabbit_transport(url_of(nodes, 1)) as there,
                there.subscribe(place(topic, "m-2")) as other,
                asyncio.TaskGroup() as tasks,
            ):
                others = tasks.create_task(assigned(other, 2))
                mine = await assigned(receiver, 2, had=had)
                theirs = await others
                assert not mine.keys() & theirs.keys()
                await asyncio.to_thread(nodes[1].pause)
                try:
                    await keeps(receiver, here, topic, mine)
                finally:
                    await asyncio.to_thread(nodes[1].resume)

    asyncio.run(work())


async def keeps(receiver: Receiver, transport: RabbitTransport, topic: str, mine: dict[str, int]) -> None:
    """See that *receiver* has what comes by its lanes, in their epochs, for three time-outs."""
    loop = asyncio.get_running_loop()
    end, numbers = loop.time() + 3 * TIMEOUT, count()
    while loop.time() < end:
        key = f"k-{next(numbers)}"
        await transport.publish([Message(Topic(topic), key, "test", key, {"ce-type": "a.b"}, b"1")])
        for one in await receiver.receive(100, SHORTLY):
            assert isinstance(one, Delivery), f"{one}: no lane was to be taken from it"
            assert mine[one.lane] == one.epoch
            await receiver.settle(ack=[one])


def test_topics_and_groups_are_made_while_any_node_is_dead(nodes: list[RabbitServer]) -> None:
    """No node is the only one that holds something which others need."""

    async def made(number: int) -> None:
        topic = f"cluster.made{number}"
        messages = events(topic, 8)
        async with opened(url_of(nodes), topic) as transport, transport.subscribe(place(topic, "m")) as receiver:
            await stored(transport, messages)
            await settled(receiver, ids(messages))

    for number, node in enumerate(nodes):
        node.kill()
        try:
            asyncio.run(made(number))
        finally:
            node.start()


def test_a_minority_stores_nothing_and_says_so(nodes: list[RabbitServer]) -> None:
    """With two of three nodes dead a publish is unavailable or unknown, in time; with one of them back all goes on."""
    topic = "cluster.minority"
    before, after = events(topic, 8)[:4], events(topic, 8)[4:]

    async def run() -> None:
        async with opened(url_of(nodes, 2), topic) as transport, transport.subscribe(place(topic, "m")) as receiver:
            await stored(transport, before)
            await asyncio.gather(*(asyncio.to_thread(node.kill) for node in nodes[:2]))
            async with asyncio.timeout(10 * TIMEOUT):
                with suppress(TransportUnavailable):
                    assert {"unknown"} == {one.status for one in await transport.publish(after)}
            await asyncio.to_thread(nodes[1].start)
            await stored(transport, after)
            await settled(receiver, ids(before + after))

    try:
        asyncio.run(run())
    finally:
        nodes[0].start()
