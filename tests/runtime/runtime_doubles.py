"""Real transports and stores with one thing made late, deaf or different, for tests that look in between."""

from __future__ import annotations

import asyncio
from datetime import timedelta
from typing import Any

import msgspec


class DelayedCommits:
    """A real store whose commits are reported late, for tests that look between commit and ack."""

    def __init__(self, store: Any, released: asyncio.Event) -> None:
        self._store = store
        self._released = released

    def __getattr__(self, name: str) -> Any:
        return getattr(self._store, name)

    def unit(self, guard: Any = None, *, label: str = "") -> Any:
        unit = self._store.unit(guard, label=label)
        seal = unit.seal

        async def late(durable: Any) -> None:
            await durable
            await self._released.wait()

        async def delayed_seal() -> Any:
            return late(await seal())

        return Proxy(unit, seal=delayed_seal)


class Proxy:
    """An object with some members replaced."""

    def __init__(self, inner: Any, **replaced: Any) -> None:
        self.__dict__.update(replaced, inner=inner)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.inner, name)


class DeafOnce:
    """A real transport whose first membership hears of its lanes and then of nothing."""

    def __init__(self, transport: Any) -> None:
        self._transport = transport
        self._memberships = 0

    def __getattr__(self, name: str) -> Any:
        return getattr(self._transport, name)

    async def stats(self, topic: str, group: str) -> Any:
        return msgspec.structs.replace(await self._transport.stats(topic, group), ready=1)

    def subscribe(self, subscription: Any) -> Any:
        self._memberships += 1
        membership = self._transport.subscribe(subscription)
        return Deafened(membership) if self._memberships == 1 else membership


class Deafened:
    """A membership whose `receive` drops deliveries on the floor and keeps lane events."""

    def __init__(self, membership: Any) -> None:
        self._membership = membership

    async def __aenter__(self) -> Any:
        receiver = await self._membership.__aenter__()

        async def deaf(limit: int, wait: timedelta) -> Any:
            return await receiver.receive(0, wait)

        return Proxy(receiver, receive=deaf)

    async def __aexit__(self, *error: Any) -> Any:
        return await self._membership.__aexit__(*error)
