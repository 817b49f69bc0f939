"""The simulation itself: processes that are started, killed, paused and started again, over a broker and stores."""

from __future__ import annotations

import asyncio
import contextvars
import random
import traceback
from collections.abc import Awaitable, Callable, Coroutine, Mapping
from contextlib import AsyncExitStack
from datetime import timedelta
from typing import Any

import msgspec

from tidewire.chance import RandomJitter
from tidewire.errors import PublishUnknown, StoreUnavailable, TidewireError, TransportUnavailable
from tidewire.model import Fact, Message
from tidewire.runtime.parts import Parts
from tidewire.runtime.serve import Options, Running, running
from tidewire.runtime.service import Service
from tidewire.testing.simulation.checkers import History, Op
from tidewire.testing.simulation.clock import SimClock, SimIds
from tidewire.testing.simulation.hosts import BrokerHost, StoreHost
from tidewire.testing.simulation.loop import Process, SimLoop, current_process
from tidewire.testing.simulation.power import Powered
from tidewire.testing.simulation.stores import SimStore
from tidewire.testing.simulation.weather import Faults, Weather
from tidewire.testing.simulation.wires import SimTransport, Wire

__all__ = ["PUBLISHERS", "Life", "Place", "Simulation"]

_DOWN = (TransportUnavailable, StoreUnavailable, PublishUnknown)


class Life:
    """What one life of a process has: its clock, its line, its adapters, the service that runs in it."""

    def __init__(self, simulation: Simulation, process: Process) -> None:
        self.process = process
        self.clock = simulation.broker.clock_of(process) or SimClock(simulation.loop)
        self.wire = Wire(process, simulation.weather, simulation.history)
        self.wire.named = simulation.named or self.wire.named
        self.parts = Parts(
            clock=self.clock,
            ids=SimIds(random.Random(simulation.chance.getrandbits(64))),
            jitter=RandomJitter(random.Random(simulation.chance.getrandbits(64))),
            observer=self,
        )
        self.transport: Any = None
        self.store: Any = None
        self.app: Running | None = None
        self.facts: dict[str, int] = {}
        self.stopping = asyncio.Event()

    def record(self, facts: Any) -> None:
        """Count facts, as an observer."""
        heard: list[Fact] = facts
        for fact in heard:
            self.facts[fact.kind] = self.facts.get(fact.kind, 0) + 1


PUBLISHERS = "nobody"
"""The service, and so the source, of a process that only publishes."""


class Place(msgspec.Struct, frozen=True, kw_only=True):
    """A process that there is to be: its *name*, the *group* it belongs to, and the *store* it opens, if any.

    Either a *service* runs in it, with *options* (drawn anew for each life), or *work* is awaited with the life's
    `Running` publisher. With *forever* false its end is no accident.
    """

    name: str
    group: str
    store: str = ""
    service: Callable[[], Service] = lambda: Service(PUBLISHERS)
    options: Callable[[], Options] = Options
    work: Callable[[Life], Awaitable[None]] | None = None
    forever: bool = True


