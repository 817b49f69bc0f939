"""The ground of files: the embedded broker and SQLite stores, as they are, shared by the processes of one machine.

The product's threads are strands, its datagrams between processes are calls, and what the operating system does for a
process that dies (locks dropped, transactions rolled back) is done here. Files lie in memory where the system has a
place for that: what a power loss does to a disk is another test's subject.
"""

from __future__ import annotations

import asyncio
import contextvars
import os
import shutil
import sqlite3
import sys
from collections.abc import AsyncGenerator, Callable, Iterable, Sequence
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from datetime import timedelta
from pathlib import Path
from types import ModuleType
from typing import Any
from uuid import UUID

import msgspec

from tidewire.kit import flock, sqlite_file
from tidewire.model import Mark
from tidewire.runtime.parts import Parts
from tidewire.runtime.producer import transaction
from tidewire.stores.sqlite import open_sqlite_store
from tidewire.stores.sqlite import store as storing
from tidewire.testing.simulation.checkers import History, Op
from tidewire.testing.simulation.clock import SimClock, SimIds
from tidewire.testing.simulation.hosts import BrokerHost, StoreHost
from tidewire.testing.simulation.loop import Process, SimLoop, current_process
from tidewire.testing.simulation.places import place_for_files
from tidewire.testing.simulation.power import Disk, open_files
from tidewire.testing.simulation.shop import Book, Effect
from tidewire.testing.simulation.strands import Blocked, Threading
from tidewire.testing.simulation.weather import Weather
from tidewire.transports.sqlite import home, open_sqlite_transport

__all__ = ["SqliteGround"]

_WITH_THREADS = ("tidewire.kit.", "tidewire.transports.sqlite.", "tidewire.stores.sqlite.")
_AGAIN = 0.05
_LOOK_EVERY = 0.05
_encode = msgspec.json.Encoder().encode
_decode = msgspec.json.Decoder(Effect).decode


class SqliteBook:
    """Rows in a table of the service's own file."""

    async def begin(self, tx: Any) -> None:
        """Take the turn."""
        await tx.fetchone("SELECT 1")

    async def write(self, tx: Any, row: Effect) -> None:
        """Write a row; the same row again is the same row."""
        await tx.execute("INSERT OR REPLACE INTO effect (number, row) VALUES (?, ?)", (row.number, _encode(row)))


class _Wakers:
    """Who can be reached by a datagram, by address."""

    def __init__(self, loop: SimLoop) -> None:
        self._loop = loop
        self._there: dict[str, tuple[Callable[[bytes], None], contextvars.Context]] = {}

    def open(self, name: str, on_wake: Callable[[bytes], None]) -> _Waker:
        """Return a waker for the process that asks."""
        self._there[name] = (on_wake, contextvars.copy_context())
        _at_death(lambda: self.close(name))
        return _Waker(self, name)

    def send(self, addresses: Iterable[str], what: bytes) -> None:
        """Wake *addresses*, in any order of arrival; a datagram may be lost."""
        for address in sorted(addresses):
            if address in self._there and self._loop.chance.random() < 0.95:
                on_wake, context = self._there[address]
                self._loop.call_later(self._loop.latency(0.005), on_wake, what, context=context)

    def close(self, name: str) -> None:
        """Forget a process."""
        self._there.pop(name, None)


class _Waker:
    """What `tidewire.transports.sqlite.wake.Waker` is, without a socket."""

    def __init__(self, wakers: _Wakers, address: str) -> None:
        self.address = address
        self._wakers = wakers

    def send(self, addresses: Iterable[str], what: bytes) -> None:
        """Wake *addresses*."""
        self._wakers.send(addresses, what)

    def close(self) -> None:
        """Stop listening."""
        self._wakers.close(self.address)


