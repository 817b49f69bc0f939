"""A bounded number of connections to PostgreSQL, handed out first come, first served."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager

import psycopg

from tidewire.errors import TidewireError
from tidewire.kit.postgres.errors import PostgresErrors
from tidewire.kit.postgres.place import PostgresPlace
from tidewire.kit.postgres.wire import Wire, connect_wire

__all__ = ["PostgresPool"]

_WAIT_MAX = 30.0


class PostgresPool:
    """Up to *size* connections to *place*, made when they are needed. A broken one is noticed and replaced.

    Every new connection is asked whether its server takes writes: after a failover it may not.
    """

    def __init__(self, place: PostgresPlace, errors: PostgresErrors, *, size: int) -> None:
        self._place = place
        self._errors = errors
        self._size = size
        self._idle: list[Wire] = []
        self._out: set[Wire] = set()
        self._making = 0
        self._waiting: deque[asyncio.Future[Wire | None]] = deque()
        self._emptied: asyncio.Future[None] | None = None
        self._closed = False

    def saturated(self) -> bool:
        """Whether whoever came now would have to wait."""
        return not self._idle and len(self._out) + self._making >= self._size

    async def take(self) -> Wire:
        """Return a connection of one's own, to be given back.

        Raises:
            StoreUnavailable (as `PostgresErrors` says): the server cannot be reached or takes no writes, or all
                connections were in use for half a minute.
            StoreRefused: it will not serve us.
        """
        if (wire := self.take_at_once()) is not None:
            return wire
        if not self._closed and len(self._out) + self._making >= self._size:
            wire = await self._wait()
            if wire is not None:
                return wire
            self._making -= 1  # the place was kept for us by who passed it on
        if self._closed:
            raise self._errors.unavailable("the store is closed")
        return await self._connect()

    def take_at_once(self) -> Wire | None:
        """Return a connection that lies ready, or None."""
        while self._idle and not self._closed:
            wire = self._idle.pop()
            if wire.alive:
                self._out.add(wire)
                return wire
        return None

    def give(self, wire: Wire) -> None:
        """Give *wire* back; one that is broken or still has something open is closed."""
        self._out.discard(wire)
        if self._closed or not wire.alive or wire.busy or wire.in_transaction:
            wire.close()
            if self._closed:
                self._look_whether_empty()
                return
            self._pass_on(None)
        else:
            self._pass_on(wire)

    @asynccontextmanager
    async def lent(self) -> AsyncGenerator[Wire]:
        """Yield a connection and give it back."""
        wire = await self.take()
        try:
            yield wire
        finally:
            self.give(wire)

    def forget_idle(self) -> None:
        """Close what lies ready: the server is not what it was, and new connections may find another."""
        while self._idle:
            self._idle.pop().close()

    async def close(self, longest: float) -> None:
        """Wait up to *longest* seconds for what is out, then close everything."""
        self._closed = True
        self.forget_idle()
        for waiting in self._waiting:
            if not waiting.done():
                self._making += 1
                waiting.set_result(None)
        if self._out:
            self._emptied = asyncio.get_running_loop().create_future()
            await asyncio.wait([self._emptied], timeout=longest)
        for wire in [*self._out]:
            wire.close()
        self._out.clear()

    async def _connect(self) -> Wire:
        self._making += 1
        try:
            wire = await self._connected()
        finally:
            self._making -= 1
            if self._closed:
                self._look_whether_empty()
        if self._closed:
            wire.close()
            raise self._errors.unavailable("the store is closed")
        self._out.add(wire)
        return wire

    async def _connected(self) -> Wire:
        try:
            wire = await connect_wire(self._place.url)
        except psycopg.Error as error:
            self._pass_on(None)
            raise self._errors.connecting(error, self._place.shown) from error
        except BaseException:
            self._pass_on(None)
            raise
        problem = self._not_writable(wire)
        if problem is not None:
            wire.close()
            self._pass_on(None)
            raise problem
        return wire

    def _not_writable(self, wire: Wire) -> TidewireError | None:
        standby = wire.parameter("in_hot_standby") == "on"  # the server says so by itself since version 14
        if not standby and wire.parameter("default_transaction_read_only") != "on":
            return None
        return self._errors.unavailable(
            f"{self._place.shown}: this server is {'a standby' if standby else 'read-only'} and takes no writes",
            hint="after a failover, name all hosts in the URL: postgresql://user@one,two/database",
        )

    async def _wait(self) -> Wire | None:
        """Return a connection that was passed on, or None: make one in the place that is kept for us."""
        waiting: asyncio.Future[Wire | None] = asyncio.get_running_loop().create_future()
        self._waiting.append(waiting)
        try:
            async with asyncio.timeout(_WAIT_MAX):
                return await self._passed_on(waiting)
        except TimeoutError:
            raise self._errors.unavailable(
                f"none of {self._size} connections to {self._place.shown} became free in {_WAIT_MAX:.0f} s",
                hint="allow more with connections= in the URL, or let handlers run shorter",
            ) from None

    async def _passed_on(self, waiting: asyncio.Future[Wire | None]) -> Wire | None:
        try:
            return await waiting
        except asyncio.CancelledError:
            if not waiting.cancelled():  # it came in the same moment: somebody else is to have it
                wire = waiting.result()
                if wire is None:
                    self._making -= 1
                    self._pass_on(None)
                else:
                    self.give(wire)
            raise

    def _pass_on(self, wire: Wire | None) -> None:
        """Hand *wire*, or the place to make one, to who waits longest; else keep it."""
        while self._waiting:
            waiting = self._waiting.popleft()
            if waiting.done():
                continue
            if wire is not None:
                self._out.add(wire)
            else:
                self._making += 1
            waiting.set_result(wire)
            return
        if wire is not None:
            self._idle.append(wire)

    def _look_whether_empty(self) -> None:
        if self._emptied is not None and not self._emptied.done() and not self._out:
            self._emptied.set_result(None)