class Simulation:
    """A world of processes. Made inside its own loop, driven by a coroutine that belongs to no process."""

    def __init__(
        self, *, chance: random.Random, faults: Faults, broker: BrokerHost, stores: StoreHost, history: History
    ) -> None:
        loop = asyncio.get_running_loop()
        assert isinstance(loop, SimLoop), "a simulation runs on a SimLoop"
        self.loop = loop
        self.chance = chance
        self.faults = faults
        self.weather = Weather(faults, chance)
        self.named: Callable[[Message], str] | None = None
        self.broker = broker
        self.broker.under(self.weather)
        self.stores = stores
        self.history = history
        self.lives: dict[str, Life] = {}
        self.all_lives: list[Life] = []
        self.places: dict[str, Place] = {}
        self.down: set[str] = set()
        self.troubles: list[str] = []
        self._numbers = 0
        loop.on_crash = self._crash
        loop.crash_at = faults.crash_at if self.weather.on else 0
        loop.crash_around(faults.crash_every)

    # --- processes --------------------------------------------------------------------------------------------

    def start(self, place: Place) -> Life:
        """Begin a life of *place*."""
        self.places[place.name] = place
        self.down.discard(place.name)
        self._numbers += 1
        process = Process(self.loop, place.name, number=self._numbers)
        life = Life(self, process)
        self.lives[place.name] = life
        self.all_lives.append(life)
        process.on_end.append(lambda: self._ended(place, life))
        process.start(self._main(place, life))
        return life

    async def stop(self, name: str) -> None:
        """Stop a process gracefully and wait for its end; for ever if it stands still."""
        life = self.lives[name]
        self.down.add(name)
        life.stopping.set()
        while life.process.alive:
            await asyncio.sleep(0.05)

    def restart_later(self, name: str, delay: float) -> None:
        """Start a new life of *name* after *delay* seconds."""
        self.down.add(name)
        empty = contextvars.Context()  # not that of the process that has just died
        self.loop.call_later(delay, self._start_again, name, context=empty)

    def kill(self, name: str) -> None:
        """Kill a process, and let it be started again a little later."""
        self._crash(self.lives[name].process)

    def _crash(self, process: Process) -> None:
        """Let *process* die, or everybody: the power may fail instead."""
        if self.faults.power and self.weather.on and self.chance.random() < self.faults.power:
            self.weather.note("power loss")
            for life in self.lives.values():
                if life.process.alive:
                    self._die(life.process)
            if isinstance(self.broker, Powered):
                self.broker.power_loss()
        elif process.alive:
            self._die(process)

    def _die(self, process: Process) -> None:
        place = self.places[process.name]
        self.weather.note("kill")
        self.history.add(Op(f="crash", at=self._at, process=process.name, group=place.group))
        process.kill()
        if process.name not in self.down:
            self.restart_later(process.name, 0.1 + self.chance.random() * self.faults.restart_max)

    def _start_again(self, name: str) -> None:
        if self.lives[name].process.alive:  # a graceful stop takes its time
            self.restart_later(name, 0.5)
        else:
            self.start(self.places[name])

    def _ended(self, place: Place, life: Life) -> None:
        """A life has ended by itself: as it should, or because something was down, or by a defect."""
        error = life.process.error
        excused = _DOWN if place.forever else (TidewireError,)
        if error is not None and not isinstance(error, excused):
            text = "".join(traceback.format_exception(error)[-3:])
            self.troubles.append(f"{place.name} ended: {text}")
        if place.name not in self.down and (error is not None or (place.forever and not life.stopping.is_set())):
            self.restart_later(place.name, 0.5 + self.chance.random())

    async def _main(self, place: Place, life: Life) -> None:
        async with AsyncExitStack() as stack:
            opened = await stack.enter_async_context(self.broker.open(life.process, life.parts))
            life.transport = SimTransport(opened, life.wire)
            if place.store:
                opened = await stack.enter_async_context(self.stores.open(place.store, life.process))
                life.store = SimStore(opened, life.wire)
            arguments: dict[str, Any] = {"transport": life.transport, "store": life.store, "parts": life.parts}
            async with running(place.service(), options=place.options(), **arguments) as app:
                life.app = app
                if place.work is None:
                    await life.stopping.wait()
                else:
                    await place.work(life)

    @property
    def _at(self) -> int:
        return round(self.loop.now * 1e6)

    # --- faults -----------------------------------------------------------------------------------------------

    def storms(self) -> list[Coroutine[Any, Any, None]]:
        """Return the coroutines that make faults happen; each runs until the weather is cleared."""
        faults = self.faults
        table: Mapping[str, tuple[float, Callable[[], Awaitable[None]]]] = {
            "pause": (faults.pause_every, self._storm_pause),
            "cut": (faults.cut_every, self._storm_cut),
            "clock": (faults.clock_every, self._storm_clock),
            "slow": (faults.slow_every, self._storm_slow),
            "outage": (faults.outage_every, self._storm_outage),
            "stop": (faults.stop_every, self._storm_stop),
            "duplicate": (2.0 if faults.duplicate else 0.0, self._storm_duplicate),
        }
        return [self._again(name, every, act) for name, (every, act) in table.items() if every > 0]

    async def _again(self, kind: str, every: float, act: Callable[[], Awaitable[None]]) -> None:
        while self.weather.on:
            await asyncio.sleep(self.chance.expovariate(1.0 / every))
            if self.weather.on:
                self.weather.note(kind)
                await act()

    def _victim(self) -> Life | None:
        alive = [life for _, life in sorted(self.lives.items()) if life.process.alive and not life.process.paused]
        return self.chance.choice(alive) if alive else None

    def _while(self) -> float:
        return min(self.chance.expovariate(3.0 / self.faults.pause_max), self.faults.pause_max)

    async def _storm_pause(self) -> None:
        if (life := self._victim()) is not None:
            life.process.pause()
            await asyncio.sleep(self._while())
            life.process.resume()

    async def _storm_cut(self) -> None:
        if (life := self._victim()) is not None:
            name = life.process.name
            self.weather.cut_off.add(name)
            life.wire.cut(True)
            await asyncio.sleep(self._while())
            self.weather.cut_off.discard(name)
            if not life.process.dead:
                life.wire.cut(False)

    async def _storm_clock(self) -> None:
        if (life := self._victim()) is not None:
            most = self.faults.clock_max
            life.clock.jump(timedelta(seconds=self.chance.uniform(-most, most)))
            life.clock.rate = self.chance.choice([1.0, 1.0, 0.999, 1.001, 1.02])

    async def _storm_slow(self) -> None:
        if (life := self._victim()) is not None:
            for _ in range(20):
                life.process.pause()
                await asyncio.sleep(self.chance.expovariate(5.0))
                life.process.resume()
                await asyncio.sleep(0.01)

    async def _storm_outage(self) -> None:
        self.weather.broker_away = True
        await asyncio.sleep(self._while())
        self.weather.broker_away = False

    async def _storm_stop(self) -> None:
        life = self._victim()
        if life is not None and self.places[life.process.name].forever:
            life.stopping.set()
            self.restart_later(life.process.name, self.chance.random() * self.faults.restart_max * 2.5)

    async def _storm_duplicate(self) -> None:
        if self.chance.random() < self.faults.duplicate * 5:
            self.broker.repeat(self.chance.random())

    # --- the end ----------------------------------------------------------------------------------------------

    def heal(self, within: float) -> None:
        """End all faults: what stands still goes on, what is down is started; it must be drained *within* seconds."""
        self.weather.clear()
        self.loop.crash_around(0.0)
        self.loop.crash_at = 0
        for life in self.lives.values():
            if not life.process.dead:
                life.wire.cut(False)
            life.process.resume()
        self.history.add(Op(f="heal", at=self._at, due=round(within * 1e6)))


def dying() -> Awaitable[None]:
    """Kill the process that asks, from inside; it never comes back from this."""
    process = current_process()
    assert process is not None, "only a simulated process can die"
    loop = process.loop
    loop.on_crash(process)
    return loop.create_future()
