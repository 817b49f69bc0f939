"""One world of a crash test: a service, some events one after another, and one thing that goes wrong, or nothing."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import msgspec

from tidewire.model import DeadChannel, Message, Topic
from tidewire.operations.letters import scan
from tidewire.runtime.service import Service
from tidewire.testing.simulation.checkers import History
from tidewire.testing.simulation.crashtest.database import SqlDatabase
from tidewire.testing.simulation.crashtest.guard import attempts_to_leave
from tidewire.testing.simulation.crashtest.recording import Entry, Recorder
from tidewire.testing.simulation.crashtest.snapshots import Snapshot, rows_of
from tidewire.testing.simulation.draining import left_to_do
from tidewire.testing.simulation.engine import Place, Simulation
from tidewire.testing.simulation.grounds import Ground, opened_ground
from tidewire.testing.simulation.loop import Deadlock, Process, SimLoop
from tidewire.testing.simulation.weather import Faults

__all__ = ["Ended", "Probe", "Setting", "Trial", "run_trial"]

Probe = Callable[[Path], Callable[[], object]]
"""Prepares the outside of one world, in an empty folder of its own, and returns what looks at it."""
_POLL, _POLL_MAX = 0.01, 1.0
_PATIENCE = 30 * 86_400.0
_NEVER = 1 << 60


class Setting(msgspec.Struct, frozen=True, kw_only=True):
    """What all worlds have in common: the *service*, its database to *start* with (None: no store), a *probe*."""

    service: Service
    start: bytes | None = b""
    probe: Probe | None = None


class Trial(msgspec.Struct, frozen=True, kw_only=True):
    """What is tried in one world: *events* by their numbers, and a death at point *crash_at*, or *duplicate*, the place
    among them of one that the broker hands out twice. Neither: nothing goes wrong."""

    events: tuple[int, ...]
    crash_at: int = 0
    duplicate: int = -1


class Ended(msgspec.Struct, frozen=True, kw_only=True):
    """What came of a world. Points *first* to *last* are those of the process while events were under way."""

    snapshot: Snapshot
    entries: tuple[Entry, ...]
    first: int = 0
    last: int = 0
    trouble: str = ""


def run_trial(setting: Setting, messages: Sequence[Message], *, trial: Trial) -> Ended:
    """Run one world, in this process, which should be thrown away afterwards."""
    loop = SimLoop(random.Random("crashtest"), interleaving="ordered")
    world = _World(setting, [messages[number] for number in trial.events], trial, loop=loop)
    with TemporaryDirectory(prefix="tidewire-crashtest-") as folder:
        look = None if setting.probe is None else setting.probe(Path(folder))
        try:
            loop.run_until_complete(world.run())
        except Deadlock as error:
            world.troubles.append(str(error))
        if look is not None:
            world.see(look())
    return world.ended()


class _World:
    def __init__(self, setting: Setting, messages: Sequence[Message], trial: Trial, *, loop: SimLoop) -> None:
        self._setting = setting
        self._messages = messages
        self._trial = trial
        self._loop = loop
        self._recorder = Recorder()
        self._snapshot: Snapshot = {}
        self._first = self._last = 0
        self._under_way = ""
        self.troubles: list[str] = []
        loop.set_exception_handler(lambda loop, context: self.troubles.append(f"{context.get('message')}"))

    async def run(self) -> None:
        """Start the service, hand it its events one after another, and look at what is there at the end."""
        loop, service = self._loop, self._setting.service
        ground = opened_ground("memory", loop, dedup=False)
        store = ""
        if self._setting.start is not None:
            store = service.name
            stores: Any = ground.stores
            database = stores.databases[store] = SqlDatabase(_clock_of(ground), self._setting.start)
            database.on_commit = self._committed
        faults = Faults(crash_at=self._trial.crash_at or _NEVER, latency=0.0, interleaving="ordered")
        simulation = Simulation(
            chance=loop.chance, faults=faults, broker=ground.broker, stores=ground.stores, history=History()
        )
        loop.on_crash = lambda process: self._die(simulation, process)
        heard = self._recorder.listening(service)
        life = simulation.start(Place(name=service.name, group=service.name, store=store, service=lambda: heard))
        while life.app is None or not life.app.ready:
            if life.process.ended:
                self.troubles.append(f"{life.process.error}")
                return
            await asyncio.sleep(_POLL)
        self._first = loop.points + 1
        for place, message in enumerate(self._messages):
            await self._hand_in(simulation, ground, message)
            if place == self._trial.duplicate:
                self._recorder.add(Entry(did="duplicate", event=message.id))
                await ground.inspector.publish([message])
                await self._quiet(simulation, ground)
        self._last = loop.points
        loop.crash_at = 0
        self.troubles += simulation.troubles
        await self._look(ground)

    async def _hand_in(self, simulation: Simulation, ground: Ground, message: Message) -> None:
        self._under_way = message.id
        self._recorder.add(Entry(did="publish", event=message.id))
        await ground.inspector.publish([message])
        await self._quiet(simulation, ground)

    async def _quiet(self, simulation: Simulation, ground: Ground) -> None:
        """Wait until nothing is left to do."""
        calm, wait = 0, _POLL
        async with asyncio.timeout(_PATIENCE):
            while calm < 2:
                await asyncio.sleep(wait)
                calm = 0 if await left_to_do(simulation, ground) else calm + 1
                wait = _POLL if calm else min(wait * 2, _POLL_MAX)

    def _die(self, simulation: Simulation, process: Process) -> None:
        self._recorder.killed(self._under_way)
        simulation.kill(process.name)

    def _committed(self, unit: Any) -> None:
        for event in dict.fromkeys(mark.event_id for mark in unit.marks):
            self._recorder.add(Entry(did="commit", event=event))

    async def _look(self, ground: Ground) -> None:
        """See the database, what was published, and the dead letters."""
        if self._setting.start is not None:
            database: SqlDatabase = ground.store(self._setting.service.name)
            for name, rows in database.tables().items():
                self._snapshot[f"table {name}"] = [_plain(dict(row)) for row in rows]
        known = {(message.source, message.id) for message in self._messages}
        for info in await ground.inspector.topics():
            await self._see_topic(ground, info.name, known)
        for group in await ground.inspector.groups():
            async for letter in scan(ground.inspector, DeadChannel(group.topic, group.group)):
                self._row("dead letter", {"type": letter.message.headers.get("ce-type", ""), "reason": letter.reason})
        for entry in self._recorder.entries:
            if entry.did == "effect":
                self._row(f"effect {entry.detail}", _plain({str(n): value for n, value in enumerate(entry.values)}))

    async def _see_topic(self, ground: Ground, topic: str, known: set[tuple[str, str]]) -> None:
        after: int | str | None = None
        while page := await ground.inspector.browse(Topic(topic), after=after):
            for one in page:
                message = one.message
                if (message.source, message.id) not in known:  # the same id again is known again by whoever reads
                    known.add((message.source, message.id))
                    self._row(f"published {message.headers.get('ce-type', '')}", _body(message))
            after = page[-1].position

    def see(self, seen: object) -> None:
        """Take in what a probe has seen: a mapping has a place for each key."""
        several: Any = seen
        places: dict[Any, object] = dict(several) if isinstance(seen, Mapping) else {"": seen}
        for name, rows in places.items():
            self._snapshot[f"probe {name}".strip()] = rows_of(rows)

    def _row(self, place: str, row: dict[str, Any]) -> None:
        self._snapshot.setdefault(place, []).append(row)

    def ended(self) -> Ended:
        """Return what came of it."""
        left = attempts_to_leave()
        trouble = f"a crash test lets nothing out: {left[0]}" if left else "; ".join(self.troubles[:1])
        entries = tuple(
            msgspec.structs.replace(entry, values=tuple(_plain(dict(enumerate(entry.values))).values()))
            for entry in self._recorder.entries
        )
        return Ended(snapshot=self._snapshot, entries=entries, first=self._first, last=self._last, trouble=trouble)


def _plain(row: object) -> dict[str, Any]:
    (plain,) = rows_of([row])
    return plain


def _body(message: Message) -> dict[str, Any]:
    try:
        found: Any = msgspec.json.decode(message.body)
    except msgspec.DecodeError:
        found = repr(message.body)
    return _plain(found)


def _clock_of(ground: Any) -> Any:
    return ground.broker.broker.clock
