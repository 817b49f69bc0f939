"""The outbox in PostgreSQL, written through somebody else's connection to the store's database.

Whether it leads there is asked once for each connection of a driver: by the random id in the table ``store``.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any
from weakref import WeakKeyDictionary

from tidewire.errors import ConfigurationError
from tidewire.kit.handles import AsyncSql, transaction_look
from tidewire.kit.postgres.place import PostgresPlace
from tidewire.stores.postgres.access import Access

__all__ = ["CallersCommits", "Identity", "check_identity"]

_LOOK_FIRST, _LOOK_MAX = 0.002, 0.02
_WATCHED_MAX = 10.0

_ONE_DATABASE = "event and data commit together in one database only: the one that the service's store is in"


class Identity:
    """Which database the store is in, and which connections are known to lead there. Before `learn` any database will
    do that has its tables."""

    def __init__(self, place: PostgresPlace) -> None:
        self._shown = place.shown
        self._id = ""
        self._known: WeakKeyDictionary[object, str] = WeakKeyDictionary()
        self.there = f"SELECT to_regclass('{place.named('store')}') IS NOT NULL"
        self.ask = f"SELECT id::text FROM {place.named('store')}"

    async def learn(self, access: Access) -> None:
        """Ask the store which one it is."""
        ((self._id,),) = (await access.run("reading the store's id", (self.ask, ()))).rows()

    def knows(self, connection: object) -> bool:
        """Whether a driver's *connection* is known to lead to the store."""
        return connection in self._known

    def check_dialect(self, what: str, dialect: str) -> None:
        """Refuse what leads to no PostgreSQL at all."""
        if dialect != "postgresql":
            raise ConfigurationError(
                f"{what} is to a database of {dialect}, the store is {self._shown}", hint=_ONE_DATABASE
            )

    def check_there(self, what: str, rows: Sequence[tuple[Any, ...]]) -> None:
        """Refuse a database that has no tables of a store."""
        if not rows[0][0]:
            raise ConfigurationError(
                f"{what} is to a database without the tables of {self._shown}",
                hint=f"{_ONE_DATABASE}; `tidewire store upgrade` makes its tables",
            )

    def check(self, what: str, connection: object, rows: Sequence[tuple[Any, ...]]) -> None:
        """Refuse another store's database, and remember a connection that is right."""
        if self._id and [*rows] != [(self._id,)]:
            raise ConfigurationError(f"{what} is to another database than {self._shown}", hint=_ONE_DATABASE)
        self._known[connection] = self._id


async def check_identity(identity: Identity, what: str, sql: AsyncSql) -> None:
    """Ask where *sql* leads, and remember it if that is the store of *identity*.

    Raises:
        ConfigurationError: *what* leads elsewhere; nothing was written, and the transaction goes on.
    """
    identity.check_dialect(what, sql.dialect)
    identity.check_there(what, await sql.rows(identity.there))
    identity.check(what, sql.connection, await sql.rows(identity.ask))


class CallersCommits:
    """Sees when callers' transactions have ended, by looking at their connections, and tells *committed* of it.

    A notification within a transaction would make all such commits of the database wait for each other, disk sync
    included. What is told is a hint: a transaction that was rolled back is told of too, and one that is open for
    longer than `_WATCHED_MAX` seconds is told of before its end, so that its rows are found by looking.
    """

    def __init__(self, committed: Callable[[Iterable[int]], None]) -> None:
        self._committed = committed
        self._open: dict[int, _Open] = {}
        self._expected = asyncio.Event()
        self._watches = False

    def sees(self, connection: object) -> bool:
        """Whether somebody looks, and the driver of *connection* says whether it is in a transaction."""
        return self._watches and transaction_look(connection) is not None

    def expect(self, connection: object, parts: Iterable[int]) -> None:
        """Tell of *parts* when the transaction that *connection*, which we can see, is in has ended."""
        known = self._open.get(id(connection))
        if known is None:
            look = transaction_look(connection)
            assert look is not None, "we can see it"
            known = self._open[id(connection)] = _Open(connection, look)
            self._expected.set()
        elif known.was_open:  # this may be the next transaction of a connection that hardly rests
            self._committed(known.parts)
            known.was_open = False
        known.until = asyncio.get_running_loop().time() + _WATCHED_MAX
        known.parts.update(parts)

    async def watch(self) -> None:
        """Until cancelled: look at the connections of which something is expected."""
        self._watches = True
        try:
            while True:
                await self._expected.wait()
                self._expected.clear()
                pause = _LOOK_FIRST
                while self._open:
                    await asyncio.sleep(pause)
                    pause = _LOOK_FIRST if self._look() or self._expected.is_set() else min(pause * 2, _LOOK_MAX)
                    self._expected.clear()
        finally:
            self._watches = False

    def _look(self) -> bool:
        now = asyncio.get_running_loop().time()
        for one in self._open.values():
            one.was_open = now <= one.until and one.look(one.connection)
        ended = [name for name, one in self._open.items() if not one.was_open]
        if ended:
            self._committed({part for name in ended for part in self._open.pop(name).parts})
        return bool(ended)


@dataclass(slots=True)
class _Open:
    connection: object
    look: Callable[[Any], bool]
    parts: set[int] = field(default_factory=set[int])
    until: float = 0.0
    was_open: bool = False
