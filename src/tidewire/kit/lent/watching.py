"""What lenders share: statements that are not for handlers, and transactions that run in a thread."""

from __future__ import annotations

import re
from collections.abc import Sequence
from concurrent.futures import Executor
from typing import Any

from tidewire.errors import TransactionControl
from tidewire.kit.handles import SyncSql
from tidewire.kit.threads import to_the_end

__all__ = ["InThread", "control", "control_in"]

_SPACE = re.compile(r"(?:[\s;]|--[^\n]*(?:\n|\Z)|/\*.*?\*/)+", re.DOTALL)
_CONTROL = re.compile(
    r"(BEGIN|START|COMMIT|END|ABORT|ROLLBACK(?!\s+(?:TRANSACTION\s+|WORK\s+)?TO)|PREPARE\s+TRANSACTION)\b"
)


class InThread:
    """A transaction of synchronous code whose statements are awaited, each in *thread*."""

    def __init__(self, sql: SyncSql, thread: Executor) -> None:
        self._sql = sql
        self._thread = thread

    @property
    def dialect(self) -> str:
        """The database's name."""
        return self._sql.dialect

    @property
    def connection(self) -> object:
        """The driver's connection."""
        return self._sql.connection

    async def rows(self, sql: str, parameters: Sequence[Any] = ()) -> Sequence[tuple[Any, ...]]:
        """As `tidewire.kit.handles.AsyncSql.rows`."""
        return await to_the_end(lambda: self._sql.rows(sql, parameters), executor=self._thread)


def control_in(statement: str) -> str:
    """Return the word by which *statement* would begin or end the transaction, or nothing."""
    space = _SPACE.match(statement)
    found = _CONTROL.match(statement[space.end() if space else 0 :].upper())
    return found.group(1).split()[0] if found else ""


def control(word: str) -> TransactionControl:
    """Return the error that refuses *word*."""
    return TransactionControl(
        f"{word} is not for handlers: the unit begins, commits and rolls back",
        hint="raise an error to roll back, return to commit; a savepoint undoes a part",
    )