class SqliteGround:
    """One directory with a broker's file and the services' files; one machine, with one clock.

    With *power* the machine can lose its power; the files that survive are in a new directory then, since the dead
    still have the old ones open.
    """

    def __init__(self, loop: SimLoop, *, power: bool = False) -> None:
        self.loop = loop
        self.book: Book = SqliteBook()
        self.clock = SimClock(loop)
        self._place = place_for_files()
        self._boots = 0
        self._disk: Disk | None = None
        self._power = power
        self._weather: Weather | None = None
        self._inspector: Any = None
        self._stack = AsyncExitStack()
        self._graves: list[object] = []
        self._names: list[str] = []
        self._noted: tuple[History, Callable[[], int]] | None = None
        self.directory = self._boot()
        _install(loop, self)

    def boot_id(self) -> str:
        """Return what tells this start of the machine from the others."""
        return f"boot {self._boots}"

    def _boot(self, files: Iterable[tuple[str, bytes]] = ()) -> Path:
        """Start the machine with *files*."""
        self._boots += 1
        self.clock.booted = self.loop.now
        directory = self._place / str(self._boots)
        directory.mkdir()
        for name, data in files:
            (directory / name).write_bytes(data)
        opening: Any = sqlite_file
        opening.os = os
        if self._power:
            self._disk = Disk(directory, self.loop.chance)
            self._disk.watch(sqlite_file, self.is_full)
        else:
            open_files(sqlite_file, self.is_full)
        return directory

    def is_full(self) -> bool:
        """Whether the disk has no room now."""
        weather = self._weather
        return weather is not None and weather.strikes("disk full", weather.faults.full)

    def power_loss(self) -> None:
        """Start the machine again with what the disk has kept."""
        assert self._disk is not None, "this ground was told that it would keep its power"
        self.directory = self._boot(self._disk.survivors())
        self._graves.append((self._inspector, self._stack))  # nothing of it is closed
        self._inspector, self._stack = None, AsyncExitStack()

    async def prepare(self) -> None:
        """Open the transport of nobody's, unless it is open."""
        if self._inspector is not None:
            return
        path = self.directory / "broker.db"
        self._inspector = await self._stack.enter_async_context(
            open_sqlite_transport(path, clock=self.clock, ids=SimIds(self.loop.chance))
        )

    @property
    def broker(self) -> BrokerHost:
        """The broker."""
        return self

    @property
    def stores(self) -> StoreHost:
        """The stores."""
        return _Stores(self)

    @property
    def inspector(self) -> Any:
        """A transport of nobody's."""
        return self._inspector

    def clock_of(self, process: Process) -> SimClock | None:
        """All processes run on one machine."""
        return self.clock

    def repeat(self, draw: float) -> bool:
        """This broker hands nothing out twice by itself."""
        return False

    def under(self, weather: Weather) -> None:
        """What goes wrong happens on the wire, and where the disk is full."""
        self._weather = weather

    @asynccontextmanager
    async def open(self, process: Process, parts: Parts) -> AsyncGenerator[Any]:
        """Open the broker's file for *process*."""
        path = self.directory / "broker.db"
        async with open_sqlite_transport(path, clock=self.clock, ids=parts.ids) as transport:
            yield transport

    @asynccontextmanager
    async def open_store(self, name: str) -> AsyncGenerator[Any]:
        """Open a service's file; whoever is in the way of that is waited for."""
        if name not in self._names:
            self._names.append(name)
        async with AsyncExitStack() as stack:
            while True:
                try:
                    store = await stack.enter_async_context(
                        open_sqlite_store(self.directory / f"{name}.db", clock=self.clock)
                    )
                    break
                except Blocked:
                    await asyncio.sleep(_AGAIN)
            async with transaction(store) as tx:
                await tx.execute("CREATE TABLE IF NOT EXISTS effect (number INTEGER PRIMARY KEY, row BLOB)")
            if self._noted is not None:
                lanes: Any = store.lanes
                lanes.adopt = _adopting(lanes.adopt, *self._noted)
            yield store

    def listen(self, history: History, number: Callable[[], int]) -> None:
        """Note the adoption of lanes."""
        self._noted = (history, number)

    async def pending(self) -> Sequence[str]:
        """Return the stores with something in their outbox."""
        return [name for name in self._names if (await self.outbox(name))[0]]

    async def outbox(self, name: str) -> tuple[int, int]:
        """Return the counts of an outbox."""
        found = self._query(name, _OUTBOX)
        return (found[0][0] + found[0][1], found[0][2]) if found else (0, 0)

    async def stuck(self, name: str) -> Sequence[tuple[bytes, str]]:
        """Return what is quarantined."""
        return self._query(name, "SELECT payload, detail FROM tidewire_outbox_refused ORDER BY row")

    def store(self, name: str) -> Any:
        """Return the path of a store's file."""
        return self.directory / f"{name}.db"

    async def rows(self, name: str) -> Sequence[Effect]:
        """Return the rows."""
        return [_decode(row[0]) for row in self._query(name, "SELECT row FROM effect ORDER BY number")]

    async def marks(self, name: str) -> Sequence[Mark]:
        """Return the marks."""
        return [
            Mark(group, handler, run, source, _unpacked(event_id))
            for group, handler, run, source, event_id in self._query(name, _MARKS)
        ]

    async def close(self) -> None:
        """Close what is open and remove the directory."""
        await self._stack.aclose()
        shutil.rmtree(self._place, ignore_errors=True)

    def _query(self, name: str, sql: str) -> list[Any]:
        path = self.directory / f"{name}.db"
        if not path.exists():
            return []
        connection = sqlite3.connect(f"file:{path}?mode=ro", uri=True)
        try:
            return connection.execute(sql).fetchall()
        finally:
            connection.close()


