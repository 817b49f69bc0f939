"""One PostgreSQL connection on the event loop: several statements to a round trip, by libpq's pipeline mode.

psycopg opens the connection and turns values into parameters and back; what it costs to run one statement by its
cursors is more than PostgreSQL needs to execute it, so statements are sent here. ADR 0008 has the figures.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Generator, Sequence
from typing import Any, Protocol, TypeAlias

import psycopg
from psycopg.adapt import PyFormat, Transformer
from psycopg.errors import error_from_result
from psycopg.pq import ConnStatus, ExecStatus, TransactionStatus
from psycopg.pq.abc import PGresult

from tidewire.kit.postgres.text import array_of

__all__ = ["Answers", "Sent", "Statement", "Wire", "connect_wire"]

Statement: TypeAlias = tuple[str, Sequence[Any]]
"""SQL with ``$1`` placeholders, and its parameters."""

_PREPARE_AT = 3
_PREPARED_MAX = 200
_SEEN_MAX = 1_000
# Members of enumerations are looked up once: that takes longer than anything else that is done with a result.
_FINE = frozenset({ExecStatus.COMMAND_OK, ExecStatus.TUPLES_OK, ExecStatus.EMPTY_QUERY})
_SYNC = ExecStatus.PIPELINE_SYNC
_AT_REST = frozenset({TransactionStatus.IDLE, TransactionStatus.UNKNOWN})
_AUTO: dict[int, list[PyFormat]] = {}
_Key: TypeAlias = tuple[str, tuple[int, ...]]

_Encoded: TypeAlias = tuple[_Key, Sequence[Any] | None, Sequence[Any] | None]


class _Converter(Protocol):
    """What psycopg's `Transformer` does with values; its C implementation has no type that checkers can name."""

    @property
    def types(self) -> tuple[int, ...] | None: ...
    @property
    def formats(self) -> Sequence[Any] | None: ...

    def dump_sequence(self, params: Sequence[Any], formats: Sequence[PyFormat], /) -> Sequence[Any]: ...
    def set_pgresult(self, result: PGresult | None, /) -> None: ...
    def load_rows(self, row0: int, row1: int, make_row: Any, /) -> list[Any]: ...


class Answers:
    """What a batch of statements came to: a result for each up to the first that failed, at *failed*, with *error*.

    *lost*: the connection broke before all was answered; what had been sent may have happened or not.
    """

    __slots__ = ("_converter", "error", "failed", "lost", "results")

    def __init__(self, converter: _Converter) -> None:
        self._converter = converter
        self.results: list[PGresult] = []
        self.failed = -1
        self.error: psycopg.Error | None = None
        self.lost = False

    def rows(self, index: int = -1) -> list[tuple[Any, ...]]:
        """Return the rows of one statement."""
        result = self.results[index]
        if not result.nfields:
            return []
        self._converter.set_pgresult(result)
        return self._converter.load_rows(0, result.ntuples, tuple)

    @property
    def committed(self) -> bool:
        """Whether the last statement, a COMMIT, was one: in a failed transaction the server makes it a ROLLBACK."""
        return self.results[-1].command_status == b"COMMIT"

    def skip(self, number: int) -> None:
        """Forget the results of the first *number* statements."""
        del self.results[:number]

    def count(self, index: int = -1) -> int:
        """Return how many rows a statement has touched, or -1 for one that touches none."""
        found = self.results[index].command_tuples
        return -1 if found is None else found


class Sent:
    """Statements on their way. One task at a time may await it, for their answers.

    It may be cancelled: they go on all the same, and *answers* are theirs once they are *answered*. *kinds* holds for
    each command the key that it prepares, or None for one that is a statement.
    """

    __slots__ = ("_loop", "_waiter", "answered", "answers", "kinds", "position")

    def __init__(self, answers: Answers, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._waiter: asyncio.Future[None] | None = None
        self.answers = answers
        self.answered = False
        self.kinds: list[_Key | None] = []
        self.position = 0

    def __await__(self) -> Generator[Any, None, Answers]:
        if not self.answered:
            self._waiter = self._loop.create_future()
            yield from self._waiter
        return self.answers

    def end(self) -> None:
        """All is answered that will be."""
        self.answered = True
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)


