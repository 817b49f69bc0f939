"""What the adapters say waits for one member: what a watchdog asks, of every adapter that can be asked for lanes."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from contextlib import AbstractAsyncContextManager
from datetime import timedelta
from pathlib import Path
from typing import TypeAlias

import pytest

from tidewire.config import open_transport
from tidewire.model import (
    Delivery,
    GroupSpec,
    InboxChannel,
    LaneEvent,
    Message,
    Release,
    Subscription,
    Topic,
    TopicSpec,
)
from tidewire.protocols import Lagging, Receiver, Transport

SOON = timedelta(seconds=5)
MEMBER = Subscription("lagging", ["lag.order"], "one", "key", grace=timedelta(milliseconds=100))
FAR = 4_000_000_000_000_000
Opened: TypeAlias = Callable[[], AbstractAsyncContextManager[Transport]]


@pytest.fixture(params=["memory", "sqlite", "postgresql", "kafka", "rabbitmq"])
def opened(request: pytest.FixtureRequest, tmp_path: Path) -> Opened:
    """A function that opens a transport of each kind."""
    urls = {"memory": "memory://", "sqlite": f"sqlite:///{tmp_path}/broker.db"}
    fixture = {"postgresql": "postgresql_url", "kafka": "kafka_url", "rabbitmq": "rabbitmq_url"}.get(request.param)
    url: str = urls[request.param] if fixture is None else request.getfixturevalue(fixture)
    return lambda: open_transport(url)


def message(number: int, *, inbox: bool = False, due: int | None = None) -> Message:
    """Return a message of a key of its own to the topic, or to the group's inbox channel."""
    to = InboxChannel("lag.order", "lagging") if inbox else Topic("lag.order")
    return Message(to, f"m-{number}", "test", f"k-{number}", {"ce-type": "lag.order.placed"}, b"{}", due)


async def lanes_of(receiver: Receiver) -> list[str]:
    """Receive until all lanes are assigned and return their names."""
    lanes: list[str] = []
    async with asyncio.timeout(30):
        while len(lanes) < 4:
            events = [one for one in await receiver.receive(0, SOON) if isinstance(one, LaneEvent)]
            lanes += [event.lane for event in events if event.kind == "assigned"]
    return lanes


async def taken(receiver: Receiver, count: int) -> list[Delivery]:
    """Receive until *count* deliveries are here."""
    found: list[Delivery] = []
    async with asyncio.timeout(30):
        while len(found) < count:
            found += [one for one in await receiver.receive(count - len(found), SOON) if isinstance(one, Delivery)]
    return found


def test_what_waits_for_a_member_is_told_by_its_lanes(opened: Opened) -> None:
    """What is out, settled, not due or of others' lanes does not wait; what was given back and what is due does."""

    async def scenario() -> None:
        async with opened() as transport:
            assert isinstance(transport, Lagging)
            await transport.provision([TopicSpec("lag.order", lanes=4)], [GroupSpec("lagging", ["lag.order"])])
            async with transport.subscribe(MEMBER) as receiver:
                lanes = await lanes_of(receiver)
                assert 0 == await transport.lag("lagging", lanes)
                await transport.publish([message(number) for number in range(5)])
                found = await taken(receiver, 5)
                assert 0 == await transport.lag("lagging", lanes)
                await receiver.settle(ack=found[:2])
                assert 0 == await transport.lag("lagging", lanes)
                await transport.publish([message(9, due=FAR), message(10, inbox=True, due=FAR)])
                assert [] == await receiver.receive(1, timedelta(milliseconds=100))
                async with asyncio.timeout(10):
                    while await transport.lag("lagging", lanes):  # what Kafka has not been asked to hand out may be due
                        await receiver.receive(1, timedelta(milliseconds=100))
                assert 0 == await transport.lag("others", lanes)
                assert 0 == await transport.lag("lagging", [])

    asyncio.run(scenario())


def test_what_was_not_handed_out_waits(tmp_path: Path) -> None:
    """In the topic and in the inbox channel, given back or never given; not in a lane that is paused."""

    async def scenario(url: str) -> None:
        async with open_transport(url) as transport:
            assert isinstance(transport, Lagging)
            await transport.provision([TopicSpec("lag.order", lanes=4)], [GroupSpec("lagging", ["lag.order"])])
            async with transport.subscribe(MEMBER) as receiver:
                lanes = await lanes_of(receiver)
                await transport.publish([message(number) for number in range(5)])
                assert 5 == await transport.lag("lagging", lanes)
                found = await taken(receiver, 5)
                await receiver.settle(release=[Release(found[0])])
                await transport.publish([message(number, inbox=True) for number in range(5, 8)])
                assert 4 == await transport.lag("lagging", lanes)
                assert 4 == sum([await transport.lag("lagging", [lane]) for lane in lanes])
                await receiver.steer(pause=lanes)
                assert 0 == await transport.lag("lagging", lanes)

    for url in ("memory://", f"sqlite:///{tmp_path}/broker.db"):
        asyncio.run(scenario(url))
