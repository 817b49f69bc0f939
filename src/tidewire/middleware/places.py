"""So many calls at a time, over all or per any value."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable, Hashable
from contextlib import AbstractContextManager
from contextvars import ContextVar
from typing import Any, Protocol, TypeVar
from weakref import WeakKeyDictionary

from tidewire.errors import ConfigurationError

__all__ = ["ConcurrencyLimit", "concurrency_limit"]

# The limits whose place the running call has: what a handler's domain events run needs no second one.
_held: ContextVar[tuple[ConcurrencyLimit, ...]] = ContextVar("tidewire_places_held", default=())


class Waits(Protocol):
    """What is needed of a context."""

    def waiting(self) -> AbstractContextManager[None]:
        """Stop the clock of the handler's timeout."""
        ...


E = TypeVar("E")
C = TypeVar("C", bound=Waits)
R = TypeVar("R")


def concurrency_limit(most: int, *, key: Callable[[Any], Hashable] | None = None) -> ConcurrencyLimit:
    """Return a middleware that lets at most *most* calls run at a time; the others wait, first come first.

    With *key*, at most that many for each value of ``key(event)``, where *event* is what the handler is given (a
    batch handler's list). What *key* raises is the handler's failure. Only values that have a call running are kept.
    The limit is that of this object in this process. Waiting costs no attempt, and the clock of the handler's
    timeout stands still meanwhile; the event keeps its key and one of its service's ``concurrency`` places.

    Raises:
        ConfigurationError: *most* is below 1.
    """
    if most < 1:
        raise ConfigurationError(f"concurrency_limit: at least 1 must run, not {most}")
    return ConcurrencyLimit(most, key)


class ConcurrencyLimit:
    """See `concurrency_limit`."""

    __slots__ = ("_key", "_most", "_rooms")

    def __init__(self, most: int, key: Callable[[Any], Hashable] | None) -> None:
        self._most = most
        self._key = key
        self._rooms: WeakKeyDictionary[asyncio.AbstractEventLoop, dict[Hashable, Room]] = WeakKeyDictionary()

    def __repr__(self) -> str:
        return f"concurrency_limit({self._most}{', key=…' if self._key is not None else ''})"

    @property
    def running(self) -> int:
        """How many calls run now, over all values."""
        return sum(room.running for rooms in list(self._rooms.values()) for room in rooms.values())

    @property
    def waiting(self) -> int:
        """How many calls wait for a place now, over all values."""
        return sum(len(room.queue) for rooms in list(self._rooms.values()) for room in rooms.values())

    @property
    def values(self) -> int:
        """How many values of *key* are kept now."""
        return sum(map(len, list(self._rooms.values())))

    def __call__(self, handle: Callable[[E, C], Awaitable[R]]) -> Callable[[E, C], Awaitable[R]]:
        async def limited(event: E, context: C) -> R:
            held = _held.get()
            if self in held:  # a domain event of a call that has its place: waiting for itself would never end
                return await handle(event, context)
            rooms, value = self._here(), None if self._key is None else self._key(event)
            room = rooms.get(value)
            if room is None:
                room = rooms[value] = Room(self._most)
            try:
                if not room.enter():
                    with context.waiting():
                        await room.turn()
                token = _held.set((*held, self))
                try:
                    return await handle(event, context)
                finally:
                    _held.reset(token)
                    room.leave()
            finally:
                if room.empty and rooms.get(value) is room:
                    del rooms[value]

        return limited

    def _here(self) -> dict[Hashable, Room]:
        """The rooms of the running loop: futures of two loops do not mix."""
        loop = asyncio.get_running_loop()
        rooms = self._rooms.get(loop)
        if rooms is None:
            rooms = self._rooms[loop] = {}
        return rooms


class Room:
    """*most* places for the calls of one value, and the queue of those that wait. A place passes from hand to hand."""

    __slots__ = ("_most", "queue", "running")

    def __init__(self, most: int) -> None:
        self._most = most
        self.running = 0
        self.queue: deque[asyncio.Future[None]] = deque()

    @property
    def empty(self) -> bool:
        """Whether nobody runs and nobody waits."""
        return not self.running and not self.queue

    def enter(self) -> bool:
        """Take a place if one is free; while somebody waits, none is: it passes from hand to hand."""
        if self.running >= self._most:
            return False
        self.running += 1
        return True

    async def turn(self) -> None:
        """Wait for a place and take it. Cancel-safe."""
        turn: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self.queue.append(turn)
        try:
            await turn
        except asyncio.CancelledError:
            if not turn.cancelled():  # its turn came in the moment in which it was cancelled
                self.leave()
            elif turn in self.queue:
                self.queue.remove(turn)
            raise

    def leave(self) -> None:
        """Give the place to whoever has waited longest, or back."""
        while self.queue:
            turn = self.queue.popleft()
            if not turn.done():
                turn.set_result(None)
                return
        self.running -= 1
