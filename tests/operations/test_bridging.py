"""When a bridge may say that nothing is left, on the in-memory broker in virtual time."""

from __future__ import annotations

import asyncio
from datetime import timedelta

from tidewire.model import Delivery, GroupSpec, Message, Subscription, Topic, TopicSpec
from tidewire.operations.bridging import Bridge
from tidewire.testing.virtual import VirtualClock, run
from tidewire.transports.memory import open_memory_transport

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
