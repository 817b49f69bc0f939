"""Simulating your own services: the real runtime, your handlers, and a world in which everything goes wrong."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Awaitable, Callable, Mapping, Sequence
from hashlib import blake2b
from typing import Any

import msgspec

from tidewire.errors import ConfigurationError, PublishUnknown, TransportUnavailable
from tidewire.model import DeadChannel
from tidewire.operations.letters import scan
from tidewire.rules.events import definition_of
from tidewire.runtime.service import Service
from tidewire.testing.simulation.campaign import Failure, Totals, run_worlds
from tidewire.testing.simulation.checkers import Audience, History, Op, Violation, judge
from tidewire.testing.simulation.draining import left_to_do, until_quiet
from tidewire.testing.simulation.engine import Life, Place, Simulation
from tidewire.testing.simulation.grounds import Ground, opened_ground
from tidewire.testing.simulation.loop import Deadlock, SimLoop
from tidewire.testing.simulation.weather import Faults
from tidewire.testing.simulation.worlds import Report, World

__all__ = ["Check", "Outcome", "simulate"]

Check = Callable[[Mapping[str, Any]], Awaitable[None]]
_STORM_SECONDS = 30.0


class Outcome(msgspec.Struct, frozen=True, kw_only=True):
    """What simulating came to: how many worlds, how many points there were to die at, and each world that failed."""

    worlds: int
    points: int
    kills: int
    failures: Sequence[Failure]

    def demand(self) -> None:
        """Demand that no world failed.

        Raises:
            AssertionError: names the first seed that failed, and why.
        """
        if self.failures:
            first = self.failures[0]
            told = "; ".join(str(violation) for violation in first.violations)
            raise AssertionError(
                f"{len(self.failures)} of {self.worlds} worlds failed; seed {first.world.seed}: {told}"
            )


def simulate(
    services: Sequence[Service],
    *,
    publish: Sequence[object],
    check: Check | None = None,
    seeds: Sequence[int] = range(100),
    faults: Faults | None = None,
    jobs: int = 1,
) -> Outcome:
    """Run *services* once for each of *seeds*, each in processes that die, stand still and lose their broker.

    *publish* are the events that come in. Each service has a memory store of its own. When the faults have ended and
    everything is drained, *check* is given the stores by the names of their services; what it raises is the world's
    failure, and so is an event that was lost, a service that ended by itself, or one that was not drained in time.
    *faults* replaces what each seed draws. Worlds run in forked children, so they cannot change anything here.

    Raises:
        ConfigurationError: a ``def`` handler takes the context: it would wait for a loop that has one thread.
    """
    for service in services:
        for handler in service.handlers:
            if handler.blocking and handler.takes_context:
                raise ConfigurationError(
                    f"{service.name}.{handler.name}: a def handler with a context cannot be simulated",
                    hint="make it async def, or test it with tidewire.testing on a real event loop",
                )

    def run(world: World) -> Report:
        return _UserRun(world, services, publish, check=check).report()

    def world_of(seed: int) -> World:
        return World(seed=seed, faults=faults or Faults.drawn(random.Random(f"faults {seed}")), seconds=_STORM_SECONDS)

    totals = Totals()
    run_worlds(map(world_of, seeds), totals.add, jobs=jobs, batch=1, run=run)
    return Outcome(worlds=totals.worlds, points=totals.points, kills=totals.kills, failures=totals.failures)


class _UserRun:
    """One world of a user's services."""

    def __init__(
        self, world: World, services: Sequence[Service], events: Sequence[object], *, check: Check | None
    ) -> None:
        self.world = world
        self.services = services
        self.events = events
        self.check = check
        self.sent = 0
        self.violations: list[Violation] = []
        self.history = History(
            Audience(
                of=handler.event.type, group=service.name, handler=handler.name, ordered=False, attempts_max=0
            )
            for service in services
            for handler in service.handlers
            if handler.event.kind == "integration"
        )  # fmt: skip
        self.simulation: Simulation | None = None

    def report(self) -> Report:
        """Run it and judge it."""
        loop = SimLoop(random.Random(f"run {self.world.seed}"), interleaving=self.world.faults.interleaving)
        loop.set_exception_handler(self._complaint)
        try:
            loop.run_until_complete(self._all(loop))
        except Deadlock as error:
            self.violations.append(Violation("deadlock", str(error)))
        digest = blake2b(self.history.encode(), digest_size=16).hexdigest()
        weather = None if self.simulation is None else self.simulation.weather
        return Report(
            seed=self.world.seed, ground=self.world.ground, violations=[*self.violations, *judge(self.history)],
            signature=digest, points=loop.points, points_stormy=0, steps=loop.steps, seconds=loop.now,
            faults=dict(weather.counts) if weather is not None else {}, counts=self.history.counts(),
        )  # fmt: skip

    def _complaint(self, loop: Any, context: dict[str, Any]) -> None:
        self.violations.append(Violation("asyncio", f"{context.get('message')}: {context.get('exception')!r}"))

    async def _all(self, loop: SimLoop) -> None:
        faults = self.world.faults
        ground = opened_ground(self.world.ground, loop, dedup=True, power=faults.power > 0)
        await ground.prepare()
        simulation = self.simulation = Simulation(
            chance=loop.chance, faults=faults, broker=ground.broker, stores=ground.stores, history=self.history
        )
        for service in self.services:
            simulation.start(
                Place(name=f"{service.name}-0", group=service.name, store=service.name, service=_always(service))
            )
        while not all(life.app is not None and life.app.ready for life in simulation.lives.values()):
            await asyncio.sleep(0.2)
        simulation.start(Place(name="publisher", group="publisher", work=self._publish))
        storms = [loop.spawn(storm) for storm in simulation.storms()]
        await asyncio.sleep(self.world.seconds if faults.any else 1.0)
        patience = 7_200.0 + 3.0 * faults.clock_max
        simulation.heal(patience)
        await ground.prepare()
        for storm in storms:
            storm.cancel()
        if storms:
            await asyncio.wait(storms)
        await self._drain(simulation, ground, patience)
        self.violations += [Violation("process", trouble) for trouble in simulation.troubles]
        await self._look(ground)

    async def _publish(self, life: Life) -> None:
        """Publish every event until it is stored; over as many lives as it takes."""
        assert life.app is not None
        while self.sent < len(self.events):
            event = self.events[self.sent]
            event_id = f"event-{self.sent}"
            op = Op(f="publish", type="invoke", event=event_id, of=definition_of(type(event)).type)
            self.history.add(op)
            try:
                await life.app.publisher.publish(event, id=event_id)
            except (PublishUnknown, TransportUnavailable):
                await asyncio.sleep(0.1 + life.process.loop.chance.random())
                continue
            self.history.add(msgspec.structs.replace(op, type="ok"))
            self.sent += 1
        await life.stopping.wait()

    async def _drain(self, simulation: Simulation, ground: Ground, patience: float) -> None:
        async def left() -> list[str]:
            missing = len(self.events) - self.sent
            return await left_to_do(simulation, ground) + [f"{missing} events to publish"] * bool(missing)

        at = round(simulation.loop.now * 1e6)
        try:
            async with asyncio.timeout(patience):
                await until_quiet(left)
            self.history.add(Op(f="drained", at=at))
        except TimeoutError:
            self.history.complete = False
            self.history.add(Op(f="drained", type="fail", at=at, detail=", ".join(await left())))

    async def _look(self, ground: Ground) -> None:
        """Take inbox marks for effects, and ask the user's own check."""
        history = self.history
        known = {op.event for op in history.of("publish")}
        for service in self.services:
            for mark in await ground.marks(service.name):
                if mark.event_id in known:
                    common: dict[str, Any] = {"group": mark.group, "handler": mark.handler, "event": mark.event_id}
                    history.add(Op(f="effect", **common))
                    history.add(Op(f="mark", **common))
            history.add(Op(f="outbox", group=service.name, n=(await ground.outbox(service.name))[0]))
        for info in await ground.inspector.groups():
            async for letter in scan(ground.inspector, DeadChannel(info.topic, info.group)):
                if letter.message.id in known:
                    history.add(Op(f="dead", group=info.group, event=letter.message.id, detail=letter.reason))
        if self.check is not None and history.complete:
            try:
                await self.check({service.name: ground.store(service.name) for service in self.services})
            except AssertionError as error:
                self.violations.append(Violation("check", str(error)))


def _always(service: Service) -> Callable[[], Service]:
    return lambda: service
