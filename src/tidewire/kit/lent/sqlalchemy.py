"""SQLAlchemy's engines and session makers as lenders: a unit is one session, on the user's own pool.

The session takes its connection at its first statement. It is watched: what would end the transaction under the
unit's feet is refused, and what comes after the unit's end writes nothing.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, MutableMapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, nullcontext
from typing import Any
from urllib.parse import quote
from weakref import WeakKeyDictionary

from tidewire.errors import TransactionClosed, TransactionControl
from tidewire.kit.handles import AsyncSql, async_handle, sync_handle
from tidewire.kit.lent.meaning import is_consequence
from tidewire.kit.lent.watching import InThread, control, control_in
from tidewire.kit.threads import to_the_end

__all__ = ["AsyncSessions", "Sessions"]

_BUSY_MS = 30_000


class _Maker:
    """What a session maker says of its sessions; see `tidewire.kit.lent.seam.Lender`."""

    eager = False

    def __init__(self, maker: Any) -> None:
        from sqlalchemy import event

        self._maker = maker
        self._watches: WeakKeyDictionary[Any, _Watch] = WeakKeyDictionary()
        if self.url:  # of one connection SQLAlchemy tells no errors
            engine = maker.kw["bind"]
            event.listen(getattr(engine, "sync_engine", engine), "handle_error", self._failed)

    @property
    def url(self) -> str:
        """What the engine was made with, without SQLAlchemy's driver."""
        return _store_url(self._maker)

    @property
    def tx_type(self) -> type:
        """The class of the sessions."""
        made: type = self._maker.class_
        return made

    def _failed(self, context: Any) -> None:
        watch = None if context.connection is None else self._watches.get(context.connection)
        if watch is not None:
            watch.has_failed(context.original_exception)


class AsyncSessions(_Maker):
    """An ``async_sessionmaker``: its units are an ``AsyncSession`` each, for ``async def`` handlers."""

    awaited = True

    @classmethod
    def on(cls, engine: Any) -> AsyncSessions:
        """Return sessions on an ``AsyncEngine``, whose objects can be read after the commit."""
        from sqlalchemy.ext.asyncio import async_sessionmaker

        return cls(async_sessionmaker(engine, expire_on_commit=False))

    def lend(self) -> AsyncLentSession:
        """Return a new session."""
        return AsyncLentSession(self._maker(), self._watches)


class Sessions(_Maker):
    """A ``sessionmaker``: its units are a ``Session`` each, for ``def`` handlers."""

    awaited = False

    @classmethod
    def on(cls, engine: Any) -> Sessions:
        """Return sessions on an ``Engine``, whose objects can be read after the commit."""
        from sqlalchemy.orm import sessionmaker

        return cls(sessionmaker(engine, expire_on_commit=False))

    def lend(self) -> LentSession:
        """Return a new session."""
        return LentSession(self._maker(), self._watches)


class _Session:
    """What a lent session says of itself; see `tidewire.kit.lent.seam.Lent`."""

    def __init__(self, session: Any, watch: _Watch) -> None:
        self._session = session
        self._watch = watch

    @property
    def tx(self) -> Any:
        """The session."""
        return self._session

    @property
    def ended(self) -> str:
        """What the handler ended the transaction with."""
        return self._watch.ended

    @property
    def failed(self) -> BaseException | None:
        """What the last failed statement raised."""
        return self._watch.failed

    @property
    def begun(self) -> bool:
        """Whether anything has been asked of the session, or given to it."""
        return bool(self._session.in_transaction())

    async def begin(self) -> None:
        """Nothing: the session does, when it needs to."""

    def in_thread(self) -> AbstractContextManager[None]:
        """Nothing: the session is no thread's."""
        return nullcontext()


class AsyncLentSession(_Session):
    """See `tidewire.kit.lent.seam.Lent`."""

    def __init__(self, session: Any, watches: MutableMapping[Any, _Watch]) -> None:
        super().__init__(session, _Watch(session.sync_session, watches, threads=False))

    async def sql(self) -> AsyncSql:
        """Write what the session has pending, and return its transaction."""
        await self._session.flush()
        handle = async_handle(self._session)
        assert handle is not None
        return await handle.begun()

    async def commit(self) -> None:
        """Commit the session and close it."""
        with self._watch.ours():
            await self._session.commit()
        await self.rollback()

    async def rollback(self) -> None:
        """Close the session, which rolls back what is open."""
        self._watch.close()
        await self._session.close()


