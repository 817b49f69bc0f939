"""One connection to PostgreSQL for one thread: bounded waits, the log's SQL, and numbers and texts as it wants them."""

from __future__ import annotations

import select
import threading
from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple, TypeVar

import psycopg
from psycopg import RawCursor
from psycopg.abc import Buffer, PQGen
from psycopg.adapt import AdaptersMap
from psycopg.types.numeric import Int8BinaryDumper
from psycopg.types.string import StrBinaryDumper, TextBinaryLoader
from psycopg.waiting import Ready

from tidewire.clock import SystemClock
from tidewire.errors import TransportError, TransportRefused, TransportUnavailable
from tidewire.kit.postgres.errors import PostgresErrors, state_of
from tidewire.kit.postgres.place import PostgresPlace
from tidewire.kit.postgres.text import given, kept
from tidewire.kit.sqllog.home import Rows

__all__ = ["ERRORS", "Limits", "Line", "Session"]

ERRORS = PostgresErrors(TransportUnavailable, TransportRefused)
RV = TypeVar("RV")
_PREPARE_AFTER = 2
_NEVER, _FAREWELL, _SLICE = 1 << 62, 500_000_000, 100
# Shut down, crashed, starting, dropped; a client that stood still in a transaction; a standby now.
_LOST = frozenset({"57P01", "57P02", "57P03", "57P04", "57P05", "25P03", "25006"})
_PAUSE_FIRST, _PAUSE_MAX = 0.05, 2.0


class _KeptDumper(StrBinaryDumper):
    """Writes texts as PostgreSQL can hold them."""

    def dump(self, obj: str) -> Buffer | None:
        """Return *obj*'s bytes."""
        return super().dump(kept(obj))


class _GivenLoader(TextBinaryLoader):
    """Reads what `_KeptDumper` wrote."""

    def load(self, data: Buffer) -> str:
        """Return the text."""
        return given(bytes(data).decode())


_ADAPTERS = AdaptersMap(psycopg.adapters)
# One type for every number and one for every text: a statement is prepared once, whatever is in it.
_ADAPTERS.register_dumper(int, Int8BinaryDumper)
_ADAPTERS.register_dumper(str, _KeptDumper)
_ADAPTERS.register_loader("text", _GivenLoader)


class Limits(NamedTuple):
    """How long what may take, in seconds: waiting for the turn, a statement, a client that stands still in the turn,
    an answer of the server, and finding out what became of a commit whose answer was lost."""

    turn: float = 10.0
    statement: float = 30.0
    idle: float = 5.0
    answer: float = 35.0
    doubt: float = 10.0


class Farewell:
    """When an open broker ends, and how long its threads still wait for answers."""

    def __init__(self) -> None:
        self.ends = _NEVER
        self._begun = threading.Event()

    @property
    def begun(self) -> bool:
        """Whether no connection is made any more."""
        return self._begun.is_set()

    def begin(self) -> None:
        """It ends now."""
        self.ends = min(self.ends, SystemClock().ticks() + _FAREWELL)
        self._begun.set()

    def wait(self, seconds: float) -> bool:
        """Wait until it begins, at most *seconds*; whether it has."""
        return self._begun.wait(seconds)


class Bounded(psycopg.Connection[tuple[Any, ...]]):
    """A connection on which no answer is waited for longer than *answer* seconds, or than a *farewell*; then it is
    closed."""

    answer = 35.0
    farewell: Farewell | None = None

    def wait(self, gen: PQGen[RV], interval: float = 0.0, timeout: float | None = None) -> RV:
        """Run *gen* to its end.

        Raises:
            psycopg.OperationalError: the server says nothing.
        """
        poller = select.poll()
        fd, clock = self.pgconn.socket, SystemClock()
        deadline = clock.ticks() + int(self.answer * 1e9)
        try:
            wants = next(gen)
            while True:
                events = (select.POLLIN if wants & 1 else 0) | (select.POLLOUT if wants & 2 else 0)
                poller.register(fd, events)
                while not (found := poller.poll(_SLICE)):
                    ends = deadline if self.farewell is None else min(deadline, self.farewell.ends)
                    if clock.ticks() >= ends:
                        self.pgconn.finish()
                        raise psycopg.OperationalError("the server did not answer in time")
                happened = found[0][1]  # an error or a hang-up is both
                readable, writable = happened & ~select.POLLOUT, happened & ~select.POLLIN
                wants = gen.send((Ready.R if readable else Ready.NONE) | (Ready.W if writable else Ready.NONE))
        except StopIteration as end:
            value: RV = end.value
            return value


class Facts(NamedTuple):
    """What a server says of itself."""

    read_only: bool
    encoding: str
    fsync: bool
    replicated: bool


