"""One broker in a PostgreSQL database, as this process has it open: the log's home there."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Any, TypeVar

import msgspec
import psycopg

from tidewire.clock import SystemClock
from tidewire.errors import TransportClosed, TransportError, TransportUnavailable
from tidewire.kit.postgres.place import PostgresPlace
from tidewire.kit.sqllog.home import Connection, Doubtful, Listen
from tidewire.model import Message
from tidewire.protocols import Clock
from tidewire.transports.postgres.beside import Beside
from tidewire.transports.postgres.clock import DatabaseClock
from tidewire.transports.postgres.dialect import translator
from tidewire.transports.postgres.reader import Reader
from tidewire.transports.postgres.schema import channel, turn_key
from tidewire.transports.postgres.session import ERRORS, Farewell, Limits, Line, Session

__all__ = ["PostgresHome"]

T = TypeVar("T")
_NAME_BYTES_MAX = 1_000
_NOTICE_BYTES_MAX = 7_000
_PAUSE = 0.1
_CLEAN_EVERY, _FORGOTTEN_US = 3_600 * 1_000_000_000, 24 * 3_600 * 1_000_000
_LOCKED = "55P03"
_NOW = "(extract(epoch FROM clock_timestamp()) * 1000000)::bigint"


class Notice(msgspec.Struct, array_like=True, gc=False):
    """What one process tells the others: who it is, what it touched (None: look everywhere), whose members changed."""

    sender: str
    topics: list[int] | None = None
    subs: list[int] | None = None
    group: str | None = None


_encode = msgspec.json.Encoder().encode
_decode = msgspec.json.Decoder(Notice).decode


class PostgresHome:
    """See `tidewire.kit.sqllog.home.Home`. The write turn is an advisory lock that ends with its transaction.

    It is taken before anything is read or numbered, and PostgreSQL releases it after the commit can be seen: rows are
    numbered in the order of their commits, so whoever has read up to a row has missed none before it.
    """

    def __init__(self, place: PostgresPlace, *, name: str, ticks: Clock | None, limits: Limits) -> None:
        self.place = place
        self.what = f"broker {place.shown}"
        self.boot = "postgresql"
        self.address = name
        self.refusal: Callable[[Message], str | None] | None = refusal
        self._ticks = ticks or SystemClock()
        self._clock = DatabaseClock(self._ticks)
        self.clock: Clock = self._clock
        self._limits = limits
        self._process = os.getpid()
        self._translated = translator(self.table)
        self._farewell = Farewell()
        self._line = self._new_line()
        self._beside = Beside(self._new_line())
        self._reader: Reader | None = None
        self._listen: Listen | None = None
        self._turn = 0
        self._clean_at = 0
        self._begin = f"BEGIN; SELECT pg_advisory_xact_lock({turn_key(place)}); SELECT {_NOW}"
        self._writer = self.table("writer")
        self._channel = channel(place)
        self._notices: list[str] = []
        ours = "c.sub = $1::bigint AND c.lane = $2::bigint AND c.epoch = $3::bigint AND c.owner = $4::text"
        # What was settled above the cursor is what a member that takes the lane passes over.
        self.settle_sql = (
            f"INSERT INTO {self.table('above')} (sub, lane, seq, settled, attempt, suspect, due) "
            f"SELECT c.sub, c.lane, s.seq, 1, 1, 0, 0 FROM {self.table('cursor')} c, unnest($5::bigint[]) AS s (seq) "
            f"WHERE {ours} ON CONFLICT (sub, lane, seq) DO UPDATE SET settled = 1"
        )
        self.settle_private_sql = (
            f"DELETE FROM {self.table('inbox')} i USING {self.table('cursor')} c "
            f"WHERE {ours} AND i.seq = ANY($5::bigint[])"
        )

    def table(self, name: str) -> str:
        """Return the qualified name of a table of the broker's."""
        return self.place.named(f"broker_{name}")

    def check_usable(self) -> None:
        """Raise in a forked child: a connection does not survive ``fork``."""
        if os.getpid() != self._process:
            raise TransportClosed(f"{self.what} was opened before fork()", hint="open it in the process that uses it")

    def begin(self) -> Session:
        """Connect, and hear the database's clock; blocks.

        Raises:
            TransportUnavailable, TransportRefused: we cannot.
        """
        session = self._line.connected()
        self._clock.hear(session.script(f"SELECT {_NOW}")[0][0])
        return session

    def hear_others(self) -> None:
        """Begin to read and to listen; on the event loop."""
        self._reader = Reader(self._new_line(), self._channel, self._heard)

    def listen(self, heard: Listen) -> None:
        """Hear the notices of other processes."""
        self._listen = heard

    async def read(self, sql: str, parameters: Sequence[Any] = (), /) -> list[Any]:
        """Run a query on the reader's thread."""
        assert self._reader is not None, "a home that is not open"
        return await self._reader.run(lambda session: session.execute(sql, parameters).fetchall())

    async def beside(self, job: Callable[[Connection], T], /) -> T:
        """Run *job* on a thread of its own."""
        return await self._beside.run(job)

    async def identity(self) -> str:
        """Tell when the first of the tables was made, to the microsecond: that goes along with a failover."""
        made = f"SELECT (extract(epoch FROM min(at)) * 1000000)::bigint FROM {self.table('schema')}"
        ((at,),) = await self.read(made)
        return f"postgresql:{at}"

    async def tell_members(self, group: str) -> None:
        """Send a notice."""
        notice = _encode(Notice(self.address, [], [], group)).decode()
        assert self._reader is not None, "a home that is not open"
        await self._reader.run(lambda session: session.execute("SELECT pg_notify(?, ?)", (self._channel, notice)))

    def leave(self) -> None:
        """Make no connection any more, and wait for no answer longer than a moment."""
        self._farewell.begin()

    def close(self) -> None:
        """Close everything that the writer has not; blocks."""
        self._beside.close()
        if self._reader is not None:
            self._reader.close()
        self._line.drop()

    def _new_line(self) -> Line:
        return Line(self.place, self._translated, self._limits, self._farewell)

    def _heard(self, payload: str | None) -> None:
        if self._listen is None:
            return
        if payload is None:
            self._listen(None, None, members=True)
            return
        try:
            notice = _decode(payload)
        except msgspec.DecodeError:  # somebody else's word on our channel
            notice = Notice("", None, None, "")
        if notice.sender != self.address:
            topics, subs = (None if found is None else set(found) for found in (notice.topics, notice.subs))
            self._listen(topics, subs, members=notice.group is not None)

    # --- on the writer thread -----------------------------------------------------------------------------------

    def write(self, work: Callable[[Connection], T], /) -> T:
        """Run *work* in the write turn. A connection that breaks before the commit costs a second try."""
        for last in (False, True):
            session = self._line.connected()
            try:
                self._begun(session)
                result = work(session)
            except psycopg.Error as error:
                if not session.has_lost(error):
                    self._undone(session)
                    raise ERRORS.typed(self.what, error) from error
                self._line.drop()
                if last:
                    raise ERRORS.lost(self.what, error) from None
                continue
            except BaseException:
                self._undone(session)
                raise
            if self._committed(session):
                return result
        raise TransportUnavailable(f"{self.what}: the connection was lost again and again")

    def announce(self, connection: Connection, *, topics: set[int], subs: set[int]) -> None:
        """Let the commit carry a notice."""
        notice = _encode(Notice(self.address, [*topics], [*subs]))
        if len(notice) > _NOTICE_BYTES_MAX:
            notice = _encode(Notice(self.address))
        self._notices = [notice.decode()]

    def tell(self, topics: set[int], subs: set[int]) -> None:
        """Others have been told by the commit itself."""

    def make_room(self, error: Exception) -> bool:
        """There is no reserve: the server's disk is its operator's."""
        return False

    def rest(self, lull: Callable[[], bool]) -> None:
        """The server cleans up by itself."""

    def upkeep(self) -> None:
        """Now and then forget the rows of writers that died; one that lives writes its own again."""
        session = self._line.session
        if session is None or self._ticks.ticks() < self._clean_at:
            return
        self._clean_at = self._ticks.ticks() + _CLEAN_EVERY
        try:
            session.script(f"DELETE FROM {self._writer} WHERE at < {self.clock.now_us() - _FORGOTTEN_US}")
        except psycopg.Error:  # it goes with a later one
            self._line.drop()

    def stop(self) -> None:
        """Forget the writer's row, and close."""
        session = self._line.session
        with suppress(psycopg.Error):  # whoever comes here with a lost connection has nothing to forget
            if session is not None:
                session.script(f"DELETE FROM {self._writer} WHERE name = '{self.address}'")
        self._line.drop()

    def _begun(self, session: Session) -> None:
        session.wrote = False
        self._notices = []
        try:
            self._clock.hear(session.script(self._begin)[0][0])
        except psycopg.errors.LockNotAvailable:
            self._undone(session)
            raise TransportUnavailable(
                f"{self.what}: another process has been writing for {self._limits.turn:g} s",
                hint="pg_locks names who holds the advisory lock",
            ) from None

    def _undone(self, session: Session) -> None:
        try:
            session.script("ROLLBACK")
        except psycopg.Error:
            self._line.drop()

    def _committed(self, session: Session) -> bool:
        """Commit; False if the connection broke and the transaction has no effect.

        Raises:
            Doubtful: it broke, and nobody can be asked.
        """
        if not session.wrote:
            self._undone(session)
            return True
        self._turn += 1
        token = (
            f"INSERT INTO {self._writer} AS w (name, turn, at) VALUES ('{self.address}', {self._turn}, "
            f"{self.clock.now_us()}) ON CONFLICT (name) DO UPDATE SET turn = excluded.turn, at = excluded.at; "
        )
        notices = "".join(f"SELECT pg_notify('{self._channel}', '{notice}'); " for notice in self._notices)
        try:
            session.script(f"{token}{notices}COMMIT")
        except psycopg.Error as error:
            if not session.has_lost(error):
                self._undone(session)
                raise ERRORS.typed(self.what, error) from error
            self._line.drop()
            return self._stands(self._turn)
        return True

    def _stands(self, turn: int) -> bool:
        """Ask, when the write turn is ours again, whether the commit of *turn* stands: until then it may be going on.

        Raises:
            Doubtful: the server does not answer in time.
        """
        deadline = self._ticks.ticks() + int(self._limits.doubt * 1e9)
        while True:
            try:
                session = self._line.connected()
                self._begun(session)
                rows = session.script(f"SELECT turn FROM {self._writer} WHERE name = '{self.address}'; ROLLBACK")
            except (TransportError, psycopg.Error):
                self._line.drop()
                if self._ticks.ticks() > deadline or self._farewell.wait(_PAUSE):
                    raise Doubtful(f"{self.what}: the connection was lost while it was written to") from None
                continue
            return bool(rows) and rows[0][0] == turn


def refusal(message: Message) -> str | None:
    """Say why PostgreSQL cannot hold *message*, whose id and source stand in indexes, or return None."""
    for what, text in (("id", message.id), ("source", message.source)):
        if len(text) > _NAME_BYTES_MAX // 4 and len(text.encode()) > _NAME_BYTES_MAX:
            return f"its {what} is longer than {_NAME_BYTES_MAX} bytes"
    return None
