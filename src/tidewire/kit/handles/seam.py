"""What a caller's transaction looks like to our own statements, whatever library it comes from."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

from tidewire.errors import ConfigurationError

__all__ = ["AsyncHandle", "AsyncSql", "SyncHandle", "SyncSql", "not_begun"]


class AsyncSql(Protocol):
    """An open transaction. *dialect* is the database's name: ``postgresql``, ``sqlite``, or another."""

    @property
    def dialect(self) -> str:
        """The database's name."""
        ...

    @property
    def connection(self) -> object:
        """The driver's own connection, which leads to one database as long as it lives."""
        ...

    async def rows(self, sql: str, parameters: Sequence[Any] = ()) -> Sequence[tuple[Any, ...]]:
        """Run one statement, whose parameters are ``$1``, ``$2`` …, and return its rows; none for what has none.

        Raises what the library raises: the transaction is its user's, who knows what that means.
        """
        ...


class SyncSql(Protocol):
    """The same for synchronous code."""

    @property
    def dialect(self) -> str:
        """The database's name."""
        ...

    @property
    def connection(self) -> object:
        """The driver's own connection, which leads to one database as long as it lives."""
        ...

    def rows(self, sql: str, parameters: Sequence[Any] = ()) -> Sequence[tuple[Any, ...]]:
        """As `AsyncSql.rows`."""
        ...


class AsyncHandle(Protocol):
    """A caller's transaction of one library, of which nothing has been asked yet."""

    async def begun(self) -> AsyncSql:
        """Return the transaction.

        Raises:
            ConfigurationError: what is written would be committed at once, because nothing has been begun.
        """
        ...


class SyncHandle(Protocol):
    """The same for synchronous code."""

    def begun(self) -> SyncSql:
        """As `AsyncHandle.begun`."""
        ...


def not_begun(what: str, fix: str) -> ConfigurationError:
    """Return the error that says that *what* is not in a transaction, and how to begin one."""
    return ConfigurationError(
        f"publish(tx=…): this {what} is not in a transaction, so the event would leave whatever becomes of the rest",
        hint=fix,
    )