class _Stores:
    """The stores of a ground of files."""

    def __init__(self, ground: SqliteGround) -> None:
        self._ground = ground

    def open(self, name: str, process: Process) -> Any:
        """Open a store."""
        return self._ground.open_store(name)


def _install(loop: SimLoop, ground: SqliteGround) -> None:
    """Give the product's modules the threads, datagrams and files of *loop*. For the rest of this OS process."""
    threads = Threading(loop)
    files: Any = sqlite_file
    real: Any = _REAL

    def connect(path: Path, mode: str) -> sqlite3.Connection:
        connection: sqlite3.Connection = real["connect"](path, mode)
        _at_death(lambda: _rolled_back(connection))
        return connection

    def turn(path: Path) -> flock.WriteTurn:
        made = _Turn(path)
        _at_death(made.close)
        return made

    for name, module in list(sys.modules.items()):
        if name.startswith(_WITH_THREADS) and isinstance(vars(module).get("threading"), (ModuleType, Threading)):
            vars(module)["threading"] = threads
    files._connect = connect
    files.WriteTurn = turn
    housing: Any = home
    housing.Waker = _Wakers(loop).open
    stores: Any = storing
    housing.boot_id = stores.boot_id = ground.boot_id


class _Turn(flock.WriteTurn):
    """A write turn whose waiting looks less often: virtual time costs nothing, a look does."""

    def acquire(self, longest: timedelta = timedelta(seconds=30)) -> bool:
        """As `WriteTurn.acquire`."""
        inside: Any = self
        rest = longest.total_seconds()
        if not inside._inside.acquire(timeout=rest):
            return False
        while not inside._try():
            if rest <= 0:
                inside._leave()
                return False
            inside._idle.wait(_LOOK_EVERY)
            rest -= _LOOK_EVERY
        return True


_REAL: dict[str, Any] = {"connect": vars(sqlite_file)["_connect"]}


def _at_death(act: Callable[[], None]) -> None:
    process = current_process()
    if process is not None:
        process.on_kill.append(act)


def _rolled_back(connection: sqlite3.Connection) -> None:
    with suppress(sqlite3.Error):
        connection.rollback()


def _adopting(adopt: Any, history: History, number: Callable[[], int]) -> Any:
    async def noted(group: str, lane: str, epoch: int) -> int:
        adopted: int = await adopt(group, lane, epoch)
        history.add(Op(f="adopt", group=group, lane=lane, epoch=epoch, number=number()))
        return adopted

    return noted


def _unpacked(event_id: bytes | str) -> str:
    return event_id if isinstance(event_id, str) else str(UUID(bytes=event_id))


_MARKS = """
    SELECT s.grp, s.handler, s.run, s.source, m.event_id
    FROM tidewire_mark AS m JOIN tidewire_scope AS s ON s.id = m.scope
"""
_OUTBOX = """
    SELECT (SELECT count(*) FROM tidewire_outbox), (SELECT count(*) FROM tidewire_outbox_delayed),
           (SELECT count(*) FROM tidewire_outbox_refused)
"""
