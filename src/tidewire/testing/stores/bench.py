"""What every case of the store suite stands on: an empty store, a clock that the case moves, and writers elsewhere."""

# ruff: noqa: SIM300  (the expected value stands on the left)

from __future__ import annotations

import asyncio
import contextlib
import sys
from collections.abc import AsyncGenerator, Awaitable, Callable, Sequence
from contextlib import AbstractAsyncContextManager, AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Protocol, TypeVar
from unittest import SkipTest

import msgspec

from tidewire.clock import SystemClock, moment
from tidewire.model import Guard, Mark, Message, Pending, Topic
from tidewire.protocols import Clock, Store, Unit
from tidewire.testing.transports.bench import raises

__all__ = [
    "LEASE",
    "Bench",
    "MovedClock",
    "Parts",
    "Rows",
    "Site",
    "Writer",
    "ids",
    "mark_of",
    "message",
    "outcome",
    "raises",
    "steps",
]

T = TypeVar("T")
_PROGRAM = """
import json, sys
path, prefix, number, *elsewhere = sys.argv[1:]
sys.path[:] = json.loads(path)
from tidewire.testing.stores.writer import serve
serve(prefix, int(number), elsewhere=elsewhere)
"""
LEASE = timedelta(milliseconds=400)
"""How long leases last in the suite; only a store with a time of its own makes the suite wait for it."""


class Rows(Protocol):
    """The user's own table in the store under test: one text to a row, each at most once."""

    async def prepare(self, store: Store) -> None:
        """Make the table; nothing if it is there."""
        ...

    async def insert(self, unit: Unit, name: str) -> None:
        """Insert a row through the unit's `tx`; the database's own error where *name* is there already."""
        ...

    def insert_now(self, unit: Unit, name: str) -> None:
        """The same through `sync_tx`, without ``await``, after `begin`; called from other threads too."""
        ...

    async def names(self, store: Store) -> Sequence[str]:
        """Return what is committed, in any order. Called while no unit is open."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Site:
    """One store, empty and the case's own; *open* makes a connection to it each time, on the clock that it is given.

    *own_time*: leases and due times are judged by the database's clock, which nobody here can move; then cases wait
    instead. *shared*: two connections that are open at once see each other's commits. *durable*: what is
    committed outlives the last connection, and a process that is killed. *partitioned*: several relays read the outbox
    at the same time, each its share of it; else one reads all. *elsewhere* names, for a store that is both shared and
    durable, how another process gets this site: a function ``module:function`` and its arguments. *patience* is how
    many seconds what must happen may take; only a case that fails waits so long.
    """

    open: Callable[[Clock], AbstractAsyncContextManager[Store]]
    rows: Rows
    own_time: bool = False
    shared: bool = False
    durable: bool = False
    partitioned: bool = False
    elsewhere: tuple[str, ...] | None = None
    patience: float = 8.0


class MovedClock(SystemClock):
    """The machine's clocks, moved: *passed* moves both of them on, *wrong* moves the wall time alone."""

    def __init__(self) -> None:
        self.passed = timedelta(0)
        self.wrong = timedelta(0)

    def now(self) -> datetime:
        """Return the moved wall time."""
        return moment(self.now_us())

    def now_us(self) -> int:
        """Return the moved wall time in microseconds."""
        return super().now_us() + (self.passed + self.wrong) // timedelta(microseconds=1)

    def ticks(self) -> int:
        """Return the moved ticks."""
        return super().ticks() + self.passed // timedelta(microseconds=1) * 1_000