class Session:
    """An open connection, in autocommit mode unless somebody begins. See `tidewire.kit.sqllog.home.Connection`."""

    def __init__(self, connection: Bounded, translated: Callable[[str], bytes]) -> None:
        self.connection = connection
        self.facts = Facts(read_only=True, encoding="", fsync=False, replicated=False)
        self.wrote = False
        self._translated = translated

    @property
    def broken(self) -> bool:
        """Whether nothing can be said or asked here any more."""
        return self.connection.closed or self.connection.pgconn.status != psycopg.pq.ConnStatus.OK

    def has_lost(self, error: psycopg.Error) -> bool:
        """Whether *error* ends the session, or should: the server goes down, or takes no writes any more."""
        return self.broken or state_of(error) in _LOST

    def execute(self, sql: str, parameters: Sequence[Any] = (), /) -> Rows:
        """Run one statement of the log's."""
        cursor = self.connection.execute(self._translated(sql), parameters, binary=True)
        if cursor.rowcount > 0 and not sql.startswith("SELECT"):
            self.wrote = True
        return cursor

    def executemany(self, sql: str, parameters: Iterable[Sequence[Any]], /) -> Rows:
        """Run one statement of the log's for each of *parameters*, in few round trips."""
        cursor = self.connection.cursor(binary=True)
        cursor.executemany(self._translated(sql), parameters)
        self.wrote = self.wrote or cursor.rowcount > 0
        return cursor

    def script(self, sql: str) -> list[Any]:
        """Run several statements in one round trip, as they stand; return the rows of the last one that has some."""
        cursor = self.connection.execute(sql.encode())
        rows: list[Any] = []
        while True:
            if cursor.description is not None:
                rows = cursor.fetchall()
            if not cursor.nextset():
                return rows

    def close(self) -> None:
        """Close the connection; twice is harmless."""
        self.connection.close()


class Line:
    """Who has a session of its own and makes it anew when it breaks, not sooner than after a pause that grows."""

    def __init__(
        self, place: PostgresPlace, translated: Callable[[str], bytes], limits: Limits, farewell: Farewell
    ) -> None:
        self.place = place
        self._limits = limits
        self._farewell = farewell
        self._translated = translated
        self._clock = SystemClock()
        self._session: Session | None = None
        self._pause = _PAUSE_FIRST
        self._not_before = 0
        self._why = ""

    @property
    def session(self) -> Session | None:
        """The session, if there is one that works."""
        if self._session is not None and self._session.broken:
            self.drop()
        return self._session

    def connected(self) -> Session:
        """Return a session that works, making one if it may be tried again. Blocks.

        Raises:
            TransportUnavailable: there is none now, or a moment ago there was none.
            TransportRefused: the server does not let us in.
        """
        found = self.session
        if found is not None:
            return found
        if self._farewell.begun:
            raise TransportUnavailable(f"{self.place.shown} is being closed")
        if self._clock.ticks() < self._not_before:
            raise TransportUnavailable(self._why)
        try:
            self._session = connect(self.place, self._translated, limits=self._limits)
            self._session.connection.farewell = self._farewell
        except TransportError as error:
            self._why = error.message
            self._not_before = self._clock.ticks() + int(self._pause * 1e9)
            self._pause = min(2 * self._pause, _PAUSE_MAX)
            raise
        self._pause = _PAUSE_FIRST
        return self._session

    def drop(self) -> None:
        """Close the session, whatever state it is in."""
        if self._session is not None:
            self._session.close()
            self._session = None


def connect(place: PostgresPlace, translated: Callable[[str], bytes], *, limits: Limits) -> Session:
    """Open a session to a server that takes writes. Blocks.

    Raises:
        TransportUnavailable: there is none now.
        TransportRefused: the server does not let us in, or its database cannot hold every text.
    """
    try:
        connection = Bounded.connect(
            place.url,
            autocommit=True,
            context=_ADAPTERS,
            cursor_factory=RawCursor,
            prepare_threshold=_PREPARE_AFTER,
        )
        connection.answer = limits.answer
    except psycopg.Error as error:
        raise ERRORS.connecting(error, place.shown) from None
    session = Session(connection, translated)
    try:
        session.facts = Facts(*session.script(_settings(limits))[0])
        _check(session.facts, place)
    except psycopg.Error as error:
        session.close()
        raise ERRORS.connecting(error, place.shown) from None
    except BaseException:
        session.close()
        raise
    return session


def _settings(limits: Limits) -> str:
    """Return what is said first on a connection: bounds, and what makes a commit durable; and what is asked."""
    return (
        f"SET lock_timeout = {int(limits.turn * 1_000)}; SET statement_timeout = {int(limits.statement * 1_000)}; "
        f"SET idle_in_transaction_session_timeout = {int(limits.idle * 1_000)}; "
        "SET default_transaction_isolation = 'read committed'; "
        "SELECT set_config('synchronous_commit', 'on', false) "
        "WHERE current_setting('synchronous_commit') IN ('off', 'local'); "
        "SELECT pg_is_in_recovery() OR current_setting('transaction_read_only')::bool, "
        "current_setting('server_encoding'), current_setting('fsync')::bool, "
        "current_setting('synchronous_standby_names') != ''"
    )


def _check(facts: Facts, place: PostgresPlace) -> None:
    if facts.read_only:
        raise TransportUnavailable(
            f"{place.shown} is read-only: a standby, or a server that takes no writes",
            hint="name all hosts in the URL, postgresql://user@one,two/database, and the one that writes is found",
        )
    if facts.encoding != "UTF8":
        raise TransportRefused(
            f"{place.shown}: the database is in {facts.encoding}", hint="create one WITH ENCODING 'UTF8'"
        )
