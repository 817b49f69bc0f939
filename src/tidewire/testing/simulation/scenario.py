"""One world of the built-in scenario: drawn from a seed, run, healed, drained, and judged."""

from __future__ import annotations

import asyncio
import random
from datetime import timedelta
from hashlib import blake2b
from typing import Any

import msgspec

from tidewire.errors import (
    PublishRejected,
    PublishUnknown,
    StoreUnavailable,
    TidewireError,
    TransportUnavailable,
)
from tidewire.model import Message, Topic
from tidewire.operations.audit import Operator
from tidewire.operations.letters import scan
from tidewire.operations.redrive import discard, interrupted_redrives, plan_letters, redrive, resume
from tidewire.operations.replays import replay
from tidewire.operations.selection import Selection
from tidewire.runtime.producer import transaction
from tidewire.runtime.serve import Options
from tidewire.testing.simulation.checkers import History, Op, Violation, judge
from tidewire.testing.simulation.clock import SimClock, SimIds
from tidewire.testing.simulation.draining import left_to_do, until_quiet
from tidewire.testing.simulation.engine import PUBLISHERS, Life, Place, Simulation
from tidewire.testing.simulation.grounds import opened_ground
from tidewire.testing.simulation.looking import Aftermath, dead_channels, uid_of
from tidewire.testing.simulation.loop import Deadlock, SimLoop
from tidewire.testing.simulation.shop import Effect, OrderPlaced, Shop, audience, digest_of
from tidewire.testing.simulation.worlds import GROUPS, Report, World

__all__ = ["run_world"]


def run_world(world: World, *, history: History | None = None) -> Report:
    """Run *world* and judge it. What it leaves behind is never collected: run many in processes of their own.

    *history*, if given, is filled with what happened.
    """
    chance = random.Random(f"run {world.seed}")
    loop = SimLoop(chance, interleaving=world.faults.interleaving)
    history = History() if history is None else history
    history.audience = audience(world.tuning)
    run = _Run(world, loop, history)
    loop.set_exception_handler(run.on_exception)
    try:
        loop.run_until_complete(run.all())
    except Deadlock as error:
        run.violations.append(Violation("deadlock", str(error)))
    except TidewireError as error:  # nobody from outside can look any more
        run.violations.append(Violation("world", str(error)))
    violations = [*run.violations, *judge(history)]
    digest = blake2b(history.encode(), digest_size=16)
    digest.update(f"{loop.points} {loop.steps} {loop.now!r}".encode())
    return Report(
        seed=world.seed,
        ground=world.ground,
        violations=violations,
        signature=digest.hexdigest(),
        points=loop.points,
        points_stormy=run.points_stormy,
        steps=loop.steps,
        seconds=loop.now,
        faults=dict(run.simulation.weather.counts) if run.simulation else {},
        counts=history.counts(),
    )