class Bench:
    """One case's place: the first connection is open as *store*, and the user's table is there."""

    def __init__(self, site: Site, store: Store, *, clock: MovedClock, stack: AsyncExitStack) -> None:
        self.site = site
        self.store = store
        self.clock = clock
        self._stack = stack

    # --- what the site can ------------------------------------------------------------------------------------

    def need(self, **capabilities: bool) -> None:
        """Skip unless each named property of the site is true; the text names the one that is not."""
        for name, holds in capabilities.items():
            if not holds:
                raise SkipTest(f"capability {name} is False")

    async def connect(self) -> Store:
        """Return a second connection to the same store, open until the case ends; skips where there is none."""
        self.need(shared=self.site.shared)
        return await self._stack.enter_async_context(self.site.open(self.clock))

    async def stranger(self) -> Store:
        """Return a store whose units are not those of `store`: another connection, or another store altogether.

        Ask for it before a unit is open: opening may wait for whoever writes.
        """
        return await self._stack.enter_async_context(self.site.open(self.clock))

    async def reopen(self) -> None:
        """Close every connection and open the first one anew; skips where nothing would be left."""
        self.need(durable=self.site.durable)
        await self._stack.aclose()
        self.store = await self._stack.enter_async_context(self.site.open(self.clock))

    async def write_elsewhere(self, prefix: str, number: int = 0) -> Writer:
        """Start a process that commits *number* units (0: until it is killed); see `Writer`."""
        self.need(durable=self.site.durable, shared=self.site.shared)
        if self.site.elsewhere is None:
            raise SkipTest("not proven: needs fault f:kill")
        return await self._stack.enter_async_context(_process(self.site.elsewhere, prefix, number))

    async def pass_time(self, by: timedelta) -> None:
        """Let time pass: at once on our clock, really where the store has a time of its own."""
        if self.site.own_time:
            await asyncio.sleep(by.total_seconds())
        else:
            self.clock.passed += by

    def shift_wall_clock(self, by: timedelta) -> None:
        """Make the wall time wrong by so much more; skips where the database keeps its own."""
        if self.site.own_time:
            raise SkipTest("not proven: needs fault f:clock")
        self.clock.wrong += by

    @asynccontextmanager
    async def soon(self) -> AsyncGenerator[None]:
        """Demand that the block ends within the site's patience."""
        limit = asyncio.timeout(self.site.patience)
        try:
            async with limit:
                yield
        except TimeoutError:
            assert not limit.expired(), "what must happen has not happened in time"
            raise

    # --- acts that many cases need ----------------------------------------------------------------------------

    async def commit(
        self,
        *messages: Message,
        mark: Mark | None = None,
        row: str | None = None,
        guard: Guard | None = None,
        store: Store | None = None,
    ) -> None:
        """Commit a unit with these messages, this mark and this row, and wait until it is durable."""
        home = store or self.store
        unit = home.unit(guard)
        try:
            await self.fill(unit, *messages, mark=mark, row=row, store=home)
            durable = await unit.seal()
        finally:
            await unit.rollback()  # harmless where it is sealed
        await durable

    async def fill(
        self,
        unit: Unit,
        *messages: Message,
        mark: Mark | None = None,
        row: str | None = None,
        store: Store | None = None,
    ) -> None:
        """Write these messages, this mark and this row in *unit*, and leave it open."""
        home = store or self.store
        if mark is not None:
            await home.inbox.mark(unit, mark, b"digest")
        if row is not None:
            await self.site.rows.insert(unit, row)
        if messages:
            await home.outbox.put(unit, messages)

    async def state(self, names: Sequence[str], *, store: Store | None = None) -> Parts:
        """Return which of *names* have a row, a mark (see `mark_of`) and a pending event of that id."""
        home = store or self.store
        known = await home.inbox.known([mark_of(name) for name in names])
        pending = {one.message.id for one in await self.pending(store=home)}
        rows = set(await self.site.rows.names(home))
        return Parts(
            [name for name in names if name in rows],
            [name for name, digest in zip(names, known, strict=True) if digest is not None],
            [name for name in names if name in pending],
        )

    async def pending(self, owner: str = "relay", *, store: Store | None = None) -> list[Pending]:
        """Take the relay's lease and return every row that may leave."""
        backlog = (store or self.store).backlog
        assert await backlog.lease(owner, timedelta(hours=1)), "the lease is free"
        found: list[Pending] = []
        while batch := await backlog.claim(owner, after=found[-1].row if found else 0, limit=1_000):
            found += batch
        return found


@dataclass(frozen=True, slots=True)
class Parts:
    """The three things that a unit writes, each by name; `whole` where they agree."""

    rows: list[str]
    marks: list[str]
    events: list[str]

    def whole(self) -> list[str]:
        """Demand that row, mark and event of each name are there together, and return those names."""
        assert self.rows == self.marks == self.events, f"units that are there in part: {self}"
        return self.rows


class Writer:
    """A process that commits units, each a row, a mark and an event of one name, and says which are durable."""

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        self._process = process
        self.said: list[str] = []

    async def hear(self, number: int) -> None:
        """Read until *number* names more are said to be durable, or the process has ended."""
        stream = self._process.stdout
        assert stream is not None, "opened with pipes"
        for _ in range(number):
            line = await stream.readline()
            if not line.endswith(b"\n"):
                return
            self.said.append(line.decode().strip())

    async def end(self) -> None:
        """Read what it says until it ends by itself, and demand that it did so well."""
        await self.hear(1_000_000)
        assert 0 == await self._process.wait(), "the process failed; its standard error says why"

    async def kill(self) -> None:
        """Send SIGKILL, then read what it had said before."""
        if self._process.returncode is None:
            with contextlib.suppress(ProcessLookupError):  # it may end by itself at this moment
                self._process.kill()
        await self.hear(1_000_000)
        await self._process.wait()


@asynccontextmanager
async def _process(elsewhere: Sequence[str], prefix: str, number: int) -> AsyncGenerator[Writer]:
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        *("-c", _PROGRAM, msgspec.json.encode(sys.path).decode(), prefix, str(number), *elsewhere),
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.PIPE,
    )
    writer = Writer(process)
    try:
        yield writer
    finally:
        await writer.kill()


def message(name: str, key: str | None = "k", *, due: int | None = None, topic: str = "suite.tested") -> Message:
    """Return a message with the id *name*; *due* is its `not_before`."""
    return Message(Topic(topic), name, "suite", key, {"ce-id": name, "ce-type": "suite.tested"}, b"{}", due)


def mark_of(name: str) -> Mark:
    """Return the mark of the event *name* for one handler of one group."""
    return Mark("billing", "charge", 0, "suite", name)


def ids(found: Sequence[Pending]) -> list[str]:
    """Return the message ids, in order."""
    return [one.message.id for one in found]


async def steps(number: int) -> None:
    """Let everybody else take *number* steps of the event loop."""
    for _ in range(number):
        await asyncio.sleep(0)


async def outcome(awaitable: Awaitable[T], *kinds: type[Exception]) -> T | Exception:
    """Return what *awaitable* returns, or the error of one of *kinds* that it raises."""
    try:
        return await awaitable
    except kinds as error:
        return error
