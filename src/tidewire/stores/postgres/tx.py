"""``context.tx`` of the PostgreSQL store: the handles through which users write their own rows in a unit."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Coroutine, Generator, Iterable, Sequence
from contextlib import asynccontextmanager, contextmanager
from typing import Any, TypeVar

from tidewire.errors import TransactionClosed
from tidewire.kit.postgres.wire import Answers, Statement
from tidewire.stores.postgres.control import check_statement
from tidewire.stores.postgres.rows import Row, rows_of
from tidewire.stores.postgres.unit import PostgresUnit

__all__ = ["PostgresTx", "SyncPostgresTx"]

T = TypeVar("T")
_TOGETHER = 500


class PostgresTx:
    """The user's statements in the unit's transaction. Placeholders are ``$1``, ``$2`` …; rows are `Row`.

    Values are turned into parameters and back as psycopg 3 does it, and errors are psycopg's own. As PostgreSQL has
    it, after an error the whole transaction can only be rolled back; `savepoint` marks a part that can be undone.
    """

    __slots__ = ("unit",)

    def __init__(self, unit: PostgresUnit) -> None:
        self.unit = unit

    async def execute(self, sql: str, parameters: Sequence[Any] = ()) -> int:
        """Run one statement and return how many rows it touched, or -1 for one that touches none.

        Raises:
            psycopg.Error: the statement's own fault; the unit cannot commit any more, unless in a `savepoint`.
            TransactionLost: it conflicted with another transaction; the event runs again, uncounted.
            StoreUnavailable: the server's fault; nothing of the unit is stored.
            TransactionControl: it would begin or end a transaction.
            TransactionClosed: the handler has ended.
        """
        return (await self._run([(sql, parameters)])).count()

    async def executemany(self, sql: str, rows: Iterable[Sequence[Any]]) -> int:
        """Run one statement for each of *rows*, without waiting in between, and return how many rows were touched."""
        touched, every = 0, [(sql, parameters) for parameters in rows]
        for start in range(0, len(every), _TOGETHER):
            answers = await self._run(every[start : start + _TOGETHER])
            touched += sum(max(answers.count(index), 0) for index in range(len(answers.results)))
        return touched

    async def fetchall(self, sql: str, parameters: Sequence[Any] = ()) -> list[Row]:
        """Return all rows of a query; errors as `execute`."""
        return rows_of(await self._run([(sql, parameters)]))

    async def fetchone(self, sql: str, parameters: Sequence[Any] = ()) -> Row | None:
        """Return the first row of a query, or None; errors as `execute`."""
        rows = await self.fetchall(sql, parameters)
        return rows[0] if rows else None

    async def fetchval(self, sql: str, parameters: Sequence[Any] = ()) -> Any:
        """Return the first column of the first row, or None; errors as `execute`."""
        row = await self.fetchone(sql, parameters)
        return row[0] if row else None

    @asynccontextmanager
    async def savepoint(self) -> AsyncGenerator[None]:
        """Undo what the block wrote if it raises, and only that; what it raised rises."""
        name = await self.unit.set_savepoint()
        try:
            yield
        except BaseException:
            await self.unit.back_to(name)
            raise
        await self.unit.release(name)

    async def _run(self, statements: Sequence[Statement]) -> Answers:
        for sql, _ in statements:
            check_statement(sql)
        return await self.unit.statements(statements)


class SyncPostgresTx:
    """The same for ``def`` handlers, which run in a thread: no ``await``. A late statement writes nothing."""

    __slots__ = ("_loop", "_tx", "unit")

    def __init__(self, unit: PostgresUnit) -> None:
        self.unit = unit
        self._tx = PostgresTx(unit)
        self._loop = unit.core.loop

    def execute(self, sql: str, parameters: Sequence[Any] = ()) -> int:
        """As `PostgresTx.execute`."""
        return self._wait(self._tx.execute(sql, parameters))

    def executemany(self, sql: str, rows: Iterable[Sequence[Any]]) -> int:
        """As `PostgresTx.executemany`."""
        return self._wait(self._tx.executemany(sql, [*rows]))

    def fetchall(self, sql: str, parameters: Sequence[Any] = ()) -> list[Row]:
        """As `PostgresTx.fetchall`."""
        return self._wait(self._tx.fetchall(sql, parameters))

    def fetchone(self, sql: str, parameters: Sequence[Any] = ()) -> Row | None:
        """As `PostgresTx.fetchone`."""
        return self._wait(self._tx.fetchone(sql, parameters))

    def fetchval(self, sql: str, parameters: Sequence[Any] = ()) -> Any:
        """As `PostgresTx.fetchval`."""
        return self._wait(self._tx.fetchval(sql, parameters))

    @contextmanager
    def savepoint(self) -> Generator[None]:
        """As `PostgresTx.savepoint`."""
        name = self._wait(self.unit.set_savepoint())
        try:
            yield
        except BaseException:
            self._wait(self.unit.back_to(name))
            raise
        self._wait(self.unit.release(name))

    def _wait(self, statement: Coroutine[Any, Any, T]) -> T:
        """Have the event loop run *statement*, and wait for it in this thread."""
        if self._loop.is_closed():
            statement.close()
            raise TransactionClosed("this unit has ended", hint="use context.tx only while its handler runs")
        return asyncio.run_coroutine_threadsafe(statement, self._loop).result()
