"""Real transports and stores with one thing made late, deaf or different, for tests that look in between."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Sequence
from contextlib import asynccontextmanager
from datetime import timedelta
from typing import Any

import msgspec

from tidewire.errors import AlreadyMarked, TransportUnavailable


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


class MarksAtCommit:
    """A real store that finds at each commit, not before, that another delivery of the event has taken effect."""

    def __init__(self, store: Any) -> None:
        self._store = store

    def __getattr__(self, name: str) -> Any:
        return getattr(self._store, name)

    def unit(self, guard: Any = None, *, label: str = "") -> Any:
        unit = self._store.unit(guard, label=label)

        async def conflict() -> None:
            raise AlreadyMarked("it has already taken effect")

        async def seal() -> Any:
            await unit.rollback()
            return conflict()

        return Proxy(unit, seal=seal)


class Proxy:
    """An object with some members replaced."""

    def __init__(self, inner: Any, **replaced: Any) -> None:
        self.__dict__.update(replaced, inner=inner)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.inner, name)


class SteersLate:
    """A real transport that is away at the first `steer`; *asked* is what was drained, by call."""

    def __init__(self, transport: Any) -> None:
        self._transport = transport
        self.asked: list[list[str]] = []

    def __getattr__(self, name: str) -> Any:
        return getattr(self._transport, name)

    @asynccontextmanager
    async def subscribe(self, subscription: Any) -> AsyncGenerator[Any]:
        async with self._transport.subscribe(subscription) as receiver:

            async def steer(*, drained: Sequence[str]) -> None:
                self.asked.append(list(drained))
                if len(self.asked) == 1:
                    raise TransportUnavailable("it is away")
                await receiver.steer(drained=drained)

            yield Proxy(receiver, steer=steer)


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