class Wire:
    """A connection that is this process's own. Batches are answered in the order in which they were sent.

    A batch is sent at once and ends with a sync: outside a transaction it is one by itself, and after a failure the
    rest of it is skipped by the server. Errors come back in `Answers`; `run` raises only when cancelled, and the batch
    then goes on: `busy` says so.
    """

    def __init__(self, connection: psycopg.AsyncConnection[Any]) -> None:
        self._connection = connection
        self._pg = connection.pgconn
        self._pg.nonblocking = 1
        self._loop = asyncio.get_running_loop()
        self._converter: _Converter = Transformer(connection)
        self._pending: deque[Sent] = deque()
        self._rest: asyncio.Future[None] | None = None
        self._prepared: dict[_Key, bytes] = {}
        self._seen: dict[_Key, int] = {}
        self._count = 0
        self._writing = False
        self._farewell: psycopg.Error | None = None
        connection.add_notice_handler(self._noticed)
        self._pg.enter_pipeline_mode()
        self._socket = self._pg.socket
        self._loop.add_reader(self._socket, self._readable)
        self.alive = True

    @property
    def busy(self) -> bool:
        """Whether something that was sent is not answered yet."""
        return bool(self._pending)

    @property
    def in_transaction(self) -> bool:
        """Whether the server has a transaction open, as of the last answer."""
        return self._pg.transaction_status not in _AT_REST

    @property
    def pid(self) -> int:
        """The server's process that serves this connection."""
        return self._pg.backend_pid

    def parameter(self, name: str) -> str:
        """Return what the server has told of one of its settings, or nothing."""
        return (self._pg.parameter_status(name.encode()) or b"").decode()

    def send(self, statements: Sequence[Statement], *, own: bool = True) -> Sent:
        """Send *statements* now, to be answered together.

        Those of our *own* are prepared at once, and say the type of each list; a user's are prepared when they come
        again and again.

        Raises:
            psycopg.ProgrammingError, psycopg.DataError: a parameter cannot be sent; nothing was.
        """
        answers = Answers(self._converter)
        sent = Sent(answers, self._loop)
        if not self.alive:
            answers.lost = True
            answers.error = self._farewell or psycopg.OperationalError("the connection is closed")
            sent.end()
            return sent
        encoded = [self._encoded(sql, parameters, own) for sql, parameters in statements]
        prepare_at = 1 if own else _PREPARE_AT
        self._pending.append(sent)
        try:
            for key, values, formats in encoded:
                self._send_one(sent, key, values, formats=formats, prepare_at=prepare_at)
            self._pg.pipeline_sync()
        except psycopg.OperationalError as error:
            self._break(error)
            return sent
        self._flush()
        return sent

    async def run(self, *statements: Statement) -> Answers:
        """Send *statements* of our own and return what they came to."""
        return await self.send(statements)

    async def quiet(self, *, patience: float, longest: float) -> bool:
        """Wait until all is answered, and say whether the connection survives. What runs longer than *patience* seconds
        is cancelled; what does not end *longest* seconds later is cut off."""
        if self._pending and not await self._settled(patience):
            try:
                await self._connection.cancel_safe(timeout=longest)
            except psycopg.Error as error:
                self._break(error)
            if self._pending and not await self._settled(longest):
                self._break(psycopg.OperationalError("the server did not end a statement that was cancelled"))
        return self.alive

    def close(self) -> None:
        """Close at once; what is not answered is lost. The server rolls back what was open."""
        self._break(psycopg.OperationalError("the connection was closed by this process"))

    async def _settled(self, longest: float) -> bool:
        if self._pending:
            self._rest = self._rest or self._loop.create_future()
            await asyncio.wait([self._rest], timeout=longest)
        return not self._pending

    def _encoded(
        self, sql: str, parameters: Sequence[Any], own: bool
    ) -> tuple[_Key, Sequence[Any] | None, Sequence[Any] | None]:
        if not parameters:
            return (sql, ()), None, None
        if own and list in map(type, parameters):
            parameters = [_own(value) for value in parameters]
        count = len(parameters)
        automatic = _AUTO.get(count)
        if automatic is None:
            automatic = _AUTO[count] = [PyFormat.AUTO] * count
        values = self._converter.dump_sequence(parameters, automatic)
        return (sql, self._converter.types or ()), values, self._converter.formats

    def _send_one(
        self,
        sent: Sent,
        key: _Key,
        values: Sequence[Any] | None,
        *,
        formats: Sequence[Any] | None,
        prepare_at: int,
    ) -> None:
        pg = self._pg
        name = self._prepared.get(key)
        if name is None and self._is_to_prepare(key, prepare_at):
            if len(self._prepared) >= _PREPARED_MAX:
                oldest = self._prepared.pop(next(iter(self._prepared)))
                pg.send_query_params(b"DEALLOCATE " + oldest, None)
                sent.kinds.append(("", ()))
            self._count += 1
            name = self._prepared[key] = b"tidewire_%d" % self._count
            pg.send_prepare(name, key[0].encode(), key[1] or None)
            sent.kinds.append(key)
        if name is None:
            pg.send_query_params(key[0].encode(), values, key[1] or None, formats)
        else:
            pg.send_query_prepared(name, values, formats)
        sent.kinds.append(None)

    def _is_to_prepare(self, key: _Key, prepare_at: int) -> bool:
        if prepare_at <= 1:
            return True
        seen = self._seen.get(key, 0) + 1
        if len(self._seen) >= _SEEN_MAX:
            self._seen.clear()
        self._seen[key] = seen
        return seen >= prepare_at

    def _flush(self) -> None:
        try:
            rest = self._pg.flush()
        except psycopg.OperationalError as error:
            self._break(error)
            return
        if bool(rest) != self._writing:
            self._writing = bool(rest)
            if rest:
                self._loop.add_writer(self._socket, self._flush)
            else:
                self._loop.remove_writer(self._socket)

    def _readable(self) -> None:
        """Take what has come; called by the loop, also when the server closes an idle connection."""
        pg, pending = self._pg, self._pending
        try:
            pg.consume_input()
            if self._writing:
                self._flush()
            while not pg.is_busy() and pending:  # asked first: that is what reads a farewell
                result = pg.get_result()
                if result is not None:
                    self._take(pending[0], result)
                elif pg.status != ConnStatus.OK:
                    raise psycopg.OperationalError("the server closed the connection")
        except psycopg.OperationalError as error:
            self._break(error)

    def _noticed(self, notice: psycopg.errors.Diagnostic) -> None:
        """Hear why the server ends an idle connection: it says so before it does."""
        if notice.severity_nonlocalized == "FATAL" and notice.sqlstate:
            self._farewell = _error_of(notice.sqlstate, notice.message_primary or "")

    def _take(self, sent: Sent, result: PGresult) -> None:
        status, answers = result.status, sent.answers
        if status == _SYNC:
            self._pending.popleft()
            sent.end()
            if self._rest is not None and not self._pending:
                self._rested()
            return
        key = sent.kinds[sent.position] if sent.position < len(sent.kinds) else None
        sent.position += 1
        if status in _FINE:
            if key is None:
                answers.results.append(result)
            return
        if key is not None:
            self._prepared.pop(key, None)
        if answers.error is None and status != ExecStatus.PIPELINE_ABORTED:
            answers.failed = len(answers.results)
            answers.error = error_from_result(result)
            if status not in (ExecStatus.FATAL_ERROR, ExecStatus.BAD_RESPONSE):  # COPY has no place in a pipeline
                self._break(answers.error)

    def _break(self, error: psycopg.Error) -> None:
        """The connection is of no use any more: everything that waits hears that it is lost."""
        if not self.alive:
            return
        self.alive = False
        self._loop.remove_reader(self._socket)
        if self._writing:
            self._loop.remove_writer(self._socket)
        self._pg.finish()
        self._farewell = error = self._farewell or error
        while self._pending:
            sent = self._pending.popleft()
            sent.answers.lost = True
            if sent.answers.error is None:
                sent.answers.failed = len(sent.answers.results)
                sent.answers.error = error
            sent.end()
        self._rested()

    def _rested(self) -> None:
        """Tell who waits for it that nothing is unanswered any more."""
        rest, self._rest = self._rest, None
        if rest is not None:
            rest.set_result(None)


def _own(value: Any) -> Any:
    return array_of(value) if type(value) is list else value  # pyright: ignore[reportUnknownArgumentType]


def _error_of(sqlstate: str, message: str) -> psycopg.Error:
    try:
        kind = psycopg.errors.lookup(sqlstate)
    except KeyError:
        kind = psycopg.OperationalError
    return kind(message)


async def connect_wire(url: str) -> Wire:
    """Return a new connection to the database at *url*, as libpq reads it.

    Raises:
        psycopg.Error: it cannot be made.
    """
    return Wire(await psycopg.AsyncConnection[Any].connect(url, autocommit=True))