class _Run:
    """One world while it runs."""

    def __init__(self, world: World, loop: SimLoop, history: History) -> None:
        self.world = world
        self.loop = loop
        self.history = history
        self.violations: list[Violation] = []
        self.simulation: Any = None
        self.points_stormy = 0
        self.progress: dict[str, int] = {}
        self.places: dict[str, int] = {}
        self.ids = SimIds(random.Random(f"ids {world.seed}"))
        self.clock = SimClock(loop)

    def on_exception(self, loop: Any, context: dict[str, Any]) -> None:
        """Whatever asyncio complains about is a finding."""
        error = context.get("exception")
        self.violations.append(Violation("asyncio", f"{context.get('message')}: {error!r}"))

    @property
    def _patience(self) -> float:
        """Virtual seconds in which all must be drained: what a wall clock that was moved has put off, and some more."""
        return self.world.patience + 3.0 * self.world.faults.clock_max * bool(self.world.faults.clock_every)

    async def all(self) -> None:
        """Run the world from its first process to its end."""
        world = self.world
        power = world.faults.power > 0
        ground = opened_ground(world.ground, self.loop, dedup=world.dedup, power=power)
        await ground.prepare()
        self.ground = ground
        simulation = self.simulation = Simulation(
            chance=self.loop.chance, faults=world.faults, broker=ground.broker, stores=ground.stores,
            history=self.history,
        )  # fmt: skip
        simulation.named = uid_of
        self.shop = Shop(self.loop, self.history, ground.book, tuning=world.tuning, seed=world.seed)
        ground.listen(self.history, self.shop.number)
        if not await self._start():
            return
        storming = [*simulation.storms(), self._watch()]
        if world.operators:
            storming.append(self._operate())
        if world.replays and world.tuning.mailer_store:
            storming.append(self._replay())
        storms = [self.loop.spawn(storm) for storm in storming]
        await asyncio.sleep(world.seconds if world.faults.any else 1.0)
        self.points_stormy = self.loop.points
        simulation.heal(self._patience)
        await ground.prepare()
        for storm in storms:
            storm.cancel()
        await asyncio.wait(storms)
        self.shop.sick = False
        await self._end()
        await ground.close()

    async def _start(self) -> bool:
        """Start everything; False if it is not ready in time, which is a finding."""
        world, simulation = self.world, self.simulation
        makers = {"billing": self.shop.billing, "shipping": self.shop.shipping, "mailer": self.shop.mailer}
        for group, maker in makers.items():
            for number in range(world.copies):
                store = group if group != "mailer" or world.tuning.mailer_store else ""
                name = f"{group}-{number}"
                place = Place(name=name, group=group, store=store, service=maker, options=self._options)
                simulation.start(place)
        # Groups get what is published from the moment they exist.
        if world.calm_start:
            self.loop.crash_around(0.0)
        latest = self.loop.now + 3.0 * world.patience
        while not all(life.app is not None and life.app.ready for life in simulation.lives.values()):
            await asyncio.sleep(0.2)
            if self.loop.now > latest:
                self.violations.append(Violation("C18", f"not ready {3.0 * world.patience:g} s after the start"))
                return False
        if world.calm_start:
            self.loop.crash_around(world.faults.crash_every)
        for number in range(world.publishers):
            name = f"web-{number}"
            simulation.start(Place(name=name, group="web", store="web", work=self._publish, options=self._options))
        return True

    def _options(self) -> Options:
        """Draw the settings of one life: a restart may bring others."""
        world, chance = self.world, self.loop.chance
        return Options(
            lease=timedelta(seconds=world.lease),
            grace=timedelta(seconds=world.grace * chance.choice([0.5, 1.0, 1.0])),
            max_hold=timedelta(seconds=world.max_hold * chance.choice([0.2, 1.0, 1.0])),
            stuck_after=timedelta(seconds=chance.choice([20.0, 60.0])),
            relay_lease=timedelta(seconds=world.relay_lease or chance.choice([1.0, 5.0])),
            lanes=world.lanes,
            relay=True,
        )

    # --- publishing -------------------------------------------------------------------------------------------

    async def _publish(self, life: Life) -> None:
        """Publish orders one by one, over as many lives as it takes: a client's memory outlives the process."""
        name = life.process.name
        while not life.stopping.is_set():
            number = self.progress.get(name, 0)
            if number >= self.world.orders:
                break
            await self.shop.think()
            if number % 4 == 3:
                await self._publish_in_outbox(life, number)
            elif number % 7 == 5:
                await self._publish_garbage(life, number)
            else:
                await self._publish_direct(life, number)
            self.progress[name] = number + 1
        await life.stopping.wait()

    def _order(self, life: Life, number: int, *, way: str, n: int) -> OrderPlaced:
        uid = f"{life.process.name}.{way}{number}"
        key = f"{life.process.name}-{way}{number % 2}"
        return OrderPlaced(uid=uid, key=key, n=n, stream=f"{life.process.name}-{way}", fate=self.shop.fate_of(uid))

    def _note(self, order: OrderPlaced, kind: Any, *, source: str = PUBLISHERS) -> None:
        self.history.add(
            Op(
                f="publish", type=kind, at=self.shop.at, event=order.uid, of="sim.order.placed", key=order.key,
                n=order.n, stream=order.stream, digest=digest_of(order, source),
            )
        )  # fmt: skip

    async def _publish_direct(self, life: Life, number: int) -> None:
        """Publish until it is certain: again, with the same id, is always right."""
        assert life.app is not None
        order = self._order(life, number, way="d", n=number)
        self._note(order, "invoke")
        while True:
            try:
                await life.app.publisher.publish(order, id=order.uid)
            except (PublishUnknown, TransportUnavailable):
                await asyncio.sleep(0.1 + self.loop.chance.random())
            except PublishRejected:
                self._note(order, "fail")
                return
            else:
                self._note(order, "ok")
                return

    async def _publish_in_outbox(self, life: Life, number: int) -> None:
        """Write a row and its event in one transaction; one in four is rolled back.

        A client that does not know whether its commit was made asks again for the very same: its place among the
        orders of its key is drawn once.
        """
        assert life.app is not None
        draft = order = self._order(life, number, way="o", n=number)
        give_up = self.shop.fate_of(draft.uid + "?") != "fine" and number % 8 == 7
        try:
            async with transaction(life.store) as tx:
                await self.ground.book.begin(tx)
                order = msgspec.structs.replace(draft, n=self.places.setdefault(draft.uid, self.shop.number()))
                self._note(order, "invoke")
                await self.shop.think()
                await life.app.publisher.publish(order, id=order.uid, tx=tx)
                row = Effect(
                    number=order.n, handler="order", uid=order.uid, event_id=order.uid, stream=order.stream,
                    emits=((order.uid, "sim.order.placed"),), n=order.n, key=order.key,
                )  # fmt: skip
                await self.ground.book.write(tx, row)
                await self.shop.think()
                if give_up:
                    raise _ChangedMind
        except _ChangedMind:
            self._note(order, "fail")
        except StoreUnavailable:
            await asyncio.sleep(0.5)

    async def _publish_garbage(self, life: Life, number: int) -> None:
        """What nobody here can read, or asked for."""
        order = self._order(life, number, way="g", n=-1)
        headers = {"ce-id": order.uid, "ce-source": life.process.name, "ce-specversion": "1.0"}
        headers["ce-type"] = "sim.order.viewed" if number > 7 else "sim.order.placed"
        message = Message(Topic("sim.order"), order.uid, life.process.name, order.key, headers, b"{not json")
        if headers["ce-type"] == "sim.order.placed":
            self._note(order, "invoke", source=message.source)
        while True:
            try:
                receipts = await life.transport.publish([message])
            except TransportUnavailable:
                await asyncio.sleep(0.3)
                continue
            if receipts[0].ok:
                break
            await asyncio.sleep(0.3)
        if headers["ce-type"] == "sim.order.placed":
            self._note(order, "ok", source=message.source)

    # --- operators --------------------------------------------------------------------------------------------

    async def _operator(self, work: Any, *, store: str = "") -> None:
        """Let an operator do something in a process of its own, which may die of it."""
        name = f"operator-{self.shop.number()}"
        life = self.simulation.start(
            Place(name=name, group="operator", store=store, work=work, options=self._options, forever=False)
        )
        self.simulation.down.add(name)  # nobody starts it again
        if self.world.faults.crash_every and self.simulation.weather.on and self.loop.chance.random() < 0.5:
            life.process.fuse = self.loop.chance.randint(5, 60)
        while life.process.alive:
            await asyncio.sleep(0.25)

    def _by(self, life: Life) -> Operator:
        return Operator("simulation", clock=self.clock, ids=self.ids)

    async def _operate(self) -> None:
        while self.simulation.weather.on:
            await asyncio.sleep(self.loop.chance.expovariate(1.0 / self.world.operate_every))
            await self._operator(self._redrive_some)

    async def _redrive_some(self, life: Life) -> None:
        by = self._by(life)
        for begun in await interrupted_redrives(life.transport):
            await resume(life.transport, begun, by=by)
            return
        group = self.loop.chance.choice(["", *GROUPS])
        if group and group not in {info.group for info in await life.transport.groups()}:
            return
        plan = await plan_letters(life.transport, Selection(group=group), now=self.clock.now_us())
        await redrive(life.transport, plan, by=by, force=True)

    async def _replay(self) -> None:
        """Stop a group, move its cursor back to the start, and start it again: what has taken effect is skipped."""
        await asyncio.sleep(self.loop.chance.random() * self.world.seconds)
        group = self.loop.chance.choice(GROUPS)
        names = [name for name in self.simulation.lives if name.startswith(group)]
        self.simulation.weather.note("replay")  # what had died is tried anew, as often as the policy allows

        async def work(life: Life) -> None:
            for info in await life.transport.groups():
                if info.group == group:
                    await replay(life.transport, info.topic, group, to=self.clock.now() - timedelta(days=1))

        try:
            for name in names:
                await self.simulation.stop(name)
            await asyncio.sleep(self.world.lease * 2)
            await self._operator(work)
        finally:
            for name in names:
                self.simulation.restart_later(name, 0.1)

    # --- the end ----------------------------------------------------------------------------------------------

    async def _watch(self) -> None:
        """Ask every process now and then how it is."""
        deaf: dict[int, int] = {}
        while True:
            await asyncio.sleep(1.0)
            for name, life in self.simulation.lives.items():
                if life.app is None or not life.process.alive or life.process.paused or not life.app.service.handlers:
                    continue
                if any(not receiver.leaving for receiver in life.wire.receivers):
                    deaf.pop(id(life), None)
                    continue
                since = deaf.setdefault(id(life), self.shop.at)
                detail = "ready" if life.app.ready else "not ready"
                op = Op(f="health", at=self.shop.at, process=name, n=self.shop.at - since, detail=detail)
                self.history.add(op)

    async def _end(self) -> None:
        """Drain, redrive what died of what is repaired by now, discard the rest, drain again, stop, look."""
        try:
            async with asyncio.timeout(self._patience):
                await self._until_quiet()
                await self._requeue()
                for _ in range(12):
                    if not await self._mended():
                        break
                    await self._until_quiet()
                self.history.add(Op(f="drained", at=self.shop.at))
        except TimeoutError:
            detail = ", ".join(await self._what_is_left())
            self.history.complete = False
            self.history.add(Op(f="drained", type="fail", at=self.shop.at, detail=detail))
        look = Aftermath(self.world, self.shop, self.ground, history=self.history)
        look.note_facts(self.simulation)
        for name in sorted(self.simulation.lives):
            if self.simulation.lives[name].process.alive:
                await self._stop(name)
        self.violations += await look.look(self.simulation)

    async def _stop(self, name: str) -> None:
        """Stop a process; if it does not end within a minute, that is a finding."""
        try:
            async with asyncio.timeout(60.0):
                await self.simulation.stop(name)
        except TimeoutError:
            self.violations.append(Violation("C18", f"{name} did not stop within 60 s"))

    async def _requeue(self) -> None:
        """Let an operator of each store try again what the broker has refused."""

        async def work(life: Life) -> None:
            await life.store.outbox.requeue([one.row for one in await life.store.outbox.stuck(limit=1_000)])

        for name in ("web", *GROUPS):
            if (await self.ground.outbox(name))[1]:
                await self._operator(work, store=name)
                await self._until_quiet()

    async def _until_quiet(self) -> None:
        """Wait until every publisher is done, every outbox empty, and every group has nothing left to do."""
        await until_quiet(self._what_is_left, every=self.world.look_every)

    async def _what_is_left(self) -> list[str]:
        behind = [
            name
            for name in self.simulation.lives
            if name.startswith("web") and self.progress.get(name, 0) < self.world.orders
        ]
        return behind + await left_to_do(self.simulation, self.ground)

    async def _mended(self) -> bool:
        """Redrive what can succeed now and discard what cannot; False when no dead letter is left."""
        inspector = self.ground.inspector
        by = Operator("simulation", clock=self.clock, ids=self.ids)
        now = self.clock.now_us()
        letters = [letter for channel in await dead_channels(inspector) async for letter in scan(inspector, channel)]
        if not letters:
            return False
        for begun in await interrupted_redrives(inspector):
            await resume(inspector, begun, by=by)
        for reason in ("permanent", "undecodable"):
            doomed = [letter for letter in letters if letter.reason == reason]
            plan = await plan_letters(inspector, Selection(reason=reason), now=now, whole_keys=False)
            if plan.count:
                for letter in doomed:
                    op = Op(f="discard", at=self.shop.at, group=letter.channel.group, event=uid_of(letter.message))
                    self.history.add(op)
                await discard(inspector, plan, by=by, reason="simulation")
        await self._until_quiet()
        plan = await plan_letters(inspector, Selection(), now=now)
        await redrive(inspector, plan, by=by, force=True)
        return True


class _ChangedMind(Exception):
    """A caller rolls its transaction back."""
