"""A world in memory on virtual time: what is said of moments is exact, whatever else the machine has to do."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass, field
from typing import Any

from runtime_world import World

from tidewire import Service
from tidewire.runtime.parts import Parts
from tidewire.runtime.serve import Running, running
from tidewire.stores.memory import open_memory_store
from tidewire.testing.virtual import VirtualClock, run
from tidewire.transports.memory import open_memory_transport

__all__ = ["in_virtual_time"]


@dataclass
class VirtualWorld(World):
    """A world whose services have its clock."""

    clock: VirtualClock = field(kw_only=True)

    def running(self, service: Service, *, store: bool = True) -> AbstractAsyncContextManager[Running]:
        parts = Parts(clock=self.clock, observer=self.observer)
        found = self.store if store else None
        return running(service, transport=self.transport, store=found, options=self.options, parts=parts)


def in_virtual_time(scenario: Callable[[World], Coroutine[Any, Any, None]]) -> None:
    """Run *scenario* in a world of its own."""

    async def life() -> None:
        clock = VirtualClock(asyncio.get_running_loop())
        async with open_memory_transport(clock=clock) as transport, open_memory_store(clock=clock) as store:
            await scenario(VirtualWorld(transport, store, clock=clock))

    run(life())
