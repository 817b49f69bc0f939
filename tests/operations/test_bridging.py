"""When a bridge may say that nothing is left, on the in-memory broker in virtual time."""

from __future__ import annotations

import asyncio
from datetime import timedelta

import pytest

from tidewire.errors import ConfigurationError, TransportUnavailable
from tidewire.model import Delivery, GroupSpec, Message, Subscription, Topic, TopicSpec
from tidewire.operations.bridging import Bridge, prepare
from tidewire.testing.virtual import VirtualClock, run
from tidewire.transports.kafka import open_kafka_transport
from tidewire.transports.memory import open_memory_transport
from tidewire.transports.rabbitmq import open_rabbit_transport

HOUR = timedelta(hours=1)


def test_what_another_member_has_in_hand_is_not_nothing() -> None:
    """A bridge ends only when its group has settled all: a message that another member has may come back to it."""

    async def scenario() -> None:
        clock = VirtualClock(asyncio.get_running_loop())
        async with open_memory_transport(clock=clock) as source, open_memory_transport(clock=clock) as target:
            for broker in (source, target):
                await broker.provision([TopicSpec("shop.order", 1)], [GroupSpec("bridge", ["shop.order"])])
            await source.publish([Message(Topic("shop.order"), "1", "shop", "k", {}, b"{}")])
            bridge = Bridge(source, target, group="bridge", topics=["shop.order"], member="second")
            async with source.subscribe(Subscription("bridge", ["shop.order"], "first", "key")) as receiver:
                while not any(isinstance(one, Delivery) for one in await receiver.receive(1, HOUR)):
                    pass
                copying = asyncio.create_task(bridge.run(until_empty=True, patience=HOUR))
                await asyncio.sleep(60)
                assert not copying.done()
            await copying
            assert 1 == bridge.copied.stored

    run(scenario())


def test_a_side_that_takes_nothing_is_waited_for_no_longer_than_said() -> None:
    """A full broker ends a bridge after its patience, by name; what it did not take is copied once there is room."""

    async def scenario() -> None:
        clock = VirtualClock(asyncio.get_running_loop())
        async with open_memory_transport(clock=clock) as source, open_memory_transport(clock=clock) as target:
            for broker in (source, target):
                await broker.provision([TopicSpec("shop.order", 1)], [GroupSpec("bridge", ["shop.order"])])
            await source.publish([Message(Topic("shop.order"), str(n), "shop", "k", {}, b"{}") for n in range(3)])
            target.broker.refuse = lambda _: "full"
            bridge = Bridge(source, target, group="bridge", topics=["shop.order"], member="m")
            began = clock.ticks()
            with pytest.raises(TransportUnavailable, match="takes nothing: rejected full"):
                await bridge.run(until_empty=True, patience=timedelta(minutes=1))
            assert timedelta(minutes=3) > timedelta(microseconds=(clock.ticks() - began) // 1000)
            target.broker.refuse = None
            await bridge.run(until_empty=True, patience=HOUR)
            assert ["0", "1", "2"] == [one.message.id for one in await target.browse(Topic("shop.order"))]

    run(scenario())


@pytest.mark.parametrize("broker", ["kafka", "rabbitmq"])
def test_one_broker_by_two_names_is_refused(broker: str, request: pytest.FixtureRequest) -> None:
    """A bridge from a broker to itself would copy its own copies for ever."""
    url: str = request.getfixturevalue(f"{broker}_url")
    opened = open_kafka_transport if broker == "kafka" else open_rabbit_transport

    async def scenario() -> None:
        async with opened(url) as one, opened(url.replace("127.0.0.1", "localhost")) as other:
            with pytest.raises(ConfigurationError, match="called by two names"):
                await prepare(one, other, ["shop.order"], group="bridge", create=False)

    asyncio.run(scenario())
