"""How often the relay looks into the outbox: it leaves the store to those who write at least half of the time."""

from __future__ import annotations

import asyncio
from typing import Any

from runtime_doubles import Proxy
from runtime_world import OrderPlaced

from tidewire import Service, running, transaction
from tidewire.model import TopicSpec
from tidewire.runtime.parts import Parts
from tidewire.stores.memory import open_memory_store
from tidewire.testing.virtual import VirtualClock, run
from tidewire.transports.memory import open_memory_transport

_LOOK, _EVERY, _COMMITS = 0.004, 0.001, 200


def test_a_relay_that_has_looked_for_long_rests_as_long() -> None:
    """Events are committed all the time: each look takes 4 ms, so it takes up half of the time, and no event waits for
    longer than a rest and two looks."""
    late: list[float] = []

    async def scenario() -> int:
        clock, looks = VirtualClock(asyncio.get_running_loop()), 0
        now = asyncio.get_running_loop().time
        committed: dict[str, float] = {}

        async with open_memory_transport(clock=clock) as transport, open_memory_store(clock=clock) as store:
            claim, publish = store.backlog.claim, transport.publish

            async def looked(*given: Any, **named: Any) -> Any:
                nonlocal looks
                looks += 1
                await asyncio.sleep(_LOOK)
                return await claim(*given, **named)

            async def published(messages: Any) -> Any:
                late.extend(now() - committed[message.id] for message in messages)
                return await publish(messages)

            slow = Proxy(store, backlog=Proxy(store.backlog, claim=looked))
            noting = Proxy(transport, publish=published)
            await transport.provision([TopicSpec("shop.order", lanes=4)], [])
            async with running(Service("shop"), transport=noting, store=slow, parts=Parts(clock=clock)) as app:
                for number in range(_COMMITS):
                    async with transaction(slow) as tx:
                        event_id = await app.publisher.publish(OrderPlaced(f"o-{number}"), tx=tx)
                    committed[event_id] = now()
                    await asyncio.sleep(_EVERY)
                so_far = looks
            assert (0, 0) == await store.outbox.count()
        return so_far

    looks = run(scenario())
    assert _COMMITS == len(late)
    assert looks <= _COMMITS * _EVERY / (2 * _LOOK) + 2
    assert max(late) <= 3 * _LOOK + _EVERY