class LentSession(_Session):
    """See `tidewire.kit.lent.seam.Lent`. What the runtime does with it happens in a thread of its own.

    Of its own, because in a pool of threads those that wait for a lock would keep out the one that is to release it.
    """

    def __init__(self, session: Any, watches: MutableMapping[Any, _Watch]) -> None:
        super().__init__(session, _Watch(session, watches, threads=True))
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="tidewire-unit")

    async def sql(self) -> AsyncSql:
        """Write what the session has pending, and return its transaction."""
        return await to_the_end(self._flushed, executor=self._thread)

    async def commit(self) -> None:
        """Commit the session and close it."""
        await to_the_end(self._commit, executor=self._thread)
        await self.rollback()

    async def rollback(self) -> None:
        """Close the session, which rolls back what is open, when no statement of a thread runs in it."""
        await to_the_end(self._close, executor=self._thread)
        self._thread.shutdown(wait=False)

    def _flushed(self) -> AsyncSql:
        self._session.flush()
        handle = sync_handle(self._session)
        assert handle is not None
        return InThread(handle.begun(), self._thread)

    def _commit(self) -> None:
        with self._watch.ours():
            self._session.commit()

    def _close(self) -> None:
        self._watch.close()
        self._session.close()


class _Watch:
    """Keeps a session's one transaction for its unit: nobody else ends it, and nothing comes after its end.

    Into *watches* it puts itself under the connection of its session. Where *threads* run statements, one of a handler
    that has outlasted its time may be under way when the unit ends.
    """

    def __init__(self, session: Any, watches: MutableMapping[Any, _Watch], *, threads: bool) -> None:
        from sqlalchemy import event

        self.ended = ""
        self.failed: BaseException | None = None
        self._listen: Callable[..., None] = event.listen
        self._ours = False
        self._closed = False
        self._watches = watches
        self._threads = threads
        self._running = threading.Lock()
        self._runs_in = 0
        self._listen(session, "after_begin", self._begun)

    def ours(self) -> _Watch:
        """Return a block in which the transaction may end."""
        return self

    def __enter__(self) -> None:
        self._ours = True

    def __exit__(self, *raised: object) -> None:
        self._ours = False

    def close(self) -> None:
        """Let nothing more be written, once what a thread is writing has been."""
        with self._running:
            self._closed = True

    def _begun(self, session: Any, transaction: Any, connection: Any) -> None:
        if transaction.nested:
            return
        try:
            self._check()
        except (TransactionClosed, TransactionControl):
            connection.close()
            raise
        self._listen(connection, "commit", self._on_commit)
        self._listen(connection, "rollback", self._on_rollback)
        self._listen(connection, "before_cursor_execute", self._before_statement)
        self._watches[connection] = self
        if self._threads:
            self._listen(connection, "after_cursor_execute", self._after_statement)
        if connection.dialect.name == "sqlite" and not connection.connection.driver_connection.in_transaction:
            connection.exec_driver_sql(f"PRAGMA busy_timeout={_BUSY_MS}")
            with self.ours():  # at once as a writer: one who has read cannot become one while others write
                connection.exec_driver_sql("BEGIN IMMEDIATE")

    def _check(self) -> None:
        if self._closed:
            raise TransactionClosed("this unit has ended", hint="use context.tx only while its handler runs")
        if self.ended:
            raise control(self.ended)

    def _on_commit(self, connection: Any) -> None:
        if not self._ours:
            self.ended = "COMMIT"
            connection.connection.dbapi_connection.rollback()  # SQLAlchemy takes it for committed from here on
            raise control("COMMIT")

    def _on_rollback(self, connection: Any) -> None:
        if not self._closed:
            self.ended = self.ended or "ROLLBACK"

    def _before_statement(self, connection: Any, cursor: Any, statement: str, *rest: object) -> None:
        if self._threads:
            self._running.acquire()
            self._runs_in = threading.get_ident()
        word = "" if self._ours else control_in(statement)
        try:
            self._check()
            if word:
                self.ended = word
                raise control(word)
        except (TransactionClosed, TransactionControl):
            self.ran()
            raise

    def _after_statement(self, *what: object) -> None:
        self.ran()

    def has_failed(self, error: BaseException) -> None:
        """The statement that runs has raised *error*."""
        if not is_consequence(error):
            self.failed = error
        self.ran()

    def ran(self) -> None:
        """The statement of this thread has ended."""
        if self._runs_in == threading.get_ident():
            self._runs_in = 0
            self._running.release()


def _store_url(maker: Any) -> str:
    bind = maker.kw.get("bind")
    if bind is None:
        return ""
    url = bind.url
    if url.get_backend_name() != "sqlite":
        rendered: str = url.set(drivername=url.get_backend_name()).render_as_string(hide_password=False)
        return rendered
    return f"sqlite:///{quote(os.path.abspath(url.database))}" if url.database else ""
