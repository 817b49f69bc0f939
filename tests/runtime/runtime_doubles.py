"""Real transports and stores with one thing made late, deaf or different, for tests that look in between."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Sequence
from contextlib import asynccontextmanager
from datetime import timedelta
from typing import Any

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


class Hushable:
    """A real transport under a broker that can stop handing out, to the memberships of now or to all.

    *asked*: how often the lag was asked for; *answers* false: the broker says nothing of it either.
    """

    def __init__(self, transport: Any) -> None:
        self._transport = transport
        self._hushed: list[tuple[asyncio.Event, asyncio.Event]] = []
        self._for_all = False
        self.asked = 0
        self.answers = True

    def __getattr__(self, name: str) -> Any:
        return getattr(self._transport, name)

    async def hush(self, *, for_all: bool = False) -> None:
        """Hand out nothing more, from the return on; with *for_all* to memberships that are yet to begin neither."""
        self._for_all = for_all
        for hushed, silent in self._hushed:
            hushed.set()
            await silent.wait()

    async def lag(self, group: str, lanes: Sequence[str]) -> int:
        """What the real one says, if it is asked."""
        self.asked += 1
        if not self.answers:
            await asyncio.Event().wait()
        return int(await self._transport.lag(group, lanes))

    @asynccontextmanager
    async def subscribe(self, subscription: Any) -> AsyncGenerator[Any]:
        hushed, silent = asyncio.Event(), asyncio.Event()
        if self._for_all:
            hushed.set()
        self._hushed.append((hushed, silent))
        async with self._transport.subscribe(subscription) as receiver:

            async def receive(limit: int, wait: timedelta) -> Any:
                if hushed.is_set():
                    silent.set()
                    return await receiver.receive(0, wait)
                given = asyncio.ensure_future(receiver.receive(limit, wait))
                hush = asyncio.ensure_future(hushed.wait())
                try:
                    await asyncio.wait((given, hush), return_when=asyncio.FIRST_COMPLETED)
                    if given.done():
                        return given.result()
                finally:
                    hush.cancel()
                    given.cancel()
                return []

            yield Proxy(receiver, receive=receive)
        self._hushed.remove((hushed, silent))
