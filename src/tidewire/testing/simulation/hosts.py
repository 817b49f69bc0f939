"""Where the brokers and databases of a simulation live: outside of every process, so that they outlive each."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Iterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from datetime import timedelta
from typing import Any, Protocol

from tidewire.protocols import Clock
from tidewire.runtime.parts import Parts
from tidewire.testing.simulation.clock import SimClock
from tidewire.testing.simulation.loop import Process
from tidewire.testing.simulation.stores import Database
from tidewire.testing.simulation.weather import Weather
from tidewire.transports.memory import MemoryBroker, open_memory_transport
from tidewire.transports.memory.log import Entry

__all__ = ["BrokerHost", "MemoryHost", "MemoryStores", "StoreHost"]


class BrokerHost(Protocol):
    """A broker that simulated processes connect to."""

    def open(self, process: Process, parts: Parts) -> AbstractAsyncContextManager[Any]:
        """Open a transport for *process*."""
        ...

    def clock_of(self, process: Process) -> SimClock | None:
        """Return the clock of the machine that *process* runs on; None: a machine of its own."""
        ...

    def repeat(self, draw: float) -> bool:
        """Hand a stored message out once more, as brokers may; *draw* (0 to 1) chooses it. False if there is none."""
        ...

    def under(self, weather: Weather) -> None:
        """Hear of what can go wrong on the way to it, before the first process opens a transport."""
        ...


class StoreHost(Protocol):
    """The databases of the services, by name."""

    def open(self, name: str, process: Process) -> AbstractAsyncContextManager[Any]:
        """Open the store *name* for *process*."""
        ...


class MemoryHost:
    """The memory broker. *dedup*: how long it knows an id again; with zero every repeated publish is a duplicate."""

    def __init__(self, clock: Clock, *, dedup: timedelta = timedelta(minutes=10)) -> None:
        self.broker = MemoryBroker(clock=clock, dedup=dedup)

    def clock_of(self, process: Process) -> SimClock | None:
        """Every process has a machine of its own."""
        return None

    def open(self, process: Process, parts: Parts) -> AbstractAsyncContextManager[Any]:
        """Open a transport. A process that dies falls silent: its receivers are told by its wire."""
        return open_memory_transport(self.broker)

    def power_loss(self) -> None:
        """Start again with what is stored and settled: nobody is a member, what was handed out comes back."""
        for group in self.broker.groups.values():
            for member in list(group.members):
                member.silent = True
                group.expire(member, member.life)

    def repeat(self, draw: float) -> bool:
        """Append a copy of a message of some topic behind the newest."""
        stored = [(name, entry) for name, topic in sorted(self.broker.topics.items()) for entry in _entries(topic)]
        if not stored:
            return False
        name, entry = stored[int(draw * len(stored))]
        _append(self.broker, name, entry)
        return True

    def under(self, weather: Weather) -> None:
        """All that goes wrong happens on the wire."""


class MemoryStores:
    """Memory stores, one by name, shared by the processes that open it."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self.databases: dict[str, Database] = {}

    def database(self, name: str) -> Database:
        """Return the database *name*, empty at first."""
        if name not in self.databases:
            self.databases[name] = Database(self._clock)
        return self.databases[name]

    @asynccontextmanager
    async def open(self, name: str, process: Process) -> AsyncGenerator[Database]:
        """Open a store; when *process* dies, what it had open is rolled back."""
        database = self.database(name)
        process.on_kill.append(lambda: database.drop(process))
        yield database


def _entries(topic: Any) -> Iterator[Entry]:
    for lane in topic.lanes:
        yield from lane.entries


def _append(broker: Any, topic: str, entry: Entry) -> None:
    broker._append(broker.topics[topic], entry.message, broker.clock.now_us())
