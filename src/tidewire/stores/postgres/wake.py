"""Waking relays: at once by what this process commits, soon by notifications of others, and at the latest by looking.

A notification is a hint: one may be lost at a failover, and a connection may be dead for a while before that is
noticed. What is committed by the store's own units is notified after the commit, many units together: a notification
inside a transaction makes all such commits of the database wait for each other, disk sync included.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import AsyncGenerator, Coroutine, Iterable
from contextlib import asynccontextmanager
from typing import Any

import psycopg

from tidewire.chance import UUID7Ids
from tidewire.errors import StoreUnavailable
from tidewire.kit.waits import happens
from tidewire.stores.postgres.access import Access
from tidewire.stores.postgres.events import channel_of, notification

__all__ = ["RELAYS_CHANGED", "Wake", "waking"]

RELAYS_CHANGED = "relays"
_AGAIN_FIRST, _AGAIN_MAX = 0.1, 5.0
_TOLD_EVERY = 0.01  # a notification is a transaction too, and wakes every relay
_logger = logging.getLogger("tidewire.store")


class Wake:
    """What wakes the relay of this process. *parts* are the partitions that it has, none where
    that is not known; *hears* says whether notifications come."""

    def __init__(self, access: Access) -> None:
        self._access = access
        self._channel = channel_of(access.place)
        self._flag = asyncio.Event()
        self._wanted = asyncio.Event()
        self._untold = asyncio.Event()
        self._untold_parts: set[int] = set()
        self.parts: frozenset[int] = frozenset()
        self.hears = False
        self._name = UUID7Ids().event_id()  # one from the start: what is told before we listen may be heard
        self._has_listened = False
        self.relays_changed = 0

    async def wait(self, seconds: float) -> bool:
        """Wait until something may have come since the last call that was told so; False after *seconds*."""
        self._wanted.set()
        if not await happens(self._flag, seconds):
            return False
        self._flag.clear()
        return True

    def ring(self) -> None:
        """Wake the relay of this process, or whoever waits next."""
        self._flag.set()

    def committed(self, parts: Iterable[int]) -> None:
        """Say that rows of *parts* were committed here: wake our relay, or tell those of other processes."""
        every = {*parts}
        others = every - self.parts
        if not self.parts or len(others) < len(every):
            self._flag.set()
        if others:
            self._untold_parts |= others
            self._untold.set()

    async def tell(self) -> None:
        """Until cancelled: tell other processes what was committed here. What cannot be told they find by looking."""
        while True:
            await self._untold.wait()
            self._untold.clear()
            parts, self._untold_parts = self._untold_parts, set()
            with contextlib.suppress(StoreUnavailable):
                told = notification(self._access.place, parts, sender=self._name)
                await self._access.run("waking relays", told)
            await asyncio.sleep(_TOLD_EVERY)

    async def listen(self) -> None:
        """Until cancelled, from the first wait on: hear what others commit. A connection that breaks is made anew."""
        await self._wanted.wait()
        again = _AGAIN_FIRST
        while True:
            try:
                async with await psycopg.AsyncConnection[Any].connect(
                    self._access.place.url, autocommit=True
                ) as connection:
                    await connection.execute(f"LISTEN {self._channel}".encode())
                    if self._has_listened:
                        self._flag.set()  # what was committed while nobody listened
                    self._has_listened, self.hears, again = True, True, _AGAIN_FIRST
                    async for notify in connection.notifies():
                        self._heard(notify.payload)
            except psycopg.Error as error:
                if self.hears:
                    _logger.warning("tidewire.store.deaf", extra={"error_type": type(error).__name__})
            self.hears = False
            await asyncio.sleep(again)
            again = min(again * 2, _AGAIN_MAX)

    def _heard(self, payload: str) -> None:
        if payload == RELAYS_CHANGED:
            self.relays_changed += 1
            self._flag.set()
            return
        parts, _, sender = payload.partition(".")
        if sender == self._name:
            return  # our own
        try:
            bits = int(parts, 16)
        except ValueError:
            bits = -1  # of a later version: it means something came
        if not self.parts or any(bits >> part & 1 for part in self.parts):
            self._flag.set()


@asynccontextmanager
async def waking(wake: Wake, *others: Coroutine[Any, Any, None]) -> AsyncGenerator[None]:
    """Listen, tell and run *others* while the block lasts; what it raises, rises as it is."""
    raised: Exception | None = None
    async with asyncio.TaskGroup() as tasks:
        running = [tasks.create_task(one) for one in (wake.listen(), wake.tell(), *others)]
        try:
            yield
        except Exception as error:
            raised = error
        for task in running:
            task.cancel()
    if raised is not None:
        raise raised
