"""What a unit needs of a pool that is the user's, and what a store says in the transactions of such a pool."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager
from typing import Any, NamedTuple, Protocol

from tidewire.kit.handles import AsyncSql
from tidewire.model import Guard, Mark, Message

__all__ = ["Lender", "Lent", "Statements", "Step"]


class Lent(Protocol):
    """One transaction of the user's pool. Taken and begun at the first use, ended once."""

    @property
    def tx(self) -> Any:
        """What the handler gets."""
        ...

    @property
    def ended(self) -> str:
        """What the handler ended the transaction with, or nothing."""
        ...

    @property
    def failed(self) -> BaseException | None:
        """The last error of a statement that was not the consequence of one before it, caught or not."""
        ...

    @property
    def begun(self) -> bool:
        """Whether the handler has done anything with it."""
        ...

    async def begin(self) -> None:
        """Take a connection and begin, where the handle does not do so by itself; nothing if it has begun."""
        ...

    def in_thread(self) -> AbstractContextManager[None]:
        """Return the block in which a ``def`` handler runs, in its thread."""
        ...

    async def sql(self) -> AsyncSql:
        """Return the transaction for our own statements, behind everything that the handler wrote."""
        ...

    async def commit(self) -> None:
        """Commit and give the connection back."""
        ...

    async def rollback(self) -> None:
        """Roll back and give the connection back, whatever state it is in; from now on nothing can be written."""
        ...


class Lender(Protocol):
    """A pool of the user's. *awaited*: what it lends is for ``async def`` handlers, else for ``def`` ones.

    *eager*: a handler finds its transaction begun, because its library has no handle that begins by itself.
    """

    @property
    def url(self) -> str:
        """The URL of its database, as a store's; nothing where the pool does not tell."""
        ...

    @property
    def tx_type(self) -> type:
        """The type of what it lends."""
        ...

    @property
    def awaited(self) -> bool:
        """Whether that is awaited."""
        ...

    @property
    def eager(self) -> bool:
        """Whether it must be begun before the handler."""
        ...

    def lend(self) -> Lent:
        """Return a transaction that has not begun."""
        ...


class Step(NamedTuple):
    """A statement of ours in a lent transaction. Where it returns no row, *refusal* is raised."""

    sql: str
    parameters: Sequence[Any]
    refusal: Exception | None = None


class Statements(Protocol):
    """What a store writes in units, as statements that any handle of its database can run."""

    async def check(self, sql: AsyncSql, what: str) -> None:
        """Nothing, if *sql* is a transaction of this very store.

        Raises:
            ConfigurationError: *what* is another database.
        """
        ...

    def guard(self, guard: Guard) -> Step:
        """Return the check that the lane is still owned: no row means `LaneFenced`."""
        ...

    async def mark(self, mark: Mark, digest: bytes) -> Sequence[Step]:
        """Return what inserts a mark: no row means `AlreadyMarked`."""
        ...

    def rows(self, messages: Sequence[Message]) -> Sequence[Any]:
        """Return the rows of *messages*, for `put`; what cannot be a row raises."""
        ...

    def put(self, rows: Sequence[Any]) -> Sequence[Step]:
        """Return what inserts *rows* into the outbox, in order."""
        ...

    def advance(self, name: str, *, owner: str, due: int, to: int) -> Step:
        """Return what moves a recurring run on: no row means `AlreadyMarked`."""
        ...

    def written(self, rows: Sequence[Any]) -> None:
        """Hear that *rows* of the outbox have been committed, and tell who relays."""
        ...
