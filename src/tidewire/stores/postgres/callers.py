"""The outbox in PostgreSQL, written through somebody else's connection to the store's database.

Whether it leads there is asked once for each connection of a driver: by the random id in the table ``store``.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any
from weakref import WeakKeyDictionary

from tidewire.errors import ConfigurationError
from tidewire.kit.handles import AsyncSql, CallersUnit, SyncSql, describe
from tidewire.kit.postgres.place import PostgresPlace
from tidewire.kit.postgres.wire import Statement
from tidewire.stores.postgres.access import Access

__all__ = ["Identity", "check_identity", "put_in_callers"]

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

    def knows(self, what: str, sql: AsyncSql | SyncSql) -> bool:
        """Whether *sql* is known to lead to the store.

        Raises:
            ConfigurationError: it leads to no PostgreSQL at all.
        """
        if sql.dialect != "postgresql":
            raise ConfigurationError(
                f"{what} is to a database of {sql.dialect}, the store is {self._shown}", hint=_ONE_DATABASE
            )
        return sql.connection in self._known

    def check_there(self, what: str, rows: Sequence[tuple[Any, ...]]) -> None:
        """Refuse a database that has no tables of a store."""
        if not rows[0][0]:
            raise ConfigurationError(
                f"{what} is to a database without the tables of {self._shown}",
                hint=f"{_ONE_DATABASE}; `tidewire store upgrade` makes its tables",
            )

    def check(self, what: str, sql: AsyncSql | SyncSql, rows: Sequence[tuple[Any, ...]]) -> None:
        """Refuse another store's database, and remember a connection that is right."""
        if self._id and [*rows] != [(self._id,)]:
            raise ConfigurationError(f"{what} is to another database than {self._shown}", hint=_ONE_DATABASE)
        self._known[sql.connection] = self._id


async def check_identity(identity: Identity, what: str, sql: AsyncSql) -> None:
    """Nothing, if *sql* leads to the store of *identity*.

    Raises:
        ConfigurationError: *what* leads elsewhere; nothing was written, and the transaction goes on.
    """
    if not identity.knows(what, sql):
        identity.check_there(what, await sql.rows(identity.there))
        identity.check(what, sql, await sql.rows(identity.ask))


async def put_in_callers(unit: CallersUnit, statements: Sequence[Statement], identity: Identity) -> None:
    """Run *statements* of the outbox in a caller's transaction; see `tidewire.protocols.Outbox.put`."""
    sql = await unit.handle.begun()
    await check_identity(identity, f"publish(tx=…): this {describe(unit.tx)}", sql)
    for text, parameters in statements:
        await sql.rows(text, parameters)
