"""The seam under the log: what differs between one SQL database and another.

The shared SQL is written once, for SQLite: ``?`` and ``?1`` placeholders, ``max`` of two values, ``instr``. A home for
another database gives connections that translate it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, Protocol, TypeVar

from tidewire.errors import TransportUnavailable
from tidewire.model import Message
from tidewire.protocols import Clock

__all__ = ["Connection", "Doubtful", "Home", "Listen", "Rows"]

T = TypeVar("T")


class Rows(Protocol):
    """What a statement returns."""

    @property
    def rowcount(self) -> int:
        """How many rows were written, by all the parameters of an ``executemany``."""
        ...

    def fetchone(self) -> Any:
        """Return the next row, or None."""
        ...

    def fetchall(self) -> list[Any]:
        """Return the rows that are left."""
        ...

    def __iter__(self) -> Iterator[Any]: ...


class Connection(Protocol):
    """A transaction that is open, or a state that is looked at; for one thread."""

    def execute(self, sql: str, parameters: Sequence[Any] = ..., /) -> Rows:
        """Run one statement."""
        ...

    def executemany(self, sql: str, parameters: Iterable[Sequence[Any]], /) -> Rows:
        """Run one statement for each of *parameters*."""
        ...


class Doubtful(TransportUnavailable):
    """The connection was lost while it committed, and nobody can be asked: the transaction has its effect or none.

    Raised without a cause: none of its jobs may be tried alone.
    """


class Listen(Protocol):
    """Hears of commits elsewhere, on the event loop. None: anything may have been touched."""

    def __call__(self, topics: set[int] | None, subs: set[int] | None, *, members: bool) -> None: ...


class Home(Protocol):
    """The database of one log, as this process has it open. *what* names it in messages.

    *clock* judges what is due and whose lease has ended: one for all who share the log. A lease that was written at
    another *boot* has ended. *address* is where this process is woken; empty where members poll. *refusal*, where there
    is one, says why a message cannot be stored here.
    """

    what: str
    clock: Clock
    boot: str
    address: str
    refusal: Callable[[Message], str | None] | None

    def check_usable(self) -> None:
        """Raise `TransportClosed` in a forked child, and `TransportRefused` where nothing can be trusted any more."""
        ...

    def listen(self, heard: Listen) -> None:
        """Call *heard* for what others commit, from now on."""
        ...

    async def read(self, sql: str, parameters: Sequence[Any] = (), /) -> list[Any]:
        """Return the committed rows of a short query.

        Raises:
            TransportUnavailable, TransportRefused: they cannot be read.
        """
        ...

    async def beside(self, job: Callable[[Connection], T], /) -> T:
        """Run *job* on one committed state, beside everything else. A long search is many jobs.

        Cancelling the wait lets a job that has begun come to its end. Raises as `read`.
        """
        ...

    async def identity(self) -> str:
        """Return what `tidewire.kit.looks.Identified` does; raises as `read`."""
        ...

    async def tell_members(self, group: str) -> None:
        """Let the members of *group* in other processes look who is there."""
        ...

    def leave(self) -> None:
        """We are closing: do not wait long for a database that does not answer."""
        ...

    # --- on the writer thread -----------------------------------------------------------------------------------

    def write(self, work: Callable[[Connection], T], /) -> T:
        """Run *work* in the write turn: one transaction, durable on return.

        Whoever has the turn sees all earlier commits, and rows are numbered in the order of commits.

        Raises:
            TransportUnavailable: it has no effect; without a cause, another transaction would fare no better now.
            Doubtful: it has its effect, or none.
            TransportRefused: it has no effect, and will not have any later.
        """
        ...

    def announce(self, connection: Connection, *, topics: set[int], subs: set[int]) -> None:
        """At the end of a transaction that touches these."""
        ...

    def tell(self, topics: set[int], subs: set[int]) -> None:
        """After a commit that touched these, wake the processes in which somebody reads them."""
        ...

    def make_room(self, error: Exception) -> bool:
        """After *error*, say whether a settle may be tried once more: there is a reserve, and now it is given up."""
        ...

    def rest(self, lull: Callable[[], bool]) -> None:
        """Nothing waits; *lull* waits a moment more, and is false if something came. Clean up if there is need."""
        ...

    def upkeep(self) -> None:
        """About once a second."""
        ...

    def stop(self) -> None:
        """The writer has ended: close its connection."""
        ...
