"""A receiver: waiting, cancelling, credit, and the life of a membership."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from contextlib import suppress
from datetime import timedelta

from directory_broker.member import Member
from directory_broker.worker import Worker
from tidewire.errors import TransportClosed, TransportUnavailable
from tidewire.model import Delivery, LaneEvent, Move, Release, Settlement

__all__ = ["DirectoryReceiver"]

POLL = 0.01
"""Seconds between two looks for what other processes have published."""


class DirectoryReceiver:
    """A `tidewire.protocols.Receiver`."""

    def __init__(self, worker: Worker, heart: Worker, member: Member) -> None:
        self._worker = worker
        self._heart = heart
        self._member = member
        self._news = asyncio.Event()
        self._pending: asyncio.Future[list[Delivery]] | None = None
        self._rest: list[Delivery] = []
        self._left = False

    async def receive(self, limit: int, wait: timedelta) -> Sequence[Delivery | LaneEvent]:
        """Look every few milliseconds. What was fetched for a cancelled call goes to the next one."""
        self._check()
        loop = asyncio.get_running_loop()
        end = loop.time() + wait.total_seconds()
        while True:
            self._check()
            self._news.clear()
            found = await self._fetch(limit) if limit else []
            events = [self._member.events.popleft() for _ in range(len(self._member.events))]
            rest = end - loop.time()
            if events or found or rest <= 0:
                return [*events, *found]
            with suppress(TimeoutError):
                async with asyncio.timeout(min(rest, POLL if limit else rest)):
                    await self._news.wait()

    async def _fetch(self, limit: int) -> list[Delivery]:
        if not self._rest:
            if self._pending is None:
                self._pending = self._worker.submit(self._member.hand_out, limit)
            self._rest = await asyncio.shield(self._pending)
            self._pending = None
        ready = [one for one in self._rest if self._member.flows(one)]
        self._rest = ready[limit:]
        return ready[:limit]

    async def settle(
        self, *, ack: Sequence[Delivery] = (), release: Sequence[Release] = (), move: Sequence[Move] = ()
    ) -> Sequence[Settlement]:
        """Settle; after the group was left everything is lost."""
        if self._member.subscription.ordering == "key" and any(one.delay for one in release):
            raise ValueError("under ordering by key a release has no delay: hold the key, or move the delivery")
        if self._left:
            gone = [*ack, *(one.delivery for one in release), *(one.delivery for one in move)]
            return [Settlement(one, "lost") for one in gone]
        settlements = await self._worker.run(self._member.settle, ack, release, move)
        self._news.set()
        return settlements

    async def steer(
        self, *, pause: Sequence[str] = (), resume: Sequence[str] = (), drained: Sequence[str] = ()
    ) -> None:
        """Pause, resume or give up lanes."""
        self._check()
        await self._worker.run(self._member.steer, pause, resume, drained)
        self._news.set()

    async def join(self) -> None:
        """Become a member."""
        await self._worker.run(self._member.join)

    async def beat(self) -> None:
        """Until cancelled: say that we live, often enough for the lease."""
        await self._often(self._heart, self._member.beat)

    async def balance(self) -> None:
        """Until cancelled: share the lanes with whoever is there."""
        await self._often(self._worker, self._member.balance)

    async def _often(self, worker: Worker, act: Callable[[], None]) -> None:
        interval = min(self._member.subscription.lease.total_seconds() / 4, 0.2)
        while True:
            await asyncio.sleep(interval)
            with suppress(TransportUnavailable):  # the disk: the next receive or settle says so
                await worker.run(act)
            if self._member.events:
                self._news.set()

    async def drain(self) -> None:
        """Hand nothing more out, give back what nobody has seen, and wait for settles as long as ``grace``."""
        self._member.leaving = True
        with suppress(TimeoutError):
            async with asyncio.timeout(self._member.subscription.grace.total_seconds()):
                unseen = [*self._rest, *(await self._pending if self._pending else ())]
                if unseen:
                    await self.settle(release=[Release(one, counted=False) for one in unseen])
                while await self._worker.run(self._member.unsettled):
                    self._news.clear()
                    with suppress(TimeoutError):
                        async with asyncio.timeout(POLL):
                            await self._news.wait()

    async def leave(self) -> None:
        """Give everything back and go."""
        self._left = True
        self._news.set()
        await self._worker.run(self._member.drain, list(self._member.lanes))
        await self._heart.run(self._member.vanish)

    def _check(self) -> None:
        self._worker.check()
        if self._left:
            raise TransportClosed("the group was left")
