"""Django's databases as lenders: a unit is one ``atomic`` block on a connection of its own, for ``def`` handlers.

While the handler runs, that connection is its thread's: the ORM uses it without knowing.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Generator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any
from urllib.parse import quote

from tidewire.errors import TransactionClosed
from tidewire.kit.handles import AsyncSql, sync_handle
from tidewire.kit.lent.meaning import is_consequence
from tidewire.kit.lent.watching import InThread, control, control_in
from tidewire.kit.threads import to_the_end

__all__ = ["DjangoDatabase"]

_BUSY_MS = 30_000


class DjangoDatabase:
    """The database of a Django connection. Connections that are no unit's wait to be lent again."""

    awaited = False
    eager = True

    def __init__(self, connection: Any) -> None:
        self.alias: str = connection.alias
        self._settings = connection.settings_dict
        self._vendor = connection.vendor
        self._idle: list[Any] = []

    @property
    def url(self) -> str:
        """What the settings say of the database."""
        told = self._settings
        if self._vendor == "sqlite":
            return f"sqlite:///{quote(os.path.abspath(told['NAME']))}"
        if self._vendor != "postgresql":
            return ""
        user, password = quote(told["USER"] or "", safe=""), quote(told["PASSWORD"] or "", safe="")
        who = f"{user}{':' if password else ''}{password}{'@' if user or password else ''}"
        host = told["HOST"] or ""
        where = f"{quote(host, safe='')}{':' if told['PORT'] else ''}{told['PORT']}" if host else ""
        return f"postgresql://{who}{where}/{quote(told['NAME'] or '')}"

    @property
    def tx_type(self) -> type:
        """Django's class for connections of this vendor."""
        made: object = self._made()
        return type(made)

    def lend(self) -> LentAtomic:
        """Return a connection of its own, whose block has not begun."""
        try:
            wrapper = self._idle.pop()
        except IndexError:
            wrapper = self._made()
            wrapper.inc_thread_sharing()
        return LentAtomic(self.alias, wrapper, self._idle.append)

    def _made(self) -> Any:
        from django.db import connections

        return connections.create_connection(self.alias)


class LentAtomic:
    """See `tidewire.kit.lent.seam.Lent`. What the runtime does with it happens in a thread of its own."""

    def __init__(self, alias: str, wrapper: Any, give: Callable[[Any], None]) -> None:
        self._alias = alias
        self._wrapper = wrapper
        self._give = give
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="tidewire-unit")
        self._atomic: Any = None
        self._closed = False
        self._refused = ""
        self._failed: BaseException | None = None
        self._inside = 0
        self._running = threading.RLock()

    @property
    def tx(self) -> Any:
        """The connection."""
        return self._wrapper

    @property
    def ended(self) -> str:
        """What the handler ended the block with."""
        if self._refused:
            return self._refused
        return "ROLLBACK" if self.begun and (self._wrapper.needs_rollback or not self._wrapper.in_atomic_block) else ""

    @property
    def failed(self) -> BaseException | None:
        """What the last failed statement raised."""
        return self._failed

    @property
    def begun(self) -> bool:
        """Whether the block has begun."""
        return self._atomic is not None

    async def begin(self) -> None:
        """Begin the block; nothing if it has begun."""
        if self._atomic is None:
            await to_the_end(self._begin, executor=self._thread)

    @contextmanager
    def in_thread(self) -> Generator[None]:
        """Make the connection that of this thread."""
        self._inside += 1
        try:
            with self._installed():
                yield
        finally:
            self._inside -= 1

    async def sql(self) -> AsyncSql:
        """Return the block's transaction."""
        await self.begin()
        handle = sync_handle(self._wrapper)
        assert handle is not None
        return InThread(handle.begun(), self._thread)

    async def commit(self) -> None:
        """Leave the block, which commits, and give the connection back."""
        if self._atomic is not None:
            await to_the_end(self._commit, executor=self._thread)
        await self.rollback()

    async def rollback(self) -> None:
        """Leave the block by an error, when no statement of a thread runs in it, and give the connection back."""
        await to_the_end(self._end, executor=self._thread)
        self._thread.shutdown(wait=False)

    def _begin(self) -> None:
        from django.db.transaction import Atomic

        wrapper = self._wrapper
        atomic = Atomic(self._alias, savepoint=True, durable=False)
        with self._installed():
            wrapper.close_if_unusable_or_obsolete()
            if wrapper.vendor == "sqlite":  # at once as a writer: see `tidewire.kit.lent.sqlalchemy`
                wrapper.transaction_mode = "IMMEDIATE"
                with wrapper.cursor() as cursor:
                    cursor.execute(f"PRAGMA busy_timeout={_BUSY_MS}")
            atomic.__enter__()
        self._atomic = atomic
        wrapper.execute_wrappers.append(self._watched)

    def _commit(self) -> None:
        with self._installed(), self._running:
            self._wrapper.execute_wrappers.remove(self._watched)
            self._closed = True
            atomic, self._atomic = self._atomic, None
            atomic.__exit__(None, None, None)

    def _end(self) -> None:
        with self._installed(), self._running:
            self._closed = True
            if self._atomic is not None:
                self._wrapper.execute_wrappers.remove(self._watched)
                atomic, self._atomic = self._atomic, None
                undone = TransactionClosed("rolled back")
                atomic.__exit__(type(undone), undone, None)
            if self._inside or self._refused:
                self._wrapper.close()  # a handler that has outlasted its time still holds it
            elif self._wrapper.connection is not None:
                self._give(self._wrapper)

    @contextmanager
    def _installed(self) -> Generator[None]:
        from django.db import connections

        before = connections[self._alias]
        connections[self._alias] = self._wrapper
        try:
            yield
        finally:
            connections[self._alias] = before

    def _watched(self, execute: Callable[..., Any], sql: Any, params: Any, many: bool, context: Any) -> Any:
        """Run a statement of the handler, or refuse it; see Django's ``execute_wrapper``."""
        from django.db import Error

        with self._running:
            if self._closed:
                raise TransactionClosed("this unit has ended", hint="use the database only while the handler runs")
            if word := control_in(str(sql)):
                self._refused = word
                raise control(word)
            try:
                return execute(sql, params, many, context)
            except Error as error:
                if not is_consequence(error):
                    self._failed = error
                raise
